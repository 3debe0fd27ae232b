"""`lean3r distill` with Speed3R's recipe on small models: sets with and without depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data import tiny as tiny_copies
from safetensors.torch import load_file

import lean3r
from lean3r.cli.main import main
from lean3r.compress.sparsify import stored_plan
from lean3r.data.base import SceneBatch
from lean3r.models.checkpoint import save_model
from lean3r.models.pi3 import Pi3
from lean3r.models.speed3r import Speed3rConfig, Speed3rPi3
from lean3r.models.vggt import Vggt
from lean3r.models.weight_files import open_weights
from lean3r.train.logs.log import read_csv
from lean3r.train.recipes import speed3r
from lean3r.train.recipes.sources import Data
from lean3r.types import Views

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
    small = replace(Pi3.SMALLEST, grid=37)
    monkeypatch.setitem(Pi3.SIZES, "pi3", small)
    monkeypatch.setitem(Speed3rPi3.SIZES, "speed3r-pi3", Speed3rConfig(**{**vars(small), "registers": 0}))
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


@pytest.fixture
def vggt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The weights of a small VGGT, which stands for the large one."""
    monkeypatch.setitem(Vggt.SIZES, "vggt", Vggt.SMALLEST)
    torch.manual_seed(0)
    save_model(Vggt(), path := tmp_path / "vggt.safetensors")
    return path


def distil(out: Path, weights: Path, data: dict[str, Path], *more: str, recipe: str = "speed3r-pi3") -> int:
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
    return main(["distill", "--recipe", recipe, "--weights", str(weights), *fast, *chosen, "-o", str(out), *more])


