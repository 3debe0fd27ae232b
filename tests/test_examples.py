"""The examples are a course that works: each runs as a user would run it, a process of its own, and leaves results.

The processes are copies of one that has imported torch (docs/run_page.py).
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from docs.run_page import TORCH, Job, ask, start, surroundings

from lean3r.models.checkpoint import read_tensors, save_weights
from lean3r.models.nano import Nano
from lean3r.pipeline.load import EMBEDDED

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
LONGEST = 120


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments: none where the package has its weights, else a file of random ones."""
    if (EMBEDDED / "nano.safetensors").is_file():
        return []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Nano()
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_weights(model.state_dict(), path, {"model": "nano"})
    return ["--weights", str(path)]


@pytest.fixture(scope="module")
def process() -> Iterator[str]:
    """The socket of the process that is copied; nothing of lean3r, so that examples import what they use of it."""
    with TemporaryDirectory() as folder:  # not pytest's, whose name may be too long for a socket
        address = Path(folder) / "examples"
        with start(address, [*TORCH, "av", "pycolmap", "torch._dynamo"], surroundings()):
            yield str(address)


def folder(out: Path, said: str) -> None:
    assert len(list((out / "photos").glob("*.jpg"))) == 8
    manifest = json.loads((out / "room" / "manifest.json").read_text())
    assert manifest["points"] > 0 and len(manifest["views"]) == 8 and not manifest["skipped"]
    assert {"scene.glb", "points.ply", "preview.jpg", "cameras.json"} <= set(manifest["files"])
    assert said.count("against the truth") == 5 and "8 views" in said


def inside(out: Path, said: str) -> None:
    with np.load(out / "room" / "predictions.npz") as arrays:
        assert arrays["depth"].shape[0] == 4 and f"(4, {arrays['depth'].shape[1]}" in said
    off = next(line for line in said.splitlines() if line.startswith("projection"))
    assert float(off.split()[1]) < 0.05


def colmap(out: Path, said: str) -> None:
    assert (out / "room" / "sparse" / "0" / "points3D.bin").is_file()
    assert said.startswith("5 images") and len(re.findall(r"144 x 192 (SIMPLE_)?(PINHOLE|RADIAL)", said)) == 5


def video(out: Path, said: str) -> None:
    cameras = json.loads((out / "room" / "cameras.json").read_text())["views"]
    assert len(cameras) == 6 and cameras[0]["name"] == "clip_000000.png" and (out / "clip.mp4").stat().st_size > 5000
    assert (cameras[0]["width"], cameras[0]["height"]) == (192, 144) and "clip_000000.png" in said


def scores(out: Path, said: str) -> None:
    figures = json.loads((out / "figures.json").read_text())
    assert figures["truth"]["auc30"] > 99 and figures["truth"]["abs_rel"] < 1e-3 and figures["truth"]["focal"] < 1e-3
    for name in ("constant", "nano"):
        assert figures[name]["auc30"] < 99 and 1 < figures[name]["abs_rel"] < 200
    assert len(said.splitlines()) == 3


def toy(out: Path, said: str) -> None:
    tensors, metadata = read_tensors(out / "weights.safetensors")
    assert metadata["step"] == "30" and all(bool(value.isfinite().all()) for value in tensors.values())
    with open(out / "log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 3 and losses[-1] < losses[0] and math.isfinite(losses[-1])
    assert (out / "validation.csv").is_file() and said.startswith("30 steps, 0 skipped")


def foreign(out: Path, said: str) -> None:
    for line in said.splitlines():
        words = line.split()
        assert float(words[2]) < 1e-5 < float(words[5]) and 0 < int(words[8]) < 60
        assert (out / f"{words[0]}.pt").is_file()
    assert len(said.splitlines()) == 2


def compressed(out: Path, said: str) -> None:
    _, metadata = read_tensors(out / "nano-merged.safetensors")
    assert json.loads(metadata["plan"])["name"] == "last two"
    assert "dense    plan None, pairs attended to: all" in said and "merged   plan last two" in said
    assert said.count(" %") == 2


def distilled(out: Path, said: str) -> None:
    _, metadata = read_tensors(out / "student.safetensors")
    assert json.loads(metadata["plan"])["name"] == "gsa-fp8" and said.startswith("3 steps; ")
    assert int(said.split("looks at ")[1].split("%")[0]) < 12 and (out / "student.safetensors").stat().st_size < 3e6


def third_party(out: Path, said: str) -> None:
    off = {words[0]: float(words[1]) for words in (line.split() for line in said.splitlines()) if words[-1] == "off"}
    assert off["trained"] < off["before"] and off["loaded"] == off["trained"]
    _, metadata = read_tensors(out / "student.safetensors")
    assert json.loads(metadata["plan"])["name"] == "few windows, fp8" and (out / "run" / "log.csv").is_file()


CHECKS: dict[str, Callable[[Path, str], None]] = {
    "01": folder,
    "02": inside,
    "03": colmap,
    "04": video,
    "05": scores,
    "06": toy,
    "07": foreign,
    "08": compressed,
    "09": distilled,
    "10": third_party,
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(
    path: Path, weights: list[str], process: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    number = path.name[:2]
    arguments = weights if number != "06" else []  # 06 starts from nothing
    words = ["python", str(path), "--out", "out", *arguments]
    environment = surroundings() | {"PYTHONPATH": os.pathsep.join(map(str, [path.parent, ROOT]))}
    printed = tmp_path_factory.mktemp("printed")
    log, errors = printed / "log.txt", printed / "errors.txt"
    job = Job(str(tmp_path), environment, str(log), None, False, steps=[], words=words, errors=str(errors))
    assert ask(process, job).code == 0, errors.read_text()[-3000:]
    CHECKS[number](tmp_path / "out", log.read_text())
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"], "an example writes into --out only"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST and text.startswith('"""')


def test_the_course_is_complete() -> None:
    assert [path.name[:2] for path in EXAMPLES] == sorted(CHECKS)
