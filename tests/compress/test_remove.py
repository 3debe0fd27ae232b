"""Removal of blocks: what is linear is repaired exactly, what is not is repaired in part; the file brings it along."""

from __future__ import annotations

import json
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lean3r
from lean3r.cli.main import main
from lean3r.compress import CompressionPlan, compress, remove
from lean3r.compress.distill import attention_loss, attention_outputs
from lean3r.compress.plan import QuantizeStep, RemoveStep, Step
from lean3r.compress.removal import _sets, choose_blocks
from lean3r.errors import UsageError
from lean3r.layers.block import Block
from lean3r.layers.removed import Removed
from lean3r.models.nano import Nano, NanoConfig
from lean3r.pipeline.calibration import outputs_of
from lean3r.pipeline.predict import predict
from lean3r.types import Views

MIDDLE = CompressionPlan((RemoveStep("all blocks 2-3"),), "middle")


def tiny() -> Nano:
    torch.manual_seed(0)
    return Nano(NanoConfig(width=32, heads=2, pairs=3)).eval()


def error(ours: nn.Module, theirs: nn.Module, views: Views) -> float:
    """Of cameras and depth, mean square."""
    pairs = zip(outputs_of(ours, views), outputs_of(theirs, views), strict=True)  # type: ignore[arg-type]
    return sum(float((a - b).square().mean()) for a, b in pairs)


class Map(nn.Module):
    """A linear attention branch: the same matrix for every token."""

    def __init__(self, dim: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix


def test_linear_blocks_are_repaired_exactly_and_others_in_part() -> None:
    model = tiny()
    views = Views(torch.rand(1, 4, 3, 128, 128))
    removed = remove(model, MIDDLE, lambda m: predict(m, views))
    assert [isinstance(block, Removed) for block in removed.trunk.blocks] == [i in (2, 3) for i in range(7)]
    assert not any(isinstance(block, Removed) for block in model.trunk.blocks)
    bare = compress(model, MIDDLE)  # matrices of zero
    others = Views(torch.rand(1, 4, 3, 128, 128))
    assert 0 < error(removed, model, others) < 0.5 * error(bare, model, others)
    for index in (2, 3):  # x + Map(x), from here on
        block = model.trunk.blocks[index]
        assert isinstance(block, Block)
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)
        model.trunk.blocks[index].norm2, model.trunk.blocks[index].mlp = nn.Identity(), Map(32)
    exact = remove(model, MIDDLE, lambda m: predict(m, views))
    assert error(compress(model, MIDDLE), model, others) > 1e-6
    # Where two depths are as good as each other, rounding chooses: single pixels may differ, and on some machines do.
    pairs = zip(outputs_of(exact, others), outputs_of(model, others), strict=True)
    assert all(((a - b).abs() > 3e-5).double().mean() < 1e-3 for a, b in pairs)


def test_matrices_are_fitted_on_all_scenes_that_the_network_is_given() -> None:
    """One after the other, of other sizes, too: the last one alone decided."""
    model = tiny()
    first, second = (Views(torch.rand(1, 4, 3, 128, 128)) for _ in range(2))
    both = Views(torch.cat([first.images, second.images]))

    def matrices(*scenes: Views) -> list[torch.Tensor]:
        removed = remove(model, MIDDLE, lambda m: [predict(m, views) for views in scenes])
        return [block.patch.detach() for block in removed.trunk.blocks if isinstance(block, Removed)]

    for apart, together in zip(matrices(first, second), matrices(both), strict=True):
        assert torch.allclose(apart, together, atol=1e-3 * float(together.abs().max()))
    last = matrices(second)[0]
    other = matrices(Views(torch.rand(1, 2, 3, 96, 160)), second)[0]
    assert not torch.allclose(other, last, atol=1e-3 * float(last.abs().max()))


def test_layers_behind_a_gap_keep_their_teachers() -> None:
    """Distillation pairs outputs in the order in which layers run."""
    model = tiny()
    student = compress(model, {"steps": [{"remove": "frame blocks 1"}]})
    views = Views(torch.rand(1, 2, 3, 64, 64))
    with torch.no_grad(), attention_outputs(model) as theirs, attention_outputs(student) as ours:
        model(views)
        student(views)
    distance = attention_loss(ours, theirs)
    assert distance.layers == (0, 2, 3, 4, 5, 6) and distance.per_layer[0] == 0