@pytest.mark.parametrize(
    ("teacher", "chosen"),
    [("pi3", ("dl3dv",)), ("pi3", ("realestate10k",)), ("pi3", SETS), ("vggt", ("dl3dv", "hypersim"))],
)
def test_sets_without_depth_train_on_the_labels_of_the_teacher(
    teacher: str, chosen: tuple[str, ...], sets: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    weights, recipe = request.getfixturevalue(teacher), f"speed3r-{teacher}"
    assert distil(tmp_path / "run", weights, {name: sets[name] for name in chosen}, recipe=recipe) == 0
    rows = read_csv(tmp_path / "run" / recipe / "log.csv")
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


def test_the_student_has_the_form_of_the_release(
    pi3: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No registers, official names; it continues from its own file, and becomes the teacher of an FP8 student."""
    data = {"dl3dv": sets["dl3dv"]}
    assert distil(tmp_path / "first", pi3, data) == 0
    path = tmp_path / "first" / "speed3r-pi3.safetensors"
    student = load_file(path)
    dense = load_file(pi3)
    assert "register_token" in dense and "register_token" not in student
    assert all(name.startswith(("local_decoder", "global_decoder")) for name in student.keys() - dense.keys())
    model = lean3r.load("speed3r-pi3", path, device="cpu")
    assert model.origin.weights == path.name and stored_plan(open_weights(path).metadata) is None

    assert distil(tmp_path / "second", pi3, data, "--student", str(path), "--lr", "1e-12") == 0
    again = load_file(tmp_path / "second" / "speed3r-pi3.safetensors")
    assert max(float((again[name] - student[name]).abs().max()) for name in student) < 1e-6

    frozen = ("--teacher", "speed3r-pi3", "--student-plan", "fp8", "--lr", "1e-12")
    assert distil(tmp_path / "third", path, data, *frozen) == 0
    coded = tmp_path / "third" / "speed3r-pi3-fp8.safetensors"
    views = Views(torch.rand(1, 2, 3, 56, 56))
    with torch.no_grad():
        depths = [lean3r.load("speed3r-pi3", file, device="cpu")(views).depth for file in (path, coded)]
    assert distil(tmp_path / "fourth", path, data, "--teacher", "speed3r-pi3", "--student", str(pi3)) == 0
    assert distil(tmp_path / "fifth", pi3, data, "--student", str(coded)) == 2
    assert "speed3r-pi3-fp8.safetensors, which is compressed by the plan 'fp8'" in capsys.readouterr().err
    assert torch.allclose(*depths, rtol=0.2) and not torch.equal(*depths)  # type: ignore[arg-type]


def test_a_sparse_vggt_continues_from_its_own_file(vggt: Path, sets: dict[str, Path], tmp_path: Path) -> None:
    """The plan is in the file already; the first view stays the reference."""
    data = {"dl3dv": sets["dl3dv"]}
    assert distil(tmp_path / "first", vggt, data, recipe="speed3r-vggt") == 0
    path = tmp_path / "first" / "speed3r-vggt.safetensors"
    plan = stored_plan(open_weights(path).metadata)
    assert plan is not None and plan.exchanges[0].settings.items() >= {"reference": True, "every": 100}.items()
    more = ("--student", str(path), "--lr", "1e-12")
    assert distil(tmp_path / "second", vggt, data, *more, recipe="speed3r-vggt") == 0
    student, again = load_file(path), load_file(tmp_path / "second" / "speed3r-vggt.safetensors")
    assert max(float((again[name] - student[name]).abs().max()) for name in student) < 1e-6


def test_weights_of_another_model_are_no_student(
    vggt: Path, pi3: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(tmp_path / "run", pi3, {"dl3dv": sets["dl3dv"]}, "--student", str(vggt)) == 6
    said = capsys.readouterr().err
    assert "weights of 'vggt', expected pi3" in said
    assert main(["distill", "--recipe", "speed3r-pi3", "--teacher", "pi3x", "--dry-run"]) == 2
    assert "Use the recipe speed3r-pi3x" in capsys.readouterr().err
    assert main(["distill", "--teacher", "speed3r-pi3", "--dry-run"]) == 0
    assert "copy of its teacher" in capsys.readouterr().err


def test_a_cached_teacher_gives_the_same_bits(
    pi3: Path, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of two steps: only the first asks the teacher; killed and resumed, with and without the cache."""
    cache = ("--teacher-cache", str(tmp_path / "cache"))
    more = ("--steps", "6", "--repeat", "2", "--checkpoint-every", "1")

    def share(name: str) -> float:
        return float(read_csv(tmp_path / name / "speed3r-pi3" / "log.csv")[-1]["cached"])

    assert distil(tmp_path / "without", pi3, sets, *more) == 0
    assert distil(tmp_path / "with", pi3, sets, *more, *cache) == 0
    assert distil(tmp_path / "again", pi3, sets, *more, *cache) == 0
    assert share("with") == pytest.approx(4 / 6, abs=1e-3) and share("again") == 1
    batch = Data.batch

    def killed(self: Data, seed: int, step: int, *rest: Any) -> SceneBatch:
        if step == 3:
            raise InterruptedError
        return batch(self, seed, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Data, "batch", killed)
        assert distil(tmp_path / "killed", pi3, sets, *more, *cache) == 1
    assert distil(tmp_path / "killed", pi3, sets, *more, "--resume") == 0
    whole, *others = (
        load_file(tmp_path / n / "speed3r-pi3.safetensors") for n in ("without", "with", "again", "killed")
    )
    for other in others:
        assert all(torch.equal(other[name], value) for name, value in whole.items())
    assert distil(tmp_path / "killed", pi3, sets, *more[:2], "--resume") == 2, "without --repeat it is another run"


def test_a_cache_that_cannot_serve_is_refused_or_says_so(
    pi3: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ("--teacher-cache", str(tmp_path / "cache"))
    assert main(["distill", "--recipe", "nano-gsa-fp8", *cache, "--dry-run"]) == 2
    assert "It is for speed3r- recipes" in capsys.readouterr().err
    assert distil(tmp_path / "run", pi3, sets, *cache, "--teacher-cache-gb", "0") == 2
    assert "--teacher-cache-gb is 0" in capsys.readouterr().err
    assert distil(tmp_path / "run", pi3, sets, "--repeat", "-1") == 2
    assert "repeat after -1 steps" in capsys.readouterr().err
    assert distil(tmp_path / "run", pi3, sets, *cache, "--teacher-cache-gb", "1e-9") == 0
    said = capsys.readouterr().err
    assert "without --repeat" in said and "it has its 1e-09 GB" in said
