"""Refinement on small photographed scenes: what becomes exact, what stays, and that nothing bad happens."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lean3r.errors import UsageError
from lean3r.eval.pose_errors import relative_pose_errors
from lean3r.geometry.align import align_cameras
from lean3r.geometry.lens import colmap_camera
from lean3r.inputs.pictures import Pictures
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.refining import refine_scene
from lean3r.refine import KnownCameras, RefineOptions, pairs, refine, settle
from lean3r.refine.built import Built
from lean3r.refine.job import Answer
from lean3r.types import Lens, Reconstruction

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
    known = KnownCameras(**{f.name: options.pop(f.name) for f in fields(KnownCameras) if f.name in options})
    return refine(scene, Pictures(folder), RefineOptions(**{"seconds": GENEROUS, **options}), known=known)


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
    assert after.lenses[0].model == "SIMPLE_PINHOLE" and abs(after.lenses[0].params[0] / scenes.FOCAL - 1) < 0.03
    assert np.allclose(after.original_intrinsics[0, :2, :2], np.eye(2) * after.lenses[0].params[0])
    assert after.sparse is not None and len(after.sparse.xyz) > 100


def test_points_project_to_where_they_were_measured(tmp_path: Path) -> None:
    poses = scenes.arc(3)
    found = refine_files(
        scenes.scene(poses), poses, tmp_path, intrinsics=np.stack([scenes.INTRINSICS] * 3), lens="pinhole"
    )
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


def test_pictures_that_were_zoomed_or_cropped_get_a_camera_each(tmp_path: Path) -> None:
    """One camera for all of them explains nearly all matches too, with a made-up focal length and wrong poses."""
    zooms = (1.0, 1.1, 1.0, 1.2, 1.0, 1.1)
    poses = scenes.arc(len(zooms), step=0.5)

    def zoomed(image: Image.Image, zoom: float) -> Image.Image:
        left, top = (side / 2 * (1 - 1 / zoom) for side in image.size)
        box = (left, top, image.width - left, image.height - top)
        return image.resize(image.size, Image.Resampling.BICUBIC, box)

    edits = {view: partial(zoomed, zoom=zoom) for view, zoom in enumerate(zooms)}
    after = refine_files(scenes.scene(poses, focal=1.2), poses, tmp_path, edits)
    assert after.info["refinement"]["registered"] == len(zooms) and worst_deg(after, poses) < 5
    focals = np.array([lens.params[0] for lens in after.lenses])
    np.testing.assert_allclose(focals, scenes.FOCAL * np.array(zooms), rtol=0.05)


def test_a_useless_start_falls_back_to_the_matches_alone(tmp_path: Path) -> None:
    poses = scenes.arc(5)
    before = scenes.scene(poses, off_deg=60, off=3)
    after = refine_files(before, poses, tmp_path)
    assert after.info["refinement"]["status"] == "fallback" and set(after.registration) == {"fallback"}
    assert worst_deg(after, poses) < 1.5


def model_of(trusted: list[bool], score: float, error_px: float | np.ndarray = 0.2) -> Answer:
    nothing, doubts = np.zeros(0, int), [None if known else "doubted" for known in trusted]
    errors = np.broadcast_to(error_px, len(trusted)).tolist()
    fits = {"view_inliers": [95] * len(trusted), "view_matches": [100] * len(trusted)}
    report = {"doubts": doubts, "after": {"score": score, "view_error_px": errors, **fits}}
    return Answer(nothing, np.ones(len(trusted), bool), (), (), (), *[nothing] * 5, report)


def test_of_two_models_of_a_video_the_better_fit_counts_among_those_with_as_many_views() -> None:
    scores = {46: 44248.0, 48: 45430.0, 25: 60000.0}
    model: Any = None
    slipped, right, short = (
        Built(model_of([i < n for i in range(48)], score), model, np.zeros((48, 48))) for n, score in scores.items()
    )
    assert settle.soundest([slipped, right]) == [right] == settle.soundest([right, slipped])
    assert settle.soundest([right, short]) == [right] and settle.soundest([short]) == [short]
    assert settle.soundest([]) == []


def test_frames_that_fit_badly_or_lie_beyond_doubted_ones_are_located_again_if_they_are_fewer() -> None:
    job: Any = SimpleNamespace(views=[None] * 22, sequences=[list(range(20))])
    sure, error = [True] * 22, np.full(22, 0.2)
    assert list(settle.loose_frames(job, model_of(sure, 1.0, error))) == []
    error[[15, 16, 21]] = 0.5, 0.6, 0.9  # the last is no frame of the video
    assert list(settle.loose_frames(job, model_of(sure, 1.0, error))) == [{15, 16}, {16, 17, 18, 19}]
    doubted = [i not in (4, 5) for i in range(22)]
    assert list(settle.loose_frames(job, model_of(doubted, 1.0))) == [{4, 5}, {0, 1, 2, 3, 4, 5}]
    doubted = [i not in (2, 10, 18) for i in range(22)]
    sides = [{0, 1, 2, 10, 18}, {2, *range(10, 20)}, {2, 10, 18, 19}]
    assert list(settle.loose_frames(job, model_of(doubted, 1.0))) == [{2, 10, 18}, *sides]
    assert list(settle.loose_frames(job, model_of([i < 4 for i in range(22)], 1.0))) == []
    kinked = model_of(sure, 1.0)
    kinked.report["after"]["view_inliers"][8:13] = [88, 85, 83, 86, 88]
    assert list(settle.loose_frames(job, kinked)) == [set(range(11)), set(range(10, 20)), set(range(8, 13))]
    again, before = model_of(sure, 1003.0), model_of(sure, 1000.0)
    assert settle.is_better(again, before) and not settle.is_better(before, again)
    less = model_of(doubted, 1100.0)
    assert settle.is_better(before, less) and not settle.is_better(less, before)
    assert not settle.is_better(before, model_of(doubted, 1200.0)), "too much is lost"


def test_known_poses_set_the_world(tmp_path: Path) -> None:
    poses = scenes.arc(4)
    known = scaled(poses, 10.0) @ scenes.look((40, 10, 0), (5, 6, 7))
    known[3] = np.nan
    found = refine_files(scenes.scene(poses), poses, tmp_path, cam_from_world=known, are_fixed=False)
    assert found.info["refinement"]["status"] == "refined"
    assert np.abs(found.cam_from_world[:3] - known[:3]).max() < 0.6
    assert worst_deg(found, poses) < 1.5


def test_known_poses_are_held_and_the_other_views_join_them(tmp_path: Path) -> None:
    poses = scenes.arc(4)
    known = scaled(poses, 10.0) @ scenes.look((40, 10, 0), (5e4, 6e4, 7e3))
    truth = known.copy()
    known[3] = np.nan
    found = refine_files(scenes.scene(poses), poses, tmp_path, cam_from_world=known)
    assert found.registration == ("given", "given", "given", "refined") and not found.info.get("warnings")
    np.testing.assert_array_equal(found.cam_from_world[:3], known[:3])
    assert worst_deg(found, truth) < 0.5
    assert np.linalg.norm(np.linalg.inv(found.cam_from_world[3])[:3, 3] - np.linalg.inv(truth[3])[:3, 3]) < 0.3
    assert found.sparse is not None and len(found.sparse.xyz) > 50
    depths = (found.sparse.xyz @ truth[0, :3, :3].T + truth[0, :3, 3])[:, 2]
    assert 10 < np.median(depths) < 70, "the points are in the world of the poses"


def test_wrong_fixed_poses_are_reported(tmp_path: Path) -> None:
    poses = scenes.arc(4)
    wrong = np.stack([scenes.look((3.0 * (-1) ** v, 3.0, 0), (0, 0, 0)) @ pose for v, pose in enumerate(poses)])
    exact = replace(scenes.scene(poses), cam_from_world=wrong)
    found = refine_files(exact, poses, tmp_path, cam_from_world=wrong)
    np.testing.assert_array_equal(found.cam_from_world, wrong)
    assert [told["code"] for told in found.info["warnings"]] == ["known-poses"]


def test_a_wrong_one_among_right_fixed_poses_is_named(tmp_path: Path) -> None:
    poses = scenes.arc(5)
    wrong = poses.copy()
    wrong[1] = scenes.look((3.0, 4.0, 0), (0, 0, 0)) @ poses[1]
    for given, named in ((wrong, [["001.png"]]), (poses, [])):
        exact = replace(scenes.scene(poses), cam_from_world=given)
        (tmp_path / str(len(named))).mkdir()
        found = refine_files(exact, poses, tmp_path / str(len(named)), cam_from_world=given)
        assert [told["views"] for told in found.info.get("warnings", [])] == named
        np.testing.assert_array_equal(found.cam_from_world, given)


def test_one_known_pose_sets_the_frame(tmp_path: Path) -> None:
    poses = scenes.arc(4)
    known = np.full((4, 4, 4), np.nan)
    known[2] = scenes.look((40, 10, 0), (5, 6, 7))
    before = scenes.scene(poses)
    placed = replace(before, cam_from_world=before.cam_from_world @ np.linalg.inv(before.cam_from_world[2]) @ known[2])
    matrices = np.stack([scenes.INTRINSICS] * 4)
    found = refine_files(placed, poses, tmp_path, cam_from_world=known, intrinsics=matrices, lens="pinhole")
    np.testing.assert_allclose(found.cam_from_world[2], known[2], atol=1e-12)
    assert worst_deg(found, poses) < 1.5


@pytest.mark.parametrize("are_fixed", [True, False])
def test_true_cameras_give_points_although_nothing_can_improve(tmp_path: Path, are_fixed: bool) -> None:
    poses = scenes.arc(4)
    lens = Lens("PINHOLE", (scenes.FOCAL, scenes.FOCAL, scenes.WIDTH / 2, scenes.HEIGHT / 2))
    exact = replace(scenes.scene(poses), cam_from_world=poses)
    options = {"cam_from_world": poses, "are_fixed": are_fixed, "lenses": (lens,) * 4}
    found = refine_files(exact, poses, tmp_path, **options)
    assert found.info["refinement"]["status"] == "refined" and found.sparse is not None
    assert found.lenses == (lens,) * 4 and worst_deg(found, poses) < 0.3
    assert np.array_equal(found.cam_from_world, poses) == are_fixed


def test_a_known_lens_is_kept_and_unstated_distortion_is_estimated(tmp_path: Path) -> None:
    """Pictures of a lens with distortion: told whole it is exact; of its pinhole alone, the rest is estimated."""
    poses = scenes.arc(5)
    lens = Lens("SIMPLE_RADIAL", (scenes.FOCAL, scenes.WIDTH / 2, scenes.HEIGHT / 2, -0.15))
    bent = {view: lambda picture: bend(picture, lens) for view in range(5)}
    before = scenes.scene(poses)
    matrices = np.stack([scenes.INTRINSICS * [[1], [1.0005], [1]]] * 5)  # one focal length will do, both are kept
    for name in ("told", "half", "flat"):
        (tmp_path / name).mkdir()
    told = refine_files(before, poses, tmp_path / "told", bent, intrinsics=matrices, lenses=(lens,) * 5)
    half = refine_files(before, poses, tmp_path / "half", bent, intrinsics=matrices)
    flat = refine_files(before, poses, tmp_path / "flat", bent, intrinsics=matrices, lens="pinhole")
    assert told.lenses == (lens,) * 5 and worst_deg(told, poses) < 0.5
    assert {found.model for found in half.lenses} == {"OPENCV"}
    assert abs(half.lenses[0].params[4] + 0.15) < 0.05 and not any(half.lenses[0].params[5:])
    np.testing.assert_allclose(half.original_intrinsics, matrices, rtol=1e-9)
    assert max(worst_deg(told, poses), worst_deg(half, poses)) < worst_deg(flat, poses)


def bend(picture: Image.Image, lens: Lens) -> Image.Image:
    """What a lens makes of a pinhole's picture."""
    array = np.asarray(picture, np.float32)
    x, y = np.meshgrid(np.arange(scenes.WIDTH) + 0.5, np.arange(scenes.HEIGHT) + 0.5)
    camera = colmap_camera(lens, scenes.WIDTH, scenes.HEIGHT)
    rays = np.asarray(camera.cam_from_img(np.stack([x.ravel(), y.ravel()], 1)))
    at = rays * scenes.FOCAL + [scenes.WIDTH / 2, scenes.HEIGHT / 2]
    grid = torch.from_numpy(2 * at / [scenes.WIDTH, scenes.HEIGHT] - 1).float().reshape(1, *x.shape, 2)
    shot = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)[None]
    seen = torch.nn.functional.grid_sample(shot, grid, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    return Image.fromarray(seen.round().clamp(0, 255).byte().numpy().reshape(array.shape))


def test_chosen_pairs_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poses = scenes.arc(4)
    before = scenes.scene(poses)
    monkeypatch.setattr(pairs, "ALL_PAIRS", 2)
    listed = pairs.likely_pairs(before)
    assert listed is not None and {(0, 1), (1, 2), (2, 3)} <= set(map(tuple, listed.tolist()))
    assert worst_deg(refine_files(before, poses, tmp_path), poses) < 1.5


def test_without_files_the_pictures_of_the_network_are_used() -> None:
    poses = scenes.arc(4)
    before = scenes.scene(poses)
    after = refine(before, None, RefineOptions(seconds=GENEROUS, lens="simple-pinhole", share_lens="always"))
    assert after.info["refinement"]["status"] == "refined" and after.lenses[0].model == "SIMPLE_PINHOLE"
    assert worst_deg(after, poses) < 1.5


def test_foreign_photo_keeps_its_predicted_pose(tmp_path: Path) -> None:
    poses = scenes.arc(5)
    foreign = Image.fromarray(scenes.photograph(scenes.look((0, 0, 0), (0, 0, 0)), seed=7)[0])
    after = refine_files(scenes.scene(poses), poses, tmp_path, {2: lambda _: foreign})
    assert after.registration == ("refined", "refined", "uncertain", "refined", "refined")
    assert [(told["code"], told["views"]) for told in after.info["warnings"]] == [("uncertain-views", ["002.png"])]
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


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_the_networks_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poses = scenes.arc(3)
    scenes.write(poses, tmp_path)
    before = scenes.scene(poses)
    begun: list[subprocess.Popen] = []

    class Interrupted(subprocess.Popen):
        """A process for which nobody has the patience: Ctrl-C comes while it is waited for."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                begun.append(self)
                signal.raise_signal(signal.SIGINT)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it would be ignored
    try:
        after = refine_scene(before, Pictures(tmp_path), RefineOptions(seconds=GENEROUS), None, None, Observer())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert unchanged(after, before) and "interrupted" in caplog.text
    assert [process.returncode for process in begun] == [-signal.SIGKILL], "nothing is waited for any longer"


def test_a_process_that_cannot_start_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    before = scenes.scene(scenes.arc(2))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert unchanged(refine_scene(before, None, RefineOptions(when="on"), None, None, Observer()), before)
    assert "not refined" in caplog.text


@pytest.mark.parametrize("choice", [{"seconds": 0}, {"lens": "fisheye"}, {"share_lens": "yes"}, {"when": "maybe"}])
def test_bad_choices_are_refused(choice: dict) -> None:
    with pytest.raises(UsageError, match="expected"):
        RefineOptions(**choice)


def scaled(poses: np.ndarray, scale: float) -> np.ndarray:
    """Cameras of a world in which all lengths are `scale` times as long."""
    result = poses.copy()
    result[:, :3, 3] *= scale
    return result
