"""Walks, drives and films with known poses or depth: times, lenses, what papers score, and damaged copies."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import tiny
from data.tiny.timed import START_S, write_walk
from data.tiny.tum import K
from PIL import Image

from lean3r.cli.main import main
from lean3r.colmap_library import pycolmap
from lean3r.data import DATASETS
from lean3r.data.sets.bonn import T_M
from lean3r.data.sets.formats.timed import associate
from lean3r.data.sets.roots import report
from lean3r.data.sets.scenes import SceneSet
from lean3r.data.sets.tum import LENSES
from lean3r.errors import InputError, UsageError
from lean3r.train.recipes.sources import Source, plain_mixture

NAMES = ("tum", "bonn", "sintel", "kitti", "kitti_depth", "scannet1500")
WALK = "rgbd_dataset_freiburg3_sitting_xyz"


def open_set(name: str, root: Path, **options: Any) -> SceneSet:
    return DATASETS.get(name)(root, **{**tiny.WRITERS[name].options, **options})


@pytest.mark.parametrize("apart", [0.004, 0.02])
def test_times_are_matched_nearest_first_and_once(apart: float) -> None:
    rng = np.random.default_rng(0)
    times, others = np.sort(rng.random(60)), np.sort(rng.random(50))
    found = associate(times, others, apart)
    # All pairs, nearest first, each entry once.
    gaps = np.abs(times[:, None] - others)
    expected = np.full(60, -1)
    for _ in range(50):
        i, j = np.unravel_index(gaps.argmin(), gaps.shape)
        if gaps[i, j] < apart:
            expected[i] = j
            gaps[i], gaps[:, j] = np.inf, np.inf
    np.testing.assert_array_equal(found, expected)
    assert (found >= 0).any() and (found < 0).any()


def test_views_have_the_times_of_their_pictures(tmp_path: Path) -> None:
    steps = {"tum": 0.033, "bonn": 0.033, "kitti": 0.1, "arkitscenes": 0.1, "realestate10k": 0.033366}
    for name, step in steps.items():
        tiny.write(name, tmp_path / name)
        found = open_set(name, tmp_path / name)
        times = [found.time_s(0, view) for view in range(found.scene(0).views)]
        np.testing.assert_allclose(np.diff(np.array(times, float)), step, atol=1e-6)
    tiny.write("sintel", tmp_path / "sintel")
    assert open_set("sintel", tmp_path / "sintel").time_s(0, 0) is None


def test_pictures_without_a_pose_are_left_out_and_those_without_a_map_stay(tmp_path: Path) -> None:
    tiny.write("tum", tmp_path)
    assert len(list((tmp_path / WALK / "rgb").iterdir())) == tiny.VIEWS + 1  # the first has no pose
    lines = (tmp_path / WALK / "depth.txt").read_text().splitlines()
    (tmp_path / WALK / "depth.txt").write_text("\n".join(line for i, line in enumerate(lines) if i != 3))
    found = open_set("tum", tmp_path)
    assert [bool(found.view(0, v).depth.any()) for v in range(found.scene(0).views)] == [True, True, False, *[True] * 3]


def test_lenses_of_kinects_are_undistorted_or_left(tmp_path: Path) -> None:
    """A freiburg1 written through its lens: each pixel shows what its ray meets."""
    (scene, _) = tiny.scenes(focal=0.7)
    lens = pycolmap.Camera(model="FULL_OPENCV", width=640, height=480, params=[*LENSES["1"], 0, 0, 0])
    lens.params[2:4] += 0.5
    lens.rescale(tiny.WIDTH, tiny.HEIGHT)
    y, x = np.mgrid[: tiny.HEIGHT, : tiny.WIDTH] + 0.5
    rays = np.column_stack([np.asarray(lens.cam_from_img(np.column_stack([x.ravel(), y.ravel()]))), np.ones(x.size)])
    spots = np.floor(rays @ scene.intrinsics[0].T).astype(int)[:, :2]
    column, row = spots.clip(0, (tiny.WIDTH - 1, tiny.HEIGHT - 1)).T.reshape(2, *x.shape)
    images, depth, normals = (values[:, row, column] for values in (scene.images, scene.depth, scene.normals))
    bent = tiny.TinyScene(images, depth, normals, scene.intrinsics, scene.cam_from_world)
    write_walk(tmp_path / "rgbd_dataset_freiburg1_xyz", bent, scene.world_from_cam)
    found, raw = open_set("tum", tmp_path), open_set("tum", tmp_path, undistort=False)
    for v in range(tiny.VIEWS):
        view = found.view(0, v)
        height, width = view.depth.shape
        y, x = np.mgrid[:height, :width] + 0.5
        rays = np.linalg.inv(view.intrinsics) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
        u, w = np.floor((scene.intrinsics[v] @ rays)[:2]).astype(int).reshape(2, height, width)
        u, w = u.clip(0, tiny.WIDTH - 1), w.clip(0, tiny.HEIGHT - 1)
        both = (view.depth > 0) & (scene.depth[v][w, u] > 0)
        assert both.mean() > 0.8
        assert np.median(np.abs(view.depth / np.maximum(scene.depth[v][w, u], 1e-6) - 1)[both]) < 0.01
        assert np.median(np.abs(view.image.astype(int) - scene.images[v][w, u])) < 8
        np.testing.assert_array_equal(raw.view(0, v).image, bent.images[v])
    assert raw.camera(0, 0).intrinsics[0, 0] == pytest.approx(51.7306408)
    assert raw.camera(0, 0).intrinsics[1, 2] == pytest.approx((255.313989 + 0.5) / 10)


def test_markers_of_bonn_are_a_rotation_away_from_the_camera_up_to_a_scale() -> None:
    block = T_M[:3, :3]
    scale = np.cbrt(np.linalg.det(block))
    assert scale == pytest.approx(1.0593, abs=1e-4)
    np.testing.assert_allclose(block @ block.T / scale**2, np.eye(3), atol=3e-4)


def test_prepared_frames_of_bonn_are_numbers_30_to_139_of_both_folders(tmp_path: Path) -> None:
    tiny.write("bonn", tmp_path)
    folder = tmp_path / "rgbd_bonn_balloon2"
    for kind, shift, mode in (("rgb", 0.0, "RGB"), ("depth", 0.015, "I;16")):
        shutil.rmtree(folder / kind)
        (folder / kind).mkdir()
        for i in range(141):
            path = folder / kind / f"{START_S + 0.033 * i + shift:.6f}.png"
            Image.new(mode, (64, 48), 5000 + i if kind == "depth" else (i, i, i)).save(path)
    found = open_set("bonn", tmp_path, prepared=True, scenes=["rgbd_bonn_balloon2"])
    assert found.scene(0).views == 110
    for v in (0, 57, 109):
        view = found.view(0, v)
        assert view.image[0, 0].tolist() == [30 + v] * 3
        assert view.depth[0, 0] == pytest.approx((5030 + v) / 5000)
        assert found.time_s(0, v) == pytest.approx(START_S + 0.033 * (30 + v), abs=1e-5)
    with pytest.raises(InputError, match="expected 110"):
        open_set("bonn", tmp_path, prepared=True).scene(1)


def test_a_drive_is_seen_from_the_colour_camera(tmp_path: Path) -> None:
    (scene, _) = tiny.write("kitti", tmp_path)
    found = open_set("kitti", tmp_path)
    assert [found.scene(i).id for i in range(len(found))] == ["sequences/00", "sequences/01"]  # 11 has no poses
    rows = np.loadtxt(tmp_path / "poses" / "00.txt").reshape(-1, 3, 4)
    left = np.linalg.inv(scene.cam_from_world[1])[:3]
    assert np.linalg.norm(rows[1, :, 3] - left[:, 3]) == pytest.approx(0.0601, abs=1e-4)
    np.testing.assert_allclose(found.camera(0, 1).cam_from_world, scene.cam_from_world[1], atol=1e-9)


def test_depth_without_poses_is_drawn_but_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write("kitti_depth", tmp_path / "set")
    assert main(["data", "check", "set"]) == 0 and "KITTI depth" in capsys.readouterr().err
    sheet = Image.open("kitti_depth-sample.png")
    assert sheet.width < 3 * tiny.WIDTH  # no third column
    assert main(["data", "pack", "set", "-o", "out"]) == 2 and "no poses" in capsys.readouterr().err
    assert not Path("out").exists()
    with pytest.raises(UsageError, match="no poses"):
        plain_mixture([Source("kitti_depth", "set")], 0)


Harm = Callable[[Path], object]


def edit(name: str, old: str, new: str) -> Harm:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new, 1))


def cut(name: str, size: int) -> Harm:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size])


def drop(name: str) -> Harm:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def lose_pose(name: str, line: int) -> Harm:
    def harm(root: Path) -> None:
        lines = (root / name).read_text().splitlines()
        first, *rest = lines[line].split()
        lines[line] = " ".join([first, *["nan" for _ in rest]])
        (root / name).write_text("\n".join(lines))

    return harm


DRIVE = "depth_selection/val_selection_cropped"
HARMS: list[tuple[str, Harm, str, int]] = [
    ("tum", drop(f"{WALK}/rgb/1305031102.033000.png"), "1 of 7 files", 2),
    ("tum", drop(f"{WALK}/groundtruth.txt"), "groundtruth.txt is missing", 1),
    ("tum", drop(f"{WALK}/depth"), "depth is missing", 1),
    ("tum", lose_pose(f"{WALK}/groundtruth.txt", 2), "1 poses of .*groundtruth.txt are not finite", 2),
    ("tum", edit(f"{WALK}/rgb.txt", "rgb/", "../"), "is outside", 1),
    ("tum", edit(f"{WALK}/groundtruth.txt", ".", " "), "groundtruth.txt is damaged", 1),
    ("bonn", drop("rgbd_bonn_balloon2/depth.txt"), "depth.txt is missing", 1),
    ("bonn", edit("rgbd_bonn_balloon2/rgb.txt", "rgb/", "rgb/lost"), "1 of 7 files", 2),
    ("sintel", drop("training/depth/alley_2"), "depth/alley_2 is missing", 0),
    ("sintel", drop("training/final/alley_2"), "final/alley_2 is missing", 1),
    ("sintel", drop("training/clean/alley_2/frame_0003.png"), "1 of 6 files of .*clean/alley_2 are missing", 2),
    ("sintel", cut("training/camdata_left/alley_2/frame_0002.cam", 90), "frame_0002.cam is damaged", 0),
    ("sintel", cut("training/depth/alley_2/frame_0001.dpt", 200), "frame_0001.dpt is damaged", 2),
    ("kitti", drop("poses/01.txt"), "01.txt is missing", 1),
    ("kitti", drop("sequences/00/image_2/000004.png"), "1 of 6 pictures of .* are missing, e.g. 000004.png", 2),
    ("kitti", lose_pose("poses/00.txt", 3), "1 of 6 poses of .*00.txt are not finite", 2),
    ("kitti", edit("sequences/00/calib.txt", "P2", "P9"), "calib.txt is damaged", 1),
    ("kitti_depth", drop(f"{DRIVE}/groundtruth_depth_gathered/2011_09_26_drive_0005_sync_02"), "is missing", 1),
    ("kitti_depth", drop(f"{DRIVE}/image_gathered/2011_09_26_drive_0002_sync_02/0000000006.png"), "no other half", 2),
    ("scannet1500", drop("intrinsics.npz"), "intrinsics.npz is missing", 0),
    ("scannet1500", drop("scene0707_00/color/30.jpg"), "1 of 6 pairs lack pictures, e.g. .*30.jpg", 5),
    ("scannet1500", drop("scene0708_00/depth/15.png"), "1 of 6 depth maps are missing", 6),
    ("scannet1500", drop("scene0708_00/intrinsic"), "so the maps of its walk are not read", 6),
    ("scannet1500", cut("test.npz", 300), "test.npz is damaged", 0),
]


@pytest.mark.parametrize(("name", "harm", "says", "usable"), HARMS, ids=[f"{n}-{s}" for n, _, s, _ in HARMS])
def test_what_is_missing_or_damaged_is_said_and_the_rest_is_read(
    name: str, harm: Harm, says: str, usable: int, tmp_path: Path
) -> None:
    tiny.write(name, tmp_path)
    harm(tmp_path)
    found = report(tmp_path, name, tiny.WRITERS[name].options)
    assert any(re.search(says, problem) for problem in found.problems), found.problems
    assert found.scenes == usable
    with pytest.raises(InputError):
        report(tmp_path / "absent", name)


def test_a_lost_pose_leaves_its_view_out(tmp_path: Path) -> None:
    for name, harm in (("tum", lose_pose(f"{WALK}/groundtruth.txt", 2)), ("kitti", lose_pose("poses/00.txt", 3))):
        tiny.write(name, tmp_path / name)
        harm(tmp_path / name)
        found = open_set(name, tmp_path / name)
        views = found.scene(0).views
        assert all(np.isfinite(found.camera(0, v).cam_from_world).all() for v in range(views))
        assert views == tiny.VIEWS - (name == "kitti")  # in TUM, a neighbour of the lost pose is near enough
    cam = tmp_path / "sintel" / "training" / "camdata_left" / "alley_2" / "frame_0004.cam"
    tiny.write("sintel", tmp_path / "sintel")
    cam.write_bytes(cam.read_bytes()[:76] + struct.pack("<12d", *[np.nan] * 12))
    found = open_set("sintel", tmp_path / "sintel")
    assert [found.view_name(0, v) for v in range(found.scene(0).views)] == [f"frame_{n:04}" for n in (1, 2, 3, 5, 6)]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_set_says_where_to_get_it_and_its_layout(name: str, tmp_path: Path) -> None:
    kind = DATASETS.get(name)
    for raised in (lambda: kind(tmp_path), lambda: report(tmp_path, name)):
        with pytest.raises(InputError) as caught:
            raised()
        assert kind.layout in str(caught.value) and kind.source in str(caught.value)


def test_drives_of_unknown_days_and_turned_pairs_are_refused(tmp_path: Path) -> None:
    tiny.write("kitti_depth", tmp_path)
    for part in ("image_gathered", "groundtruth_depth_gathered"):
        folder = tmp_path / DRIVE / part
        (folder / "2011_09_26_drive_0002_sync_02").rename(folder / "drive_0002")
    assert "not named like a drive" in DATASETS.get("kitti_depth").problems(tmp_path)[0]
    line = "scene0711_00_frame-000001.jpg scene0711_00_frame-000002.jpg 0 1 " + " ".join(["1"] * 34)
    outside = line.replace("0 1 ", "0 0 ").replace("_00_", "/", 1)
    for text, says in ((line, "expected two names, 0 0"), (outside, "is not a name like")):
        (tmp_path / "scannet_test_pairs_with_gt.txt").write_text(text)
        with pytest.raises(InputError, match=says):
            open_set("scannet1500", tmp_path)


def test_tiny_cameras_are_the_published_ones_at_a_tenth() -> None:
    fx, fy, cx, cy, *_ = LENSES["3"]
    np.testing.assert_allclose(K, [[fx / 10, 0, (cx + 0.5) / 10], [0, fy / 10, (cy + 0.5) / 10], [0, 0, 1]])
