"""Calibration: the layer that matters keeps its pairs, the budget holds, the choice is the best one."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lean3r.cli.main import main
from lean3r.compress import compress
from lean3r.compress.calibrate import FOR_HEADS, Candidate, calibrate, choose
from lean3r.compress.plan import CompressionPlan
from lean3r.errors import UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.models.nano import Nano, NanoConfig
from lean3r.pipeline.calibration import outputs_of
from lean3r.types import Views


def test_the_choice_is_the_best_within_the_budget() -> None:
    rng = random.Random(0)
    for _ in range(20):
        layers = [
            [Candidate(n, "merge", {}, rng.randint(1, 99) / 100, rng.random()) for _ in range(4)] for n in range(3)
        ]
        fitting = [c for c in itertools.product(*layers) if sum(x.density for x in c) <= 3 * 0.3 + 1e-9]
        measured = [candidate for row in layers for candidate in row]
        if not fitting:
            with pytest.raises(UsageError, match=r"no plan has a mean density of at most 0\.3; the sparsest has"):
                choose(measured, 0.3)
            continue
        least = min(sum(x.error for x in c) for c in fitting)
        found = choose(measured, 0.3)
        assert [c.layer for c in found] == [0, 1, 2] and sum(c.error for c in found) == pytest.approx(least)


def test_a_layer_that_matters_keeps_more_pairs() -> None:
    """One global layer does nothing, another much: the plan spends the budget there."""
    torch.manual_seed(0)
    model = Nano(NanoConfig(width=32, heads=2, pairs=3)).eval()
    idle, busy = model.trunk.blocks[2], model.trunk.blocks[4]
    with torch.no_grad():
        idle.attn.proj.weight.zero_()
        busy.attn.qkv.weight.mul_(8)
        busy.attn.proj.weight.mul_(8)
    views = Views(torch.rand(1, 4, 3, 128, 128))
    plan, chosen, measured = calibrate(model, lambda candidate: outputs_of(candidate, views), 0.3)
    assert sum(c.density for c in chosen) / 3 <= 0.3 and chosen[0].density < chosen[1].density
    errors = [max(c.error for c in measured if c.layer == layer) for layer in (0, 1)]
    assert errors[0] < 1e-9 and errors[1] > 1e-6
    again = CompressionPlan.from_json(plan.to_json())
    assert again.steps == plan.steps
    found = outputs_of(compress(model, again), views)
    assert all(t.isfinite().all() for t in found)


def test_a_head_that_matters_keeps_more_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One head of a layer does nothing, the other much; the plan says so by heads, and does what was measured."""
    few = [("frame_local", {}), ("merge", {"ratio": 0.5, "protect": 0.0})]
    monkeypatch.setattr(sys.modules["lean3r.compress.calibrate"], "candidates", lambda: few)
    torch.manual_seed(0)
    model = Nano(NanoConfig(width=32, heads=2, pairs=1)).eval()
    attention = model.trunk.blocks[2].attn
    assert isinstance(attention, SelfAttention)
    with torch.no_grad():
        attention.qkv.weight.mul_(8)
        attention.proj.weight.mul_(8)
        attention.proj.weight[:, :16] = 0  # reads nothing of head 0
    views = Views(torch.rand(1, 4, 3, 128, 128))
    plan, chosen, measured = calibrate(model, lambda candidate: outputs_of(candidate, views), 0.7, by_head=True)
    assert [(c.layer, c.head) for c in chosen] == [(0, 0), (0, 1)] and len(measured) == 2 * (3 + len(FOR_HEADS))
    assert chosen[0].mechanism is not None and chosen[1].mechanism is None
    assert max(c.error for c in measured if c.head == 0) < 1e-9 < 1e-6 < max(c.error for c in measured if c.head == 1)
    found = outputs_of(compress(model, CompressionPlan.from_json(plan.to_json())), views)
    pairs = zip(found, outputs_of(model, views), strict=True)
    assert all(torch.allclose(ours, theirs, atol=1e-4) for ours, theirs in pairs)


def test_a_plan_from_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [("frame_local", {}), ("merge", {"ratio": 0.5, "protect": 0.0})]
    monkeypatch.setattr(sys.modules["lean3r.compress.calibrate"], "candidates", lambda: few)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    out = tmp_path / "plan.json"
    call = ["compress", "nano", str(out), "--calibrate", str(tmp_path)]
    assert main([*call, "--budget", "0.4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["density"] <= 0.4 and CompressionPlan.from_json(out.read_text()).as_dict() == found["plan"]
    assert main(["compress", "nano", str(tmp_path / "nano.safetensors"), "--plan", str(out)]) == 0
    capsys.readouterr()
    assert main([*call, "--budget", "0.4", "--json", "--by-head", "--overwrite"]) == 0
    by_head = json.loads(capsys.readouterr().out)
    assert by_head["density"] <= 0.4 and {step["mechanism"] for step in by_head["plan"]["steps"]} == {"per_head"}
    for more, said in (
        (["--budget", "0.1", "--overwrite"], "no plan has a mean density of at most 0.1"),
        (["--plan", "gsa"], "leave --plan"),
        ([], "--overwrite"),
    ):
        capsys.readouterr()
        assert main([*call, *more]) == 2 and said in capsys.readouterr().err
    assert main(["compress", "nano", str(tmp_path / "plan"), "--calibrate", str(tmp_path / "0.png")]) == 2
    assert "ends in .json" in capsys.readouterr().err
    assert main([*call[:2], str(tmp_path / "one.json"), "--calibrate", str(tmp_path / "0.png")]) == 2
    assert "two pictures or more" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [0.0, 1.0, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(UsageError, match="above 0 and below 1"):
        calibrate(torch.nn.Identity(), lambda _: [], budget)