def test_idle_blocks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the likeness of the states, which proposes sets, and by what is measured: one range, or two."""
    assert len(list(_sets(7, 3))) == len([c for c in combinations(range(7), 3) if _in_two(c)])
    views = Views(torch.rand(1, 3, 3, 128, 128))
    for planted, target in (((1, 2), "all blocks 1-2"), ((1, 4), "all blocks 1,4")):
        model = tiny()
        for index in planted:
            block = model.trunk.blocks[index]
            assert isinstance(block, Block)
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.data.mul_(1e-3)
                layer.bias.data.zero_()
        for tried in (1, 16):
            monkeypatch.setattr(sys.modules["lean3r.compress.removal"], "TRIED", tried)
            found = choose_blocks(model, lambda m: outputs_of(m, views), 2)
            assert len(found) == tried and found[0].error == min(removal.error for removal in found) < 1e-3
            assert found[0].plan.steps == (RemoveStep(target),)
        assert found[1].error > 2 * found[0].error
    with pytest.raises(UsageError, match="cannot remove 7 of 7 blocks"):
        choose_blocks(model, lambda m: outputs_of(m, views), 7)


def _in_two(blocks: tuple[int, ...]) -> bool:
    """Whether they are at most two ranges."""
    return sum(b - a > 1 for a, b in pairwise(blocks)) < 2


def test_the_other_steps_of_the_plan_and_the_file(tmp_path: Path) -> None:
    """Mechanisms with windows reorder the tokens; blocks keep their numbers; the file needs no pictures."""
    model = lean3r.load("nano", device="cpu")
    steps = (
        Step("global blocks 0-1", "block_sparse", {"window": 4, "sparsity": 0.5}),
        RemoveStep("global blocks 1"),
        QuantizeStep("fp8-weight", "frame blocks 3"),
    )
    plan = CompressionPlan.from_json(CompressionPlan(steps, "three").to_json())
    assert plan.steps == steps and "global blocks 1: removed" in str(plan)
    views = Views(torch.rand(1, 3, 3, 128, 128))
    removed = remove(model, plan, lambda m: predict(m, views))
    assert (
        isinstance(removed.get_submodule("trunk.blocks.4"), Removed) and removed.parameter_count < model.parameter_count
    )
    again = lean3r.load("nano", device="cpu", weights=lean3r.save(removed, tmp_path / "nano.safetensors"))
    assert again.plan == plan
    assert all(torch.equal(a, b) for a, b in zip(outputs_of(again, views), outputs_of(removed, views), strict=True))


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    plan, out = tmp_path / "plan.json", tmp_path / "small.safetensors"
    plan.write_text('{"steps": [{"remove": "global blocks 1"}]}')
    call = ["compress", "nano", str(out)]
    assert main([*call, "--plan", str(plan)]) == 2 and "--fit PHOTOS" in capsys.readouterr().err
    assert main([*call, "--fit", str(tmp_path)]) == 2 and "needs a plan" in capsys.readouterr().err
    assert main([*call, "--plan", "merge", "--fit", str(tmp_path)]) == 2
    assert "removes no block" in capsys.readouterr().err
    assert main([*call, "--plan", str(plan), "--fit", str(tmp_path), "--json"]) == 0
    parameters = json.loads(capsys.readouterr().out)["parameters"]
    assert parameters["after"] < parameters["before"]
    with pytest.raises(UsageError, match="removes blocks, and"):
        lean3r.load("nano", device="cpu", plan=plan)
    assert lean3r.load("nano", device="cpu", weights=out).parameter_count == parameters["after"]
    capsys.readouterr()
    assert main(["compress", str(out), str(tmp_path / "again.safetensors"), "--plan", str(plan)]) == 2
    assert "compressed already" in capsys.readouterr().err
    monkeypatch.setattr(sys.modules["lean3r.compress.removal"], "TRIED", 2)
    call = ["compress", "nano", str(tmp_path / "chosen.json"), "--calibrate", str(tmp_path), "--remove"]
    assert main([*call, "2", "--json"]) == 0
    chosen = CompressionPlan.from_dict(json.loads(capsys.readouterr().out)["plan"])
    assert CompressionPlan.from_json((tmp_path / "chosen.json").read_text()) == chosen and len(chosen.removals) == 1
    call.insert(3, "--overwrite")
    assert main([*call, "7"]) == 2 and "cannot remove 7 of 7 blocks" in capsys.readouterr().err
    assert main([*call, "-1"]) == 2 and "1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "step", "said"),
    [
        ("nano", {"remove": "encoder blocks 0"}, "nothing for 'encoder blocks 0'"),
        ("nano", {"remove": "global blocks 9"}, "names block 9"),
        ("nano", {"remove": "global blocks 0", "settings": {}}, "unknown key 'settings' of step 1, which removes"),
    ],
)
def test_what_cannot_be_removed(name: str, step: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compress(lean3r.load(name, device="cpu"), {"steps": [step]})
