"""nano-looped: loops cost time, never parameters; one loop is one pair of blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lean3r.compress import compress
from lean3r.compress.linears import sites_of
from lean3r.errors import UsageError, WeightsError
from lean3r.layers.looped import LoopedTrunk, positions
from lean3r.models.checkpoint import save_model
from lean3r.models.nano import Nano, NanoConfig
from lean3r.models.nano_looped import LoopedConfig, NanoLooped, set_loops
from lean3r.pipeline.load import load
from lean3r.train.losses.looped import looped_loss, loops_at
from lean3r.types import TokenLayout, Views


def looped(loops: int = 3, *, conditioned: bool = True) -> NanoLooped:
    """A small one; `conditioned` gives its factors something to say."""
    torch.manual_seed(0)
    model = NanoLooped(LoopedConfig(width=32, heads=2, loops=loops)).eval()
    if conditioned:
        assert isinstance(model.trunk, LoopedTrunk)
        for scale in model.trunk.scales:
            torch.nn.init.normal_(scale.out, std=0.3)  # type: ignore[arg-type]
    return model


def pictures(views: int = 3, height: int = 48, width: int = 80) -> Tensor:
    return torch.rand(1, views, 3, height, width, generator=torch.Generator().manual_seed(views))


def test_one_loop_is_one_pair_of_nano() -> None:
    model = looped(1, conditioned=False)
    plain = Nano(NanoConfig(width=32, heads=2, pairs=1)).eval()
    state = model.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    with torch.inference_mode():
        ours, theirs = model(Views(pictures())), plain(Views(pictures()))
    assert torch.equal(ours.depth, theirs.depth) and torch.equal(ours.cam_from_world, theirs.cam_from_world)


def test_loops_cost_no_parameters_and_change_the_answer() -> None:
    model = looped(1)
    found = []
    for loops in (1, 2, 6):
        model.loops = loops
        assert len(model.iterate(pictures()).estimates) == loops
        assert model.parameter_count == looped(9).parameter_count
        with torch.inference_mode():
            found.append(model(Views(pictures())).depth)
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])
    assert Nano().parameter_count > NanoLooped().parameter_count


@pytest.mark.parametrize("loops", [1, 5])
def test_permuting_views_permutes_outputs(loops: int) -> None:
    model, images, order = looped(loops), pictures(4), [2, 0, 3, 1]
    with torch.inference_mode():
        plain, turned = model(Views(images)), model(Views(images[:, order]))
    torch.testing.assert_close(turned.depth, plain.depth[:, order], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(turned.intrinsics, plain.intrinsics[:, order], rtol=1e-3, atol=1e-3)


def test_checkpointed_and_plain_gradients_are_equal() -> None:
    torch.manual_seed(0)
    trunk = LoopedTrunk(("frame", "global"), 32, 2)
    for scale in trunk.scales:
        torch.nn.init.normal_(scale.out, std=0.3)  # type: ignore[arg-type]
    layout, x = TokenLayout(2, 1, 3, 4), torch.randn(1, 2, 13, 32)

    def gradients(run: Any) -> list[Tensor]:
        y = x
        for step in positions(4):
            y = run(y, step)
        return list(torch.autograd.grad(y.square().mean(), list(trunk.parameters())))

    plain = gradients(lambda y, step: trunk.one_pass(y, layout, step))
    again = gradients(lambda y, step: checkpoint(trunk.one_pass, y, layout, step, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert all(bool(g.isfinite().all()) for g in plain)


def test_gradients_of_a_checkpointed_stage_are_the_plain_ones() -> None:
    from lean3r.train.sharding import checkpointed

    model = looped(3).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        model.iterate(pictures(2)).tokens.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    with checkpointed(model):
        again = gradients()
    assert plain.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in plain.items())


def test_compression_names_its_blocks() -> None:
    model = looped()
    assert [site.role for site in sites_of(model)] == ["frame", "frame", "global"]
    plan = {"steps": [{"target": "global blocks 0", "mechanism": "gsa"}]}
    sparse = compress(model, plan)
    sparse.loops = 2
    with torch.inference_mode():
        assert bool(sparse(Views(pictures())).depth.isfinite().all())
    assert model.loops == 3, "each copy has its own number"


def test_the_number_of_loops_in_training() -> None:
    drawn = [loops_at(step / 4000, 2, 6) for step in range(4000)]
    assert set(drawn) == {2, 3, 4, 5, 6} and drawn == [loops_at(step / 4000, 2, 6) for step in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(2 + 4 * 2 / 3, abs=0.06), "Beta(2, 1) has the mean 2/3"
    for least, most in ((0, 3), (4, 3)):
        with pytest.raises(UsageError, match="expected 1 <= least <= most"):
            loops_at(0.5, least, most)


def test_the_objective_leaves_the_number_of_loops_alone() -> None:
    from lean3r.data.world.synthetic import SyntheticWorld

    model = looped(3).train()
    batch = SyntheticWorld(seed=5, tiles=16, tile_size=16, candidates=2).batch(0, 2, views=2, height=32, width=32)
    loss, parts = looped_loss(model, batch, 0.3, least=1, most=4)
    loss.backward()
    assert model.loops == 3 and bool(loss.isfinite()) and "rotation" in parts
    assert isinstance(model.trunk, LoopedTrunk)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.trunk.scales.parameters())


@pytest.mark.parametrize("loops", [0, -1, 2.0, True, "4"])
def test_invalid_numbers_of_loops_are_refused(loops: Any) -> None:
    with pytest.raises(UsageError, match="expected a whole number of at least 1"):
        looped().loops = loops
    with pytest.raises(UsageError, match="expected a whole number of at least 1"):
        NanoLooped(replace(LoopedConfig(width=32, heads=2), loops=loops))

    model = looped()
    set_loops(model, 7)
    assert model.loops == 7
    with pytest.raises(UsageError, match="nano has no looped trunk"):
        set_loops(Nano(NanoConfig(width=32, heads=2, pairs=1)), 2)


def test_weights_must_be_given_and_come_back(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"nano-looped are not part of lean3r .* --weights; .* lean3r train nano-looped"
    ):
        load("nano-looped")
    model = NanoLooped().eval()
    save_model(model, tmp_path / "looped.safetensors")
    back = load("nano-looped", tmp_path / "looped.safetensors", device="cpu")
    assert isinstance(back, NanoLooped) and back.loops == LoopedConfig().loops
    with torch.inference_mode():
        assert torch.equal(back(Views(pictures())).depth, model(Views(pictures())).depth)


def test_the_recipe_is_nanos_with_loops() -> None:
    from lean3r.train import OBJECTIVES, RECIPES

    recipe, plain = RECIPES.get("nano-looped")(), RECIPES.get("nano")()
    assert recipe.model == "nano-looped" and OBJECTIVES.get(recipe.objective) is looped_loss
    assert [phase.name for phase in recipe.phases] == ["nano-looped-coarse", "nano-looped-fine", "nano-looped-detail"]
    for ours, theirs in zip(recipe.phases, plain.phases, strict=True):
        assert ours.optim == theirs.optim and ours.total_steps == theirs.total_steps
        assert ours.stages[0].loss == theirs.stages[0].loss | {"least": 1, "most": 5}
        assert type(ours).from_json(ours.to_json()) == ours
