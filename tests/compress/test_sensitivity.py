"""The sensitivity scan: Lite3R's score, what outputs lose, and a plan that leaves out the worst."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import lean3r
from lean3r.cli.main import main
from lean3r.compress.plan import resolve_plan
from lean3r.compress.sensitivity import leave_out, propose_leave_out, scan, score
from lean3r.errors import UsageError

EVERY = resolve_plan({"steps": [{"quantize": "fp8", "target": "every linear"}], "name": "every"})


def test_score_is_lite3rs() -> None:
    torch.manual_seed(0)
    normal = torch.randn(200, 300)
    assert score(normal) == pytest.approx(0.04 * float(normal.abs().max()) + 0.3 * 0.0027 + 0.3 * 0.3, abs=3e-3)
    spiked = normal.clone()
    spiked[0, 0] = 500
    assert score(spiked) > 20 + score(normal)
    assert score(torch.zeros(3, 4)) == 0


def test_the_layer_that_loses_most_is_left_out() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 16))
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def run(model: nn.Module) -> None:
        x = torch.randn(40, 64)
        x[:, 0] *= 1e7  # beside it all others of a token round to 0, though they alone get through
        with torch.no_grad():
            network[0].weight[:, 0] = 0
        model(x)

    found = scan(network, EVERY, run)
    assert [row.layer for row in found] == ["0", "2", "3"] and {row.scheme for row in found} == {"fp8"}
    worst, *others = (row.snr_db for row in found)
    assert worst is not None and worst < 5 and all(row is not None and 25 < row < 45 for row in others)
    left_out = propose_leave_out(found)
    assert left_out == ["0"] and propose_leave_out(found, 0.0 if worst > 0 else -99.0) == []
    better = leave_out(network, EVERY, left_out)
    assert [row.layer for row in scan(network, better, run)] == ["2", "3"] and better.name == "every-scanned"
    assert leave_out(network, EVERY, []) is EVERY
    two = resolve_plan({"steps": [{"quantize": "fp8", "target": f"named {name}"} for name in "02"]})
    assert [step.as_dict()["target"] for step in leave_out(network, two, ["0"]).steps] == ["named 2"]
    with pytest.raises(UsageError, match="nothing but layers below the floor"):
        leave_out(network, two, ["2", "0"])
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items() if name != "0.weight")
    assert not network[0]._forward_hooks
    unseen = scan(network, EVERY, lambda model: model[2](torch.randn(3, 64)))
    assert [row.snr_db is None for row in unseen] == [True, False, True] and "0" not in propose_leave_out(unseen, 99)
    with pytest.raises(UsageError, match="quantises nothing"):
        scan(network, resolve_plan("gsa"), run)


def test_command_writes_a_plan_that_compress_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scan"
    photos = tmp_path / "photos"
    photos.mkdir()
    torch.manual_seed(0)
    for index in range(2):
        pixels = (torch.rand(6, 8, 3) * 255).byte().numpy()
        Image.fromarray(pixels).resize((128, 96), Image.Resampling.BICUBIC).save(photos / f"{index}.png")
    arguments = ["compress", "nano", str(out), "--scan", "--scheme", "fp8", "--floor-db", "32", "--json", "-q"]
    assert main([*arguments, "--photos", str(photos)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "scan.json").read_text()) and found["views"] == ["0.png", "1.png"]
    losses = {row["layer"]: row["snr_db"] for row in found["layers"]}
    assert 0 < len(found["left_out"]) < len(losses) and all(losses[name] < 32 for name in found["left_out"])
    with Image.open(out / "scan.png") as picture:
        assert picture.width >= 560 and len(picture.getcolors(1 << 20) or []) > 5
    small = tmp_path / "nano.safetensors"
    assert main(["compress", "nano", str(small), "--plan", str(out / "plan.json"), "--json", "-q"]) == 0
    changed = {row["layer"] for row in json.loads(capsys.readouterr().out)["changed"]}
    assert changed == losses.keys() - set(found["left_out"])
    assert lean3r.load("nano", weights=small).plan.name == "fp8-scanned"
    assert main([*arguments, "--photos", str(photos)]) == 2 and "not empty" in capsys.readouterr().err
