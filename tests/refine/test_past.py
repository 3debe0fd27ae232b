"""A window of a video that goes on from what was found of the frames before it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from lean3r.geometry.align import umeyama
from lean3r.inputs.past import Past
from lean3r.inputs.pictures import Pictures
from lean3r.refine import KnownCameras, RefineOptions, prepare, refine
from lean3r.refine.job import Job
from lean3r.types import Reconstruction

sys.path.insert(0, str(Path(__file__).parent))
import scenes

POSES = scenes.arc(14, 0.22)
BEFORE, SHARED = 8, 3  # frames of the past; frames of the window that the one before has too
FOCALS = KnownCameras(intrinsics=np.tile(scenes.INTRINSICS, (len(POSES) - BEFORE, 1, 1)))
OPTIONS = RefineOptions(features=300)


def moved(poses: np.ndarray, scale: float = 3.0) -> np.ndarray:
    """The same cameras in a larger world."""
    poses = poses.copy()
    poses[:, :3, 3] *= scale
    return poses


def window(folder: Path, past: np.ndarray, ends: bool = False) -> tuple[Reconstruction, Pictures]:
    """The network's result for the last frames, and their pictures, after frames with these poses."""
    for name in ("before", "files"):
        (folder / name).mkdir(parents=True)
    scenes.write(POSES[:BEFORE], folder / "before")
    scenes.write(POSES[BEFORE:], folder / "files")
    scene = scenes.scene(POSES[BEFORE:])
    sources = [replace(source, timestamp_s=(BEFORE + i) / 10) for i, source in enumerate(scene.sources)]
    pictures = Pictures(folder / "files")
    shown = [np.asarray(Image.open(path).convert("L")) for path in sorted((folder / "before").iterdir())]
    known = {source.name: pose for source, pose in zip(sources[:SHARED], moved(POSES)[BEFORE:], strict=False)}
    pictures.past = Past(tuple(i / 10 for i in range(BEFORE)), tuple(shown), past, known, ends)
    return replace(scene, sources=tuple(sources)), pictures


def off(poses: np.ndarray, goal: np.ndarray) -> float:
    """The largest distance of cameras [S, 4, 4] from where they should be, after one similarity."""
    centres, truth = (torch.from_numpy(np.linalg.inv(each)[:, :3, 3]) for each in (poses, goal))
    return float((umeyama(centres, truth).apply(centres) - truth).norm(dim=-1).max())


def error_m(report: Mapping[str, Any]) -> float:
    """Of all cameras that a report has, together."""
    return off(np.array(report["past"]["past"] + report["past"]["views"]), POSES)


def test_a_window_and_its_past_are_one_model(tmp_path: Path) -> None:
    scene, pictures = window(tmp_path, moved(POSES[:BEFORE]))
    found = refine(scene, pictures, OPTIONS, known=FOCALS)
    report = found.info["refinement"]
    assert report["status"] == "refined" and report["trusted"] == len(POSES) - BEFORE == len(report["views"])
    assert error_m(report) < 0.01  # of a way of three metres
    assert off(np.array(report["past"]["views"]), found.cam_from_world) < 1e-6, "what the result has, in another world"


def test_a_past_that_the_matches_contradict_is_found_again_from_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wrong = moved(POSES[:BEFORE])
    wrong[:, :3, 3] = rng.normal(size=(BEFORE, 3))
    scene, pictures = window(tmp_path, wrong)
    report = refine(scene, pictures, OPTIONS, known=FOCALS).info["refinement"]
    assert report["status"] != "kept" and error_m(report) < 0.01


def test_frames_that_nothing_joins_to_the_past_one_by_one_are_found_with_it_from_all_matches(tmp_path: Path) -> None:
    wrong = moved(POSES[:BEFORE])
    wrong[:, :3, :3] = Rotation.random(BEFORE, random_state=0).as_matrix()
    for ends in (False, True):  # only where nothing knows them better later
        scene, pictures = window(tmp_path / str(ends), wrong, ends)
        report = refine(scene, pictures, OPTIONS, known=FOCALS).info["refinement"]
        assert (report["status"] != "kept") == ends
    assert error_m(report) < 0.01


def test_a_job_with_a_past_is_read_as_written_and_cut(tmp_path: Path) -> None:
    scene, pictures = window(tmp_path, moved(POSES[:BEFORE]))
    job = prepare.prepare(scene, pictures, OPTIONS, FOCALS, None, tmp_path)
    count = len(POSES)
    read = Job.read(tmp_path)
    assert read.past == BEFORE and read.sequences == (tuple(range(count)),) and len(read.views) == count
    assert np.isnan(read.start[BEFORE + SHARED :]).all() and np.isfinite(read.start[: BEFORE + SHARED]).all()
    cut = job.behind_past()
    assert cut.past == 0 and cut.views == job.views[BEFORE:] and cut.sequences == (tuple(range(count - BEFORE)),)


def test_the_past_has_its_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(importlib.import_module("lean3r.refine.run"), "work", lambda *of: limits.append(of[2]))
    scene, pictures = window(tmp_path, moved(POSES[:BEFORE]))
    report = refine(scene, pictures, OPTIONS, known=FOCALS).info["refinement"]
    assert limits == [report["limit_s"]] == [OPTIONS.limit(len(POSES))]
