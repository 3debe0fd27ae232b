"""`lean3r distill` and the options that it shares with `train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lean3r
from lean3r.attention.base import recording
from lean3r.cli.main import main
from lean3r.types import Views

FAST = ("--steps", "1", "--views", "2", "--batch", "2", "--processes", "1")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No validation and no curves: they take longer than the runs."""
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)
    monkeypatch.setattr("lean3r.eval.synthetic.validate", lambda *_: {"auc30": 1.0})


def test_a_student_from_first_step_to_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["distill", "--recipe", "nano-gsa-fp8", *FAST, "-o", str(tmp_path / "run")]
    assert main([*call, "-q"]) == 0
    said = capsys.readouterr()
    assert not said.err
    path = Path(said.out.strip())
    assert path == tmp_path / "run" / "nano-gsa-fp8.safetensors" and path.stat().st_size < 3e6
    model = lean3r.load("nano-gsa-fp8", weights=path, device="cpu")
    with recording() as log, torch.no_grad():
        found = model(Views(torch.rand(1, 8, 3, 240, 240)))
    assert found.depth is not None and found.depth.isfinite().all()
    assert [(record.density or 1.0) < 0.1 for record in log] == [True] * 3
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert [phase["name"] for phase in recipe["phases"]] == ["nano-gsa-mechanisms", "nano-gsa", "nano-gsa-fp8"]
    assert main([*call, "--lr", "1e-5"]) == 2 and "already holds a training run" in capsys.readouterr().err
    assert main([*call, "--resume"]) == 0
    assert main([*call, "--resume", "--lr", "1e-5"]) == 2
    assert "another recipe" in capsys.readouterr().err
    earlier = tmp_path / "run" / "nano-gsa" / "weights.safetensors"
    assert main([*call[:-1], str(tmp_path / "later"), "--student", str(earlier)]) == 0
    assert "has finished nano-gsa; training starts with nano-gsa-fp8." in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "later").glob("nano*") if file.is_dir()] == ["nano-gsa-fp8"]
    ours, theirs = (load_file(folder / path.name) for folder in (tmp_path / "later", path.parent))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_dry_run_prints_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--lr", "0.1", "0.2", "0.3", "--gamma", "0.5", "0.2", "--seed", "3", "--data", "synthetic:2"]
    assert main(["distill", "--student-plan", "sla-fp8", *arguments, *FAST, "-o", str(tmp_path), "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "nano-sla-fp8" and not list(tmp_path.iterdir())
    assert [phase["optim"]["lr"] for phase in found["phases"]] == [0.1, 0.2, 0.3]
    for phase in found["phases"]:
        assert phase["seed"] == 3 and phase["stages"][0]["views"] == [2] and phase["stages"][0]["steps"] == 1
        assert phase["settings"]["objective_settings"].items() >= {"gamma_from": 0.5, "gamma_to": 0.2}.items()
        assert phase["settings"]["data"]["sources"] == [{"name": "synthetic", "root": "", "weight": 2.0}]
    assert main(["train", "nano", "--lr", "0.1", *FAST, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(p["optim"]["lr"], p["optim"]["muon_lr"]) for p in found["phases"]] == [(0.1, 0.2)] * 3


def test_a_step_keeps_its_batches_on_any_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lean3r.cli.distill.check_fit", lambda _: None)

    def batches(*arguments: str) -> tuple[int, int]:
        assert main([*arguments, "--dry-run"]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["processes"], found["phases"][0]["stages"][0]["accumulate"]

    assert batches("train", "nano") == (2, 1) and batches("train", "nano", "--processes", "1") == (1, 2)
    assert batches("train", "nano", "--processes", "1", "--accumulate", "1") == (1, 1)
    speed3r = ("distill", "--recipe", "speed3r-pi3", "--device", "cuda")
    assert batches(*speed3r) == (1, 32)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    assert batches(*speed3r) == (8, 4)
    lite3r = ["distill", "--recipe", "lite3r-vggt", "--device", "cuda", "--dry-run"]
    assert main(lite3r) == 2 and "--accumulate" in capsys.readouterr().err, "a step has one batch"
    assert batches(*lite3r[:-1], "--accumulate", "1") == (8, 1)
    monkeypatch.setenv("RANK", "1")
    assert main([*lite3r, "--accumulate", "1"]) == 0 and not capsys.readouterr().out, "one process speaks"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--recipe", "nano-gsa-fp9"], 2, "Perhaps you meant nano-gsa-fp8"),
        (["--recipe", "nano-gsa-fp8", "--teacher", "vggt"], 2, "the teacher vggt does not fit"),
        (["--teacher", "da3mono-large"], 2, "no recipe has the teacher da3mono-large"),
        (["--recipe", "lite3r-da3-lean", "--teacher", "da3mono-large"], 2, "has nothing for 'all blocks'"),
        (["--student-plan", "gsb"], 2, "unknown plan 'gsb'"),
        (["--steps", "1", "2"], 2, "--steps has 2 numbers for 3 phases"),
        (["--processes", "0"], 2, "--processes is 0; expected at least 1"),
        (["--views", "32"], 2, "at least the largest view count, 32"),
        (["--gamma", "0.2", "0.1"], 0, ""),
        (["--gamma", "0.1", "0.2"], 2, "falls or stays"),
        (["--recipe", "speed3r-pi3", "--gamma", "0.1"], 2, "no attention-output distillation"),
        (["--recipe", "nano"], 2, "lean3r train nano"),
        (["--gamma", "1", "2", "3"], 2, "--gamma has 3 numbers"),
        (["--lr", "-1"], 2, "optim.lr is -1"),
        (["--train", "nothing"], 2, "unknown role 'nothing'"),
        (["--train", "norms", "global blocks 1-", "--explode-factor", "50", "--skip-limit", "9"], 0, ""),
        (["--explode-factor", "0.5"], 2, "explode_factor is 0.5"),
        (["--precision", "fp4"], 2, "'bf16' or 'fp32'"),
        (["--data", "dtu"], 2, "expected"),
        (["--data", "dtu=/nowhere/at/all"], 3, "is not a folder"),
    ],
)
def test_bad_calls_are_one_line(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *arguments, "-o", str(tmp_path), "--dry-run"]) == code
    shown = capsys.readouterr().err.strip()
    assert said in shown and "\n" not in shown


def test_train_points_to_distill(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nano-gsa-fp8", "--dry-run"]) == 2
    assert "lean3r distill --recipe nano-gsa-fp8" in capsys.readouterr().err
