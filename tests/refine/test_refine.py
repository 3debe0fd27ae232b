"""Refinement on small photographed scenes: what becomes exact, what stays, and that nothing bad happens."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lean3r.errors import UsageError
from lean3r.eval.pose_errors import relative_pose_errors
from lean3r.geometry.align import align_cameras
from lean3r.originals import Originals
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.refining import Refining, refined
from lean3r.refine import RefineOptions, pairs, refine
from lean3r.types import Reconstruction

sys.path.insert(0, str(Path(__file__).parent))
import scenes

GENEROUS = 300.0  # seconds: the tests share their processor


def refine_files(
    scene: Reconstruction, poses: np.ndarray, folder: Path, change: dict | None = None, **options
) -> Reconstruction:
    """Refine with the photographs as files, of which some are changed by a function."""
    scenes.write(poses, folder)
    for index, edit in (change or {}).items():
        path = folder / f"{index:03d}.png"
        edit(Image.open(path).copy()).save(path)
    return refine(scene, Originals([folder]), RefineOptions(**{"seconds": GENEROUS, **options}))


def worst_deg(scene: Reconstruction, poses: np.ndarray, views: list[int] | None = None) -> float:
    """The largest pose error of any pair of the chosen views."""
    chosen = list(range(len(poses))) if views is None else views
    found, truth = (torch.from_numpy(np.asarray(p)[chosen]) for p in (scene.cam_from_world, poses))
    return float(relative_pose_errors(found, truth).pose_deg.max())


def unchanged(scene: Reconstruction, before: Reconstruction) -> bool:
    """Whether the network's result stayed, and the reason is told."""
    told = scene.info["refinement"]
    same = all(np.array_equal(getattr(scene, k), getattr(before, k)) for k in ("cam_from_world", "depth", "intrinsics"))
    return same and told["status"] == "kept" and bool(told["reason"]) and scene.sparse is None


def test_rough_cameras_become_exact_and_the_frame_and_scale_stay(tmp_path: Path) -> None:
    poses = scenes.arc(4)
    before = scenes.scene(poses)
    world = scaled(before.cam_from_world, 3.0)
    before = replace(before, depth=before.depth * 3, cam_from_world=world @ np.linalg.inv(world[0]))
    after = refine_files(before, poses, tmp_path)
    told = after.info["refinement"]
    assert (told["status"], told["registered"]) == ("refined", 4) and after.registration == ("refined",) * 4
    assert worst_deg(before, poses) > 3 and worst_deg(after, poses) < 1.5
    assert told["error_px"]["after"] < 0.2 < told["error_px"]["before"]
    assert told["inliers"]["after"] > told["inliers"]["before"]
    assert np.array_equal(after.cam_from_world[0], np.eye(4)), "the first camera is the world, as it was"
    _, fit = align_cameras(torch.from_numpy(after.cam_from_world), torch.from_numpy(poses))
    assert abs(float(fit.scale) * 3 - 1) < 0.15, "the unit is the network's"
    assert after.lenses[0].model == "SIMPLE_RADIAL" and abs(after.lenses[0].params[0] / scenes.FOCAL - 1) < 0.03
    assert np.allclose(after.original_intrinsics[0, :2, :2], np.eye(2) * after.lenses[0].params[0])
    assert after.sparse is not None and len(after.sparse.xyz) > 100 and len(after.points.xyz) > 1000


def test_points_project_to_where_they_were_measured(tmp_path: Path) -> None:
    poses = scenes.arc(3)
    found = refine_files(scenes.scene(poses), poses, tmp_path, intrinsics=np.stack([scenes.INTRINSICS] * 3))
    sparse = found.sparse
    assert sparse is not None and found.lenses[0].params == (290.0, 290.0, 160.0, 120.0), "known intrinsics stay"
    cam = np.einsum("oij,oj->oi", found.cam_from_world[sparse.view, :3, :3], sparse.xyz[sparse.point])
    cam += found.cam_from_world[sparse.view, :3, 3]
    xy = cam[:, :2] / cam[:, 2:] * scenes.FOCAL + [160, 120]
    error = np.linalg.norm(xy - sparse.xy, axis=1)
    assert np.median(error) < 0.3 and error.max() < 5
    mean = np.bincount(sparse.point, error) / np.bincount(sparse.point)
    assert np.allclose(mean, sparse.error_px, atol=0.05)
    assert worst_deg(found, poses) < 0.6


def test_a_useless_start_falls_back_to_the_matches_alone(tmp_path: Path) -> None:
    poses = scenes.arc(5)
    before = scenes.scene(poses, off_deg=60, off=3)
    after = refine_files(before, poses, tmp_path)
    assert after.info["refinement"]["status"] == "fallback" and set(after.registration) == {"fallback"}
    assert worst_deg(after, poses) < 1.5


def test_known_poses_set_the_world(tmp_path: Path) -> None:
    poses = scenes.arc(4)
    known = scaled(poses, 10.0) @ scenes.look((40, 10, 0), (5, 6, 7))
    known[3] = np.nan
    found = refine_files(scenes.scene(poses), poses, tmp_path, cam_from_world=known)
    assert found.info["refinement"]["status"] == "refined"
    assert np.abs(found.cam_from_world[:3] - known[:3]).max() < 0.6
    assert worst_deg(found, poses) < 1.5


def test_chosen_pairs_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poses = scenes.arc(4)
    before = scenes.scene(poses)
    monkeypatch.setattr(pairs, "ALL_PAIRS", 2)
    listed = pairs.likely_pairs(before)
    assert listed is not None and {(0, 1), (1, 2), (2, 3)} <= set(map(tuple, listed.tolist()))
    assert worst_deg(refine_files(before, poses, tmp_path), poses) < 1.5


