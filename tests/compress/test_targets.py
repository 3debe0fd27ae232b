"""One grammar says which layers: the same words for attention and for linear layers."""

from __future__ import annotations

import pytest

from lean3r.compress.linears import linears_of, sites_of
from lean3r.compress.targets import Target, places_of
from lean3r.errors import UsageError
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import without_memory
from lean3r.models.nano import Nano
from lean3r.models.pi3 import Pi3

BLOCKS = {
    "global blocks": [2, 4],
    "frame blocks 0,2": [0, 3],
    "frame blocks 1-": [1, 3],
    "all blocks 1-3": [1, 2, 3],
    "global block 1": [4],
    "named trunk.blocks.?.*": [0, 1, 2, 3, 4],
    "named *.3.*": [3],
}


@pytest.fixture(scope="module")
def model() -> Nano:
    return Nano(Nano.SMALLEST)


@pytest.fixture(scope="module")
def pi3() -> Pi3:
    return Pi3(Pi3.SMALLEST)


def named(model: Backbone, target: str) -> set[str]:
    return {place.name for place in Target.parse(target).select(linears_of(model))}


@pytest.mark.parametrize("target", BLOCKS)
def test_the_same_words_name_the_same_blocks_of_attention_and_linears(model: Nano, target: str) -> None:
    attention = Target.of_attention(target).select(places_of(sites_of(model)))
    assert [place.name for place in attention] == [f"trunk.blocks.{i}.attn" for i in BLOCKS[target]]
    linears = named(model, target)
    assert linears and {int(name.split(".")[2]) for name in linears if name.startswith("trunk")} == set(BLOCKS[target])


def test_parts_are_disjoint_and_make_up_every_linear(pi3: Pi3, model: Nano) -> None:
    parts = [named(pi3, text) for text in ("encoder blocks", "frame blocks", "global blocks", "heads")]
    assert all(parts) and sum(map(len, parts)) == len(set().union(*parts))
    assert set().union(*parts) == named(pi3, "every linear")
    assert named(model, "every linear") < named(model, "every layer"), "the latter has convolutions"
    assert named(pi3, "camera head") < named(pi3, "heads")
    assert named(pi3, "all blocks") == parts[1] | parts[2] < named(pi3, "every block")


@pytest.mark.parametrize("text", ["every linear", "every layer", "narrow layers"])
def test_targets_of_linears_are_refused_for_mechanisms_and_the_other_way_round(text: str) -> None:
    Target.parse(text)
    with pytest.raises(UsageError, match="is for linear layers; expected, for mechanisms, 'every attention layer'"):
        Target.of_attention(text)
    with pytest.raises(UsageError, match="is for attention mechanisms; expected, for linear layers, 'every layer'"):
        Target.parse("every attention layer")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("vggt", {"encoder": 24, "frame": 24, "global": 24, "camera": 4}),
        ("da3-large", {"encoder": 8, "frame": 8, "global": 8, "camera": 4}),
    ],
)
def test_mechanisms_go_wherever_lite3r_puts_them(name: str, counts: dict[str, int]) -> None:
    places = places_of(sites_of(without_memory(MODELS.get(name))))

    def selected(target: str) -> list[str]:
        return [place.name for place in Target.of_attention(target).select(places)]

    for part, count in counts.items():
        chosen = selected("camera head" if part == "camera" else f"{part} blocks")
        assert len(chosen) == count and chosen == [p.name for p in places if p.part == part]
        if part != "camera":
            assert selected(f"{part} blocks 1-2") == chosen[1:3]
    assert selected("every attention layer") == selected("every block") == [place.name for place in places]
    assert len(places) == sum(counts.values())
    assert selected("named *camera*") == selected("camera head") == selected("heads")


@pytest.mark.parametrize(
    "text", ["globals", "global blocks x", "global blocks 1,,2", "named", "named a b", "Every linear"]
)
def test_invalid_targets_are_refused_alike(text: str) -> None:
    for read, first in ((Target.parse, "every layer'"), (Target.of_attention, "every attention layer'")):
        with pytest.raises(UsageError, match=f"target '{text}' cannot be read; expected '{first}"):
            read(text)


def test_roles_may_be_lacking_where_that_is_allowed_but_not_names(model: Nano) -> None:
    places = linears_of(model)
    assert Target.parse("encoder blocks 3").select(places, may_lack=True) == []
    with pytest.raises(UsageError, match="nothing for 'encoder blocks 3'"):
        Target.parse("encoder blocks 3").select(places)
    with pytest.raises(UsageError, match="no layer is named absent"):
        Target.parse("named absent").select(places, may_lack=True)
