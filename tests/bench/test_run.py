"""Whole benchmarks of nano at 64 pixels: rows, verification, resuming, and files that cannot be."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from lean3r.bench import run, verify
from lean3r.bench.run import bench, without_effect
from lean3r.bench.settings import DENSE, Cell, Program, Settings
from lean3r.cli.main import main
from lean3r.errors import LeanError, UsageError

SMALL = Settings(sizes=(64,), views=(2, 4), repeats=2, threads=1)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A run of dense nano, two plans and torch's attention, as its file has it."""
    out = tmp_path_factory.mktemp("bench") / "new" / "bench.json"
    settings = replace(SMALL, plans=("dense", "gsa:dense_below=0", "fp8"), against=("sdpa", "official"))
    bench(settings, out)
    return json.loads(out.read_text())


def test_rows_have_figures_that_fit_together(result: dict) -> None:
    rows = [row for row in result["rows"] if row["program"] != "official"]
    assert [row["error"] for row in rows] == [None] * 8
    for row in rows:
        seconds = row["seconds"]
        assert len(seconds["runs"]) == 2 and seconds["min"] <= seconds["median"] <= seconds["max"]
        assert row["views_per_s"] == pytest.approx(row["views"] / seconds["median"], rel=1e-3)
        assert set(row["parts"]) == {"encoder", "frame", "global", "heads"}
        assert 0.5 * seconds["min"] < sum(row["parts"].values()) <= 1.01 * seconds["max"]
        assert row["peak_mb"] > 100 and row["flops"] > 1e7 and row["roofline_share"] > 0
        assert (row["height"], row["width"], row["device"], row["dtype"]) == (64, 64, "cpu", "float32")
        assert row["weights"] == "nano.safetensors" and row["start_seconds"] > 0
    assert result["format"] == 1 and result["hardware"]["cores"] >= 1 and result["load"]["average_after"]


def test_outputs_are_compared_with_the_dense_model(result: dict) -> None:
    found = {(row["plan"], row["program"], row["views"]): row["decibels"] for row in result["rows"]}
    for views in (2, 4):
        assert found["dense", "lean3r", views] is None
        assert found["dense", "sdpa", views] > 94  # 2e-5
        assert 0 < found["gsa:dense_below=0", "lean3r", views] < 90
        assert 10 < found["fp8", "lean3r", views] < 60


def test_plans_without_effect_are_named(result: dict) -> None:
    """Their times are those of dense attention, which is no speed-up of the plan."""
    assert without_effect(result["rows"]) == []
    rows = [row | {"decibels": verify.EQUAL_DB} for row in result["rows"] if row["plan"] in (DENSE, "fp8")]
    assert without_effect(rows) == ["nano fp8: no effect at 2, 4 views, where it is the dense model"]


def test_a_peer_that_does_not_exist_is_a_row(result: dict) -> None:
    rows = [row for row in result["rows"] if row["program"] == "official"]
    assert len(rows) == 2 and all("no official program of nano" in row["error"] for row in rows)
    assert all(row["seconds"] is None and row["parts"] == {} for row in rows)


def test_growth_is_the_slope_of_the_logarithms(result: dict) -> None:
    name = "nano dense, 64x64, cpu, float32"
    at = {row["views"]: row for row in result["rows"] if row["plan"] == "dense" and row["program"] == "lean3r"}
    found = result["exponents"][name]
    assert found["views"] == [2, 4] and found["plan"] == "dense"
    for key in ("seconds", "cpu_seconds"):
        assert found[key] == pytest.approx(math.log2(at[4][key]["median"] / at[2][key]["median"]), abs=2e-3)