def test_what_the_network_saw_serves_where_there_are_no_files() -> None:
    poses = scenes.arc(4)
    before = scenes.scene(poses)
    after = refine(before, None, RefineOptions(seconds=GENEROUS, lens="simple-pinhole", share_lens="always"))
    assert after.info["refinement"]["status"] == "refined" and after.lenses[0].model == "SIMPLE_PINHOLE"
    assert worst_deg(after, poses) < 1.5


def test_foreign_photo_keeps_its_predicted_pose(tmp_path: Path) -> None:
    poses = scenes.arc(5)
    foreign = Image.fromarray(scenes.photograph(scenes.look((0, 0, 0), (0, 0, 0)), seed=7)[0])
    after = refine_files(scenes.scene(poses), poses, tmp_path, {2: lambda _: foreign})
    assert after.registration == ("refined", "refined", "predicted", "refined", "refined")
    assert worst_deg(after, poses, [0, 1, 3, 4]) < 1.5 and np.isfinite(after.cam_from_world).all()


def test_one_camera_upside_down(tmp_path: Path) -> None:
    poses = scenes.arc(5)
    before = scenes.scene(poses)
    turned = poses.copy()
    turned[1] = np.diag([-1.0, -1, 1, 1]) @ poses[1]
    after = refine_files(before, poses, tmp_path, {1: lambda image: image.rotate(180)})
    assert after.info["refinement"]["status"] != "kept"
    assert worst_deg(after, poses, [0, 2, 3, 4]) < 1.5
    if after.registration[1] != "predicted":
        assert worst_deg(after, turned) < 1.5


def test_two_views(tmp_path: Path) -> None:
    poses = scenes.arc(2, 0.8)
    before = scenes.scene(poses)
    after = refine_files(before, poses, tmp_path, intrinsics=np.stack([scenes.INTRINSICS] * 2))
    assert after.registration == ("refined", "refined") and worst_deg(after, poses) < 1.5


def test_duplicated_photos(tmp_path: Path) -> None:
    poses = scenes.arc(3, 0.7)[[0, 0, 1, 1, 2, 2]]
    before = scenes.scene(poses)
    after = refine_files(before, poses, tmp_path)
    assert after.info["refinement"]["status"] != "kept"
    assert worst_deg(after, poses, [0, 2, 4]) < 1.5
    same = relative_pose_errors(*(torch.from_numpy(p[:2]) for p in (after.cam_from_world, poses))).rotation_deg
    assert same.max() < 0.2


@pytest.mark.parametrize("photos", ["no texture", "pure rotation", "all the same"])
def test_what_cannot_be_refined_stays(photos: str, tmp_path: Path) -> None:
    poses = scenes.arc(3)
    if photos == "pure rotation":
        poses = np.stack([scenes.look((turn, 0, 0), (0, 0, 0)) for turn in (-6, 0, 6)])
    if photos == "all the same":
        poses = poses[[1, 1, 1]]
    blank = Image.new("L", (scenes.WIDTH, scenes.HEIGHT), 120)
    change = dict.fromkeys(range(3), lambda _: blank) if photos == "no texture" else None
    before = scenes.scene(poses)
    assert unchanged(refine_files(before, poses, tmp_path, change), before)


def test_wrong_known_intrinsics_make_nothing_worse(tmp_path: Path) -> None:
    poses = scenes.arc(4)
    before = scenes.scene(poses)
    wrong = np.diag([1.7, 1.7, 1]) @ scenes.INTRINSICS
    wrong[:2, 2] = 160, 120
    after = refine_files(before, poses, tmp_path, intrinsics=np.stack([wrong] * 4))
    assert unchanged(after, before) or worst_deg(after, poses) <= worst_deg(before, poses)
    assert after.info["refinement"]["status"] == "kept" or after.info["refinement"]["notes"]


def test_one_view_stays() -> None:
    before = scenes.scene(scenes.arc(1))
    assert unchanged(refine(before), before)


def test_time_is_bounded(tmp_path: Path) -> None:
    poses = scenes.arc(3)
    before = scenes.scene(poses)
    after = refine_files(before, poses, tmp_path, seconds=0.05)
    assert unchanged(after, before) and "--refine-seconds" in after.info["refinement"]["reason"]


def test_ctrl_c_keeps_the_networks_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    poses = scenes.arc(3)
    scenes.write(poses, tmp_path)
    before = scenes.scene(poses)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
    try:
        timer.start()
        start = time.perf_counter()
        after = refined(before, Originals([tmp_path]), Refining(seconds=GENEROUS), None, None, Observer())
        timer.join()
        assert time.perf_counter() - start < GENEROUS / 4
    finally:
        signal.signal(signal.SIGINT, handler)
    assert unchanged(after, before) and "interrupted" in caplog.text


def test_a_process_that_cannot_start_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    before = scenes.scene(scenes.arc(2))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert unchanged(refined(before, None, Refining("on"), None, None, Observer()), before)
    assert "not refined" in caplog.text


@pytest.mark.parametrize("choice", [{"seconds": 0}, {"lens": "fisheye"}, {"share_lens": "yes"}, {"when": "maybe"}])
def test_bad_choices_are_refused(choice: dict) -> None:
    with pytest.raises(UsageError, match="expected"):
        Refining(**choice)


def scaled(poses: np.ndarray, scale: float) -> np.ndarray:
    """Cameras of a world in which all lengths are `scale` times as long."""
    result = poses.copy()
    result[:, :3, 3] *= scale
    return result
