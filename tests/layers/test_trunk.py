"""Which tokens a trunk mixes: the schedule, parts of it, padding, and the order of patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lean3r.layers.trunk import Role, Trunk, key_mask, order_by_window
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

LAYOUT = TokenLayout(views=3, special=1, rows=2, cols=3)
PAIRS: tuple[Role, ...] = ("frame", "global", "frame", "global")


def trunk(schedule: tuple[Role, ...] = PAIRS) -> Trunk:
    torch.manual_seed(0)
    return Trunk(schedule, 16, 2).eval()


def tokens() -> Tensor:
    return torch.randn(2, 3, 7, 16, generator=torch.Generator().manual_seed(1))


def run(model: Trunk, x: Tensor, layout: TokenLayout = LAYOUT, **options) -> Tensor:
    with torch.no_grad():
        return model(x, layout, **options)[0]


@pytest.mark.parametrize(("schedule", "is_seen"), [(("frame", "frame"), False), (("frame", "global"), True)])
def test_only_global_blocks_mix_views(schedule: tuple[Role, ...], is_seen: bool) -> None:
    x = tokens()
    other = x.clone()
    other[:, 2] += 1
    a, b = (run(trunk(schedule), values) for values in (x, other))
    assert torch.equal(a[:, :2], b[:, :2]) != is_seen and not torch.equal(a[:, 2], b[:, 2])


def test_scenes_do_not_mix_and_the_order_of_views_does_not_matter() -> None:
    x, model = tokens(), trunk()
    whole = run(model, x)
    assert_rms(torch.cat([run(model, one[None]) for one in x]), whole, 1e-5)
    assert_rms(run(model, x[:, [2, 0, 1]]), whole[:, [2, 0, 1]], 1e-5)


def test_consecutive_parts_equal_the_whole_and_return_the_requested_outputs() -> None:
    x, model = tokens(), trunk()
    with torch.no_grad():
        whole, kept = model(x, LAYOUT, keep=(1, 3))
        middle, _ = model(x, LAYOUT, stop=2)
        assert torch.equal(model(middle, LAYOUT, start=2)[0], whole)
    assert set(kept) == {1, 3} and torch.equal(kept[1], middle) and torch.equal(kept[3], whole)


def test_roles_have_their_own_options() -> None:
    model = Trunk(PAIRS, 16, 2, roles={"global": {"rope": False}}, layer_scale=0.5)
    assert [block.attn.rope for block in model.blocks] == [True, False, True, False]  # type: ignore[union-attr]


def test_padding_has_no_influence() -> None:
    x, valid = tokens(), torch.ones(2, 3, 6, dtype=torch.bool)
    valid[:, 1, 4:] = False
    layout = replace(LAYOUT, valid=valid)
    mask = key_mask(layout, 2)
    assert mask is not None and mask.shape == (2, 3, 7) and bool(mask[..., 0].all())
    other = x.clone()
    other[:, 1, 5:] = 50.0
    a, b = (run(trunk(), values, layout) for values in (x, other))
    assert torch.equal(a[mask], b[mask]) and key_mask(LAYOUT, 2) is None


@pytest.mark.parametrize("has_padding", [False, True])
def test_windows_change_only_the_order(has_padding: bool) -> None:
    """Dense blocks give the same for any order of the patches, also if a mechanism requires windows."""
    x, valid = tokens(), torch.ones(2, 3, 6, dtype=torch.bool)
    valid[:, 0, 3:] = not has_padding
    layout = replace(LAYOUT, valid=valid if has_padding else None)
    moved, inner, back = order_by_window(x, layout, 2)
    assert torch.equal(moved.index_select(2, back), x) and torch.equal(moved[:, :, 0], x[:, :, 0])
    expected = run(trunk(), x, layout)
    assert_rms(run(trunk(), moved, inner).index_select(2, back), expected, 1e-5)
    model = trunk()
    model.blocks[1].attn.mechanism.window = 2  # type: ignore[union-attr]
    with torch.no_grad():
        found, kept = model(x, layout, keep=(0, 3))
        plain = trunk()(x, layout, keep=(0, 3))[1]
    assert_rms(found, expected, 1e-5)
    assert_rms(kept[0], plain[0], 1e-5)
