"""`lean3r distill` with Speed3R's recipe on small models: sets with and without depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data import tiny as tiny_copies

from lean3r.cli.main import main
from lean3r.models.checkpoint import save_model
from lean3r.models.pi3 import Pi3
from lean3r.train.logs.log import read_csv
from lean3r.train.recipes import speed3r

SETS = ("dl3dv", "realestate10k", "hypersim")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures; no validation and no curves, which take longer than the runs."""
    monkeypatch.setattr("lean3r.train.logs.watch.draw_curves", lambda *_: None)
    monkeypatch.setattr("lean3r.eval.synthetic.validate", lambda *_: {"auc30": 1.0})
    stage = speed3r.Stage
    small = {"height": 56, "width": 56, "pixels": (56 * 56, 56 * 112), "checkpointing": False}
    monkeypatch.setattr(speed3r, "Stage", lambda **values: stage(**values | small))


@pytest.fixture
def pi3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The weights of a small Pi3, which stands for the large one."""
    monkeypatch.setitem(Pi3.SIZES, "pi3", replace(Pi3.SMALLEST, grid=37))
    torch.manual_seed(0)
    save_model(Pi3(), path := tmp_path / "pi3.safetensors")
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny copies of SETS; the first two have no depth."""
    root = tmp_path_factory.mktemp("sets")
    for name in SETS:
        tiny_copies.write(name, root / name)
    return {name: root / name for name in SETS}


def distil(out: Path, weights: Path, data: dict[str, Path], *more: str) -> int:
    """Three steps of two scenes of two views."""
    fast = (
        "--steps",
        "3",
        "--views",
        "2",
        "--batch",
        "4",
        "--accumulate",
        "1",
        "--precision",
        "fp32",
        "--workers",
        "0",
    )
    chosen = [word for name, root in data.items() for word in ("--data", f"{name}={root}")]
    return main(
        ["distill", "--recipe", "speed3r-pi3", "--weights", str(weights), *fast, *chosen, "-o", str(out), *more]
    )


@pytest.mark.parametrize("chosen", [("dl3dv",), ("realestate10k",), SETS])
def test_sets_without_depth_train_on_the_labels_of_the_teacher(
    chosen: tuple[str, ...], sets: dict[str, Path], pi3: Path, tmp_path: Path
) -> None:
    assert distil(tmp_path / "run", pi3, {name: sets[name] for name in chosen}) == 0
    rows = read_csv(tmp_path / "run" / "speed3r-pi3" / "log.csv")
    assert float(rows[-1]["points"]) > 1e-3 and float(rows[-1]["labelled"]) > 0.3


def test_a_teacher_that_is_sure_of_nothing_is_an_error(
    sets: dict[str, Path], pi3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubtful = Pi3()
    torch.nn.init.zeros_(doubtful.conf_head.proj.weight)  # type: ignore[union-attr]
    torch.nn.init.constant_(doubtful.conf_head.proj.bias, -10.0)  # type: ignore[union-attr]
    save_model(doubtful, tmp_path / "doubtful.safetensors")
    assert distil(tmp_path / "run", tmp_path / "doubtful.safetensors", {"dl3dv": sets["dl3dv"]}) == 3
    said = capsys.readouterr().err
    assert "dl3dv" in said and "no depth" in said and "confiden" in said


@pytest.mark.parametrize("recipe", ["lite3r-vggt", "nano-gsa-fp8"])
def test_a_loss_that_needs_depth_refuses_sets_without_it(
    recipe: str, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [word for name in SETS for word in ("--data", f"{name}={sets[name]}")]
    assert main(["distill", "--recipe", recipe, *data, "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "dl3dv and realestate10k have no depth" in said and recipe in said and "hypersim" not in said
    assert not (tmp_path / "run").exists()
