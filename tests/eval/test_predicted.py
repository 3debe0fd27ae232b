"""Predictions of any program: what `Predicted` says, and each form of files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export.scene import make_scene

from lean3r.errors import InputError
from lean3r.eval.depth_errors import resize_depth_bicubic
from lean3r.eval.predicted.base import Predicted
from lean3r.eval.predicted.reading import OWN, read
from lean3r.export import export

RNG = np.random.default_rng(0)


def plane(height: int, width: int, scale_x: float = 1, scale_y: float = 1, x: float = 0, y: float = 0) -> np.ndarray:
    """A depth that is linear in original pixels, at the pixels of a map with this original_from_depth."""
    columns, rows = (np.arange(width) + 0.5) * scale_x + x, (np.arange(height) + 0.5) * scale_y + y
    return (5 + 0.01 * columns + 0.02 * rows[:, None]).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(31, 47), (64, 21), (30, 30)])
def test_a_map_of_the_whole_picture_is_resized_as_the_benchmarks_do(height, width):
    depth = RNG.uniform(1, 9, (24, 35)).astype(np.float32)
    predicted = Predicted(path=Path("x"), depth=(depth,))
    bicubic = resize_depth_bicubic(torch.from_numpy(depth), height, width).numpy()
    assert np.array_equal(predicted.depth_at(0, height, width, "bicubic"), bicubic)
    assert np.array_equal(predicted.depth_at(0, 24, 35), depth)
    near = predicted.depth_at(0, height, width)
    assert near[-1, 0] == depth[-1, 0] and near[0, -1] == depth[0, -1] and set(near.flat) <= set(depth.flat)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_a_map_of_a_crop_is_placed_by_its_original_pixels(method):
    # 20 x 30 pixels of a map, twice as large and three times as high in the original picture of 90 x 70.
    place = (2.0, 3.0, 7.0, 11.0)
    predicted = Predicted(path=Path("x"), depth=(plane(20, 30, *place),), original_from_depth=np.array([place]))
    whole = predicted.depth_at(0, 90, 70, method)
    truth = plane(90, 70)
    tolerance = {"nearest": 0.041, "bilinear": 1e-5, "bicubic": 0.01}[method]  # the cubic is not exact for a plane
    assert (whole[:11] == 0).all() and (whole[71:] == 0).all() and (whole[:, :7] == 0).all() and whole[11, 7] > 0
    assert (whole[:, 67:] == 0).all() and (whole[11:71, 7:67] > 0).all()
    assert np.abs(whole - truth)[20:60, 15:60].max() <= tolerance
    half = predicted.depth_at(0, 45, 35, method, original_size=(90, 70))
    assert np.abs(half - plane(45, 35, 2, 2))[10:30, 8:30].max() <= tolerance


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_unknown_depth_spreads_into_no_neighbour(method):
    depth = np.full((12, 16), 4.0, np.float32)
    depth[5, 6], depth[2, 3], depth[9, 9] = 0, np.nan, -1
    whole = Predicted(path=Path("x"), depth=(depth,)).depth_at(0, 36, 48, method)
    assert (whole == 0).sum() == 27 and np.allclose(whole[whole > 0], 4)
    with pytest.raises(InputError, match="has no depth"):
        Predicted(path=Path("x")).depth_at(0, 3, 4)


def test_pictures_are_found_by_whole_names_or_by_stems():
    poses = np.stack([np.diag([1, 1, 1, i + 1.0]) for i in range(3)])
    depth = tuple(np.full((i + 1, 2), i + 1, np.float32) for i in range(3))
    predicted = Predicted(path=Path("x"), names=("a/1.png", "a/2.png", "b\\3.png"), cam_from_world=poses, depth=depth)
    some = predicted.of(["c/3.jpg", "c/1.jpg"])
    assert some.names == ("c/3.jpg", "c/1.jpg") and some.depth is not None and some.depth[0][0, 0] == 3
    assert some.cam_from_world is not None and some.cam_from_world[:, 3, 3].tolist() == [3, 1]
    twice = Predicted(path=Path("x"), names=("a/1.png", "b/1.png"), cam_from_world=poses[:2])
    assert twice.of(["b/1.png"]).cam_from_world is not None
    for names in (["c/1.png"], ["a/1.png", "a/4.png"]):
        with pytest.raises(InputError, match="predictions for other frames"):
            twice.of(names)


@pytest.mark.parametrize("form", ["{}", "{}.png", "images/{}.JPG", "up\\{}.png"])
@pytest.mark.parametrize("lost", [0, 1])
def test_pictures_whose_last_parts_repeat_are_found_by_their_folders(form: str, lost: int):
    """As of rigs, and with the times of TUM, which have a dot; with a picture that was not registered, too."""
    names = ["cam0/17.1250", "cam0/17.2500", "cam1/17.1250", "cam1/17.2500", "cam1/18"]
    poses = np.stack([np.diag([1, 1, 1, i + 1.0]) for i in range(5)])[lost:][::-1]
    given = tuple(form.format(name) for name in names[lost:][::-1])
    found = Predicted(path=Path("x"), names=given, cam_from_world=poses, lacks_failures=True).of(names).cam_from_world
    assert found is not None and found[lost:, 3, 3].tolist() == [1, 2, 3, 4, 5][lost:] and np.isnan(found[:lost]).all()
    short = Predicted(path=Path("x"), names=("17.1250.png", "17.2500.png"), cam_from_world=poses[:2])
    assert short.of(["17.1250", "17.2500"]).cam_from_world is not None


def test_a_picture_that_was_lost_has_no_pose_and_no_depth():
    times, places = np.array([0.1, 0.2, 0.35]), np.tile([2.0, 2.0, 1.0, 1.0], (3, 1))
    parts = {"cam_from_world": np.tile(np.eye(4), (3, 1, 1)), "depth": (np.ones((2, 2), np.float32),) * 3}
    lost = Predicted(path=Path("x"), times_s=times, original_from_depth=places, **parts).at_times([0.1, 0.2, 0.3, 0.36])
    assert lost.cam_from_world is not None and np.isnan(lost.cam_from_world[2]).all() and lost.views == 4
    assert [lost.depth_at(i, 6, 6, "bicubic").any() for i in range(4)] == [True, True, False, True]
    assert lost.problems() == [
        "1 of 4 pictures have no pose (NaN): frame 2",
        "all cameras are at one place: the scale of the trajectory is zero",
        "1 of 4 pictures have no positive depth at all: frame 2",
    ]


def test_of_what_lean3r_wrote_in_several_formats_the_richest_is_read(tmp_path):
    scene = make_scene()
    export(scene, tmp_path / "room", "npz,cameras,colmap,trajectory,csv,depth,ply")
    intrinsics = read(tmp_path / "room").intrinsics
    assert intrinsics is not None
    for name in OWN[:-1]:
        gone = tmp_path / "room" / name
        if not gone.exists():
            continue
        predicted = read(tmp_path / "room", names=scene.names)
        assert predicted.cam_from_world is not None and predicted.depth is not None and predicted.cloud is not None
        np.testing.assert_allclose(predicted.cam_from_world, scene.cam_from_world, atol=1e-5)
        if predicted.intrinsics is not None:
            np.testing.assert_allclose(predicted.intrinsics, intrinsics, rtol=1e-5)
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert read(tmp_path / "room").cam_from_world is None


def test_the_trajectories_of_two_videos_repeat_their_cameras(tmp_path):
    names = [f"{clip}_{frame:06}.png" for clip in "ab" for frame in range(2)]
    scene = make_scene(4, names=names)
    sources = [replace(source, timestamp_s=0.5 * (i % 2)) for i, source in enumerate(scene.sources)]
    export(replace(scene, sources=tuple(sources)), tmp_path / "room", "cameras,trajectory")
    assert len(list((tmp_path / "room").glob("trajectory_tum_*.txt"))) == 2
    found = read(tmp_path / "room", names=scene.names).cam_from_world
    np.testing.assert_allclose(found, scene.cam_from_world, atol=1e-5)