def test_an_interrupted_run_goes_on(result: dict, tmp_path: Path) -> None:
    """Rows of finished cells stay as they are; a cell that lacks a row is measured again, and nothing else."""
    rows = [row for row in result["rows"] if row["program"] == "lean3r" and row["plan"] in ("dense", "fp8")]
    out = tmp_path / "bench.json"
    out.write_text(json.dumps(result | {"rows": rows[:-1]}))
    said: list[dict] = []
    after = bench(replace(SMALL, plans=("dense", "fp8")), out, resume=True, say=said.append)
    assert after["rows"][:2] == rows[:2]
    assert [(row["plan"], row["views"]) for row in said] == [("dense", 4), ("fp8", 4)]
    assert [(row["plan"], row["views"]) for row in after["rows"]] == [(row["plan"], row["views"]) for row in rows]
    with pytest.raises(UsageError, match="was made with repeats 2; this run has 3"):
        bench(replace(SMALL, repeats=3), out, resume=True)
    with pytest.raises(UsageError, match="--resume"):
        bench(SMALL, out)
    (model,) = SMALL.models
    settings = result["settings"] | {"weights": {model: "mine.safetensors", "vggt": "v.pt"}}
    out.write_text(json.dumps(result | {"settings": settings}))
    with pytest.raises(UsageError, match=f"was made with mine.safetensors as weights of {model}; this run"):
        bench(SMALL, out, resume=True)
    out.write_text(json.dumps(result | {"lean3r": "0.0.1"}))
    with pytest.raises(UsageError, match=r"was made with lean3r 0\.0\.1; this run has"):
        bench(SMALL, out, resume=True)
    for text, what in (("{", "cannot be read"), ('{"format": 7}', "format 7"), ('{"format": 1}', "lacks hardware")):
        out.write_text(text)
        with pytest.raises(UsageError, match=what):
            bench(SMALL, out, resume=True)


@pytest.mark.parametrize("refine", ["on", "off"])
def test_whole_reconstructions_are_refined_or_not(tmp_path: Path, refine: Literal["on", "off"]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 48, 64, 3), np.uint8)
    for name, pixels in zip("ab", noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    settings = replace(SMALL, views=(2,), repeats=1, whole=str(tmp_path), refine=refine)
    (row,) = bench(settings, tmp_path / "out" / "bench.json")["rows"]
    assert row["error"] is None and {"decode", "encoder", "export"} <= set(row["parts"])
    assert ("refinement" in row["parts"]) == (refine == "on")


def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """There are enough others, but which are taken is chosen before they are read."""
    for name in "abc":
        Image.new("RGB", (64, 48)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.png").write_bytes(b"not a picture")
    settings = replace(SMALL, views=(2,), repeats=1, whole=str(tmp_path), refine="off")
    with pytest.raises(LeanError, match=r"1 of 2 pictures of .* could be used \(a\.png: "):
        bench(settings, tmp_path / "out" / "bench.json")


@pytest.mark.parametrize("where", ["the file", "a worker"])
def test_a_full_disk_ends_the_run_which_then_goes_on(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full when the second row is written to the file, or when a program keeps its outputs at the second size."""
    out, fine = tmp_path / "bench.json", (Path.write_text, run._Runner._kept)
    written = 0

    def write_text(self: Path, text: str, **options: str) -> int:
        nonlocal written
        written += self.parent == tmp_path
        if self.parent == tmp_path and written == 3:
            fine[0](self, text[: len(text) // 2], **options)
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return fine[0](self, text, **options)

    def kept(self: run._Runner, program: Program, cell: Cell, dtype: str) -> Path:
        return Path("/dev/full") if cell.views == 4 else fine[1](self, program, cell, dtype)

    call = ["bench", "--layer", "2x16", "--views", "2,4", "--resolution", "56", "--repeats", "1", "-q", "-o", str(out)]
    if where == "the file":
        monkeypatch.setattr(Path, "write_text", write_text)
    elif Path("/dev/full").exists():
        monkeypatch.setattr(run._Runner, "_kept", kept)
    else:
        pytest.skip("no /dev/full here")
    assert main(call) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the disk is full at ") and "--resume" in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    (first,) = json.loads(out.read_text())["rows"]
    monkeypatch.undo()
    assert main([*call, "--resume"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[0] == first and [(row["views"], row["error"]) for row in rows] == [(2, None), (4, None)]


def test_a_file_that_cannot_be_written_is_known_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "bench.json", "/proc/bench.json"):
        assert main(["bench", "-q", "-o", str(out)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "bug" not in err


def test_a_layer_alone(tmp_path: Path) -> None:
    settings = Settings(
        models=("layer-2x16",), plans=("dense", "gsa:dense_below=0"), sizes=(56,), views=(2,), repeats=1
    )
    dense, gsa = bench(settings, tmp_path / "layer.json")["rows"]
    assert dense["error"] is None and gsa["error"] is None
    assert set(dense["parts"]) == {"embedding", "attention", "linear"} == set(gsa["parts"])
    assert dense["weights"] == "random" and 0 < gsa["decibels"] < 100
    tokens, dim = 2 * (16 + 5), 32
    assert dense["flops"] == 2 * tokens * 12 * dim**2 + 4 * tokens**2 * dim + 2 * 2 * 16 * 3 * 14**2 * dim
