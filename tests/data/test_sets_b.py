"""Object, room, place and street sets: variants of their formats, agreement across views, and damaged copies."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data import tiny
from data.tiny import arkitscenes, co3dv2, colmap, dl3dv, hypersim, scannetpp
from PIL import Image

from lean3r.data import DATASETS
from lean3r.data.sets.hypersim import projection
from lean3r.data.sets.scenes import RawView, SceneSet
from lean3r.errors import InputError, MissingExtraError, UsageError

NAMES = ("co3dv2", "scannetpp", "arkitscenes", "dl3dv", "hypersim", "wildrgbd", "vkitti2")
WITH_DEPTH = tuple(name for name in NAMES if name != "dl3dv")


def open_set(name: str, root: Path, **options: Any) -> SceneSet:
    return DATASETS.get(name)(root, **{**tiny.WRITERS[name].options, **options})


def in_front(a: RawView, b: RawView) -> tuple[float, float]:
    """Of the points of a that project into b: shares 3 % in front of the depth of b, and in agreement with it."""
    y, x = np.nonzero(a.depth > 0)
    rays = np.linalg.inv(a.intrinsics) @ np.stack([x + 0.5, y + 0.5, np.ones(len(x))])
    points = np.linalg.inv(a.cam_from_world) @ np.vstack([rays * a.depth[y, x], np.ones(len(x))])
    there = (b.cam_from_world @ points)[:3]
    there = there[:, there[2] > 0.05]
    u, v = np.floor((b.intrinsics @ (there / there[2]))[:2]).astype(int)
    inside = (u >= 0) & (u < b.depth.shape[1]) & (v >= 0) & (v < b.depth.shape[0])
    ratio = there[2, inside] / np.where(b.depth > 0, b.depth, np.nan)[v[inside], u[inside]]
    ratio = ratio[np.isfinite(ratio)]
    return float((ratio < 0.97).mean()), float((np.abs(ratio - 1) < 0.03).mean())


def check_agreement(found: SceneSet) -> None:
    views = [found.view(0, v) for v in range(found.scene(0).views)]
    shares = [in_front(a, b) for a, b in pairwise(views)]
    assert max(front for front, _ in shares) < 0.06, shares
    assert np.mean([same for _, same in shares]) > 0.7, shares


@pytest.mark.parametrize("name", WITH_DEPTH)
def test_views_agree_on_what_they_see(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    check_agreement(open_set(name, tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_sets_are_cheap_to_open_and_can_be_sent_to_workers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(name, tmp_path)
    opened_pictures: list[object] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: opened_pictures.append(args) or real(*args, **kwargs))
    found = open_set(name, tmp_path)
    cameras = [found.camera(0, v) for v in range(found.scene(0).views)]
    assert len(opened_pictures) <= 1  # the size of one picture
    there = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(there.camera(0, 2).cam_from_world, cameras[2].cam_from_world)


def check_seen_through_lens(found: SceneSet, scene: tiny.TinyScene, with_depth: bool) -> None:
    """Undistorted views equal those of a pinhole of the same focal length, up to the nearest pixel."""
    for v in range(found.scene(0).views):
        view, camera = found.view(0, v), found.camera(0, v)
        height, width = view.image.shape[:2]
        assert (camera.height, camera.width) == (height, width)
        np.testing.assert_allclose(camera.intrinsics, view.intrinsics)
        np.testing.assert_allclose(view.cam_from_world, scene.cam_from_world[v], atol=1e-6)
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        rays = np.linalg.inv(view.intrinsics) @ np.stack([x, y, np.ones_like(x)]).reshape(3, -1)
        u, w = np.floor((scene.intrinsics[v] @ rays)[:2]).astype(int).reshape(2, height, width)
        u, w = np.clip(u, 0, scene.depth.shape[2] - 1), np.clip(w, 0, scene.depth.shape[1] - 1)
        assert np.median(np.abs(view.image.astype(int) - scene.images[v][w, u])) < 8
        assert (view.depth > 0).any() == with_depth
        if with_depth:
            both = (view.depth > 0) & (scene.depth[v][w, u] > 0)
            assert both.mean() > 0.8
            assert np.median(np.abs(view.depth / np.maximum(scene.depth[v][w, u], 1e-6) - 1)[both]) < 0.01


def test_fisheye_pictures_and_their_depth_are_undistorted(tmp_path: Path) -> None:
    scannetpp.write_fisheye(tmp_path, tiny.scenes())
    found = open_set("scannetpp", tmp_path)
    assert found.problems(tmp_path) == []
    check_seen_through_lens(found, tiny.scenes()[0], with_depth=True)
    check_agreement(found)


def test_lenses_of_videos_are_undistorted(tmp_path: Path) -> None:
    dl3dv.write(tmp_path, tiny.scenes()[:1])
    path = next(tmp_path.rglob("transforms.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "k1": 1e-3, "p1": 1e-4}))
    check_seen_through_lens(open_set("dl3dv", tmp_path), tiny.scenes()[0], with_depth=False)
    path.write_text(json.dumps({**json.loads(path.read_text()), "camera_model": "EQUIRECTANGULAR"}))
    with pytest.raises(InputError, match="camera model EQUIRECTANGULAR"):
        open_set("dl3dv", tmp_path).scene(0)


def test_phone_pictures_have_the_depth_of_their_lidar(tmp_path: Path) -> None:
    scannetpp.write(tmp_path, tiny.scenes())
    scannetpp.write_phone(tmp_path, tiny.scenes())
    found = open_set("scannetpp", tmp_path, device="iphone")
    assert len(found) == 2 and found.problems(tmp_path) == []
    depth, truth = found.view(1, 2).depth, tiny.scenes()[1].depth[2]
    np.testing.assert_allclose(depth[::2, ::2], truth[::2, ::2], atol=6e-4)
    with pytest.raises(UsageError, match="dslr and iphone"):
        open_set("scannetpp", tmp_path, device="drone")


def test_colmap_models_are_used_if_there_are_no_other_cameras(tmp_path: Path) -> None:
    scannetpp.write_fisheye(tmp_path, tiny.scenes()[:1])
    colmap.write(tmp_path / "model", tiny.scenes()[:1])
    place = tmp_path / "data" / "0a5c013430" / "dslr"
    shutil.rmtree(place / "nerfstudio")
    shutil.copytree(tmp_path / "model" / "scene_0" / "sparse" / "0", place / "colmap")
    for name in ("images", "cameras"):
        text = (place / "colmap" / f"{name}.txt").read_text()
        for v in range(tiny.VIEWS):
            text = text.replace(f" {v:03}.png", f" DSC{7 + v:05}.JPG")
        lens = " ".join(str(x) for x in scannetpp.FISHEYE.values())
        text = text.replace("PINHOLE", "OPENCV_FISHEYE").rstrip() + (f" {lens}\n" if name == "cameras" else "\n")
        (place / "colmap" / f"{name}.txt").write_text(text)
    check_seen_through_lens(open_set("scannetpp", tmp_path), tiny.scenes()[0], with_depth=True)


def test_each_archive_may_be_unpacked_into_its_own_folder(tmp_path: Path) -> None:
    tiny.write("vkitti2", tmp_path / "one")
    for archive, part in (("rgb", "frames/rgb"), ("depth", "frames/depth"), ("textgt", "*.txt")):
        for path in (tmp_path / "one").glob(f"*/*/{part}"):
            to = tmp_path / "three" / f"vkitti_2.0.3_{archive}" / path.relative_to(tmp_path / "one")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, to)
    found = open_set("vkitti2", tmp_path / "three")
    assert found.problems(tmp_path / "three") == [] and len(found) == 2
    np.testing.assert_allclose(found.view(1, 0).depth, tiny.scenes()[1].depth[0], atol=6e-3)


@pytest.mark.parametrize("quarters", range(4))
def test_videos_are_rotated_upright(quarters: int, tmp_path: Path) -> None:
    """A device in any orientation gives the same upright pictures; up is z in the set, -y in the synthetic world."""
    up = np.eye(4)
    up[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    held = np.eye(4)
    held[:3, :3] = np.linalg.matrix_power(np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]), quarters)
    upright = replace(tiny.scenes()[0], cam_from_world=tiny.scenes()[0].cam_from_world @ up.T)
    k = upright.intrinsics.copy()
    width, height = upright.depth.shape[:0:-1]
    for _ in range(quarters):
        k[:, [0, 1], 2] = np.stack([k[:, 1, 2], width - k[:, 0, 2]], 1)
        width, height = height, width
    turned = replace(
        upright,
        images=np.ascontiguousarray(np.rot90(upright.images, quarters, (1, 2))),
        depth=np.ascontiguousarray(np.rot90(upright.depth, quarters, (1, 2))),
        intrinsics=k,
        cam_from_world=held @ upright.cam_from_world,
    )
    arkitscenes.write(tmp_path / "3dod", [turned], inner="_frames")
    found = DATASETS.get("arkitscenes")(tmp_path)
    assert found.problems(tmp_path) == [] and found.scene(0).id.endswith("41048190/41048190_frames")
    for v in (0, 3):
        view = found.view(0, v)
        np.testing.assert_array_equal(view.image, upright.images[v])
        np.testing.assert_allclose(view.intrinsics, upright.intrinsics[v], atol=1e-6)
        np.testing.assert_allclose(view.cam_from_world, upright.cam_from_world[v], atol=1e-6)
        np.testing.assert_allclose(view.depth, upright.depth[v], atol=6e-4)


def test_both_formats_of_normalised_cameras_are_read(tmp_path: Path) -> None:
    co3dv2.write(tmp_path, tiny.scenes()[:1], kind="ndc_norm_image_bounds")
    camera = open_set("co3dv2", tmp_path).camera(0, 1)
    np.testing.assert_allclose(camera.intrinsics, tiny.scenes()[0].intrinsics[1], atol=1e-9)


def test_sequences_with_bad_cameras_are_skipped(tmp_path: Path) -> None:
    tiny.write("co3dv2", tmp_path)
    assert len(open_set("co3dv2", tmp_path, min_quality=1.5)) == 2
    with pytest.raises(InputError, match="lower min_quality"):
        open_set("co3dv2", tmp_path, min_quality=2.0)


@pytest.mark.parametrize("name", ["co3dv2", "wildrgbd"])
def test_depth_of_the_object_only(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    depth = open_set(name, tmp_path, foreground=True).view(0, 0).depth
    assert not depth[:, tiny.WIDTH // 2 :].any() and depth[:, : tiny.WIDTH // 2].any()


def test_projection_agrees_with_the_published_matrix() -> None:
    """Row ai_014_001 of the toolkit's table, whose lens is tilted: M_cam_from_uv against M_proj."""
    rays = [[0.5844643816181084, 0, 0], [0, 0.43303410303489254, 0], [0, 0.06804914132558758, -1.0123219690689005]]
    m_proj = np.array(
        [
            [1.7109682496501633, 0, 0, 0],
            [0, 2.3092869429718403, 0, 0],
            [0, 0.15554300207485353, -0.9898056474301448, -2.002002002002002],
            [0, 0.15523222684593274, -0.9878280137689457, 0],
        ]
    )
    row = {f"M_cam_from_uv_{i}{j}": repr(rays[i][j]) for i in range(3) for j in range(3)}
    size = {"settings_output_img_width": "1024.0", "settings_output_img_height": "768.0"}
    k, pinhole_from_cam, (width, height) = projection({**row, **size}, "ai_014_001")
    points = np.array([[0.3, -0.2, -2.0], [-1.0, 0.7, -3.0], [0.1, 1.2, -4.0]])
    clip = m_proj @ np.column_stack([points, np.ones(3)]).T
    u, v = clip[:2] / clip[3]
    there = k @ pinhole_from_cam[:3, :3] @ np.diag([1.0, -1.0, -1.0]) @ points.T
    np.testing.assert_allclose(there[:2] / there[2], [(u + 1) / 2 * width, (1 - v) / 2 * height], rtol=1e-9)
    assert k[0, 0] == pytest.approx(k[1, 1], rel=1e-6)  # pixels are square without the tilt
    with pytest.raises(InputError, match="tilted sideways"):
        projection({**row, **size, "M_cam_from_uv_20": "0.2", "M_cam_from_uv_10": "0.1"}, "ai_014_001")


@pytest.mark.parametrize("name", NAMES)
def test_roots_that_are_another_set_or_empty(name: str, tmp_path: Path) -> None:
    kind = DATASETS.get(name)
    (tmp_path / "empty").mkdir()
    tiny.write("vkitti2" if name != "vkitti2" else "wildrgbd", tmp_path / "other")
    for root in (tmp_path / "empty", tmp_path / "other", tmp_path / "absent"):
        assert not kind.looks_like(root)
        (problem,) = kind.problems(root)
        assert f"has no {kind.title}" in problem
        with pytest.raises(InputError, match=f"no {re.escape(kind.title)} scene.*Expected: "):
            kind(root)


PARTS = {
    "co3dv2": "apple/110_13051_23361/depths",
    "scannetpp": "data/0a5c013430/dslr/nerfstudio",
    "arkitscenes": "Training/41048190/lowres_depth",
    "dl3dv": f"1K/{0:064x}/images_4",
    "hypersim": "ai_001_001/images/scene_cam_00_geometry_hdf5",
    "wildrgbd": "apple/scenes/scene_000/cam_poses.txt",
    "vkitti2": "Scene01/clone/frames/depth",
}


@pytest.mark.parametrize("name", NAMES)
def test_complete_scenes_of_half_a_download_are_read(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    part = tmp_path / PARTS[name]
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    kind = DATASETS.get(name)
    problems = kind.problems(tmp_path)
    missing = part.name if name != "dl3dv" else "no folder of pictures"
    assert any(missing in problem for problem in problems) and len(problems) <= 2
    found = open_set(name, tmp_path)
    assert len(found) == 1 and found.view(0, 0).image.any()


def test_the_table_of_projections_is_needed(tmp_path: Path) -> None:
    tiny.write("hypersim", tmp_path)
    (tmp_path / "metadata_camera_parameters.csv").unlink()
    with pytest.raises(InputError, match="contrib/mikeroberts3000"):
        open_set("hypersim", tmp_path)


def test_hdf5_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write("hypersim", tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=re.escape("lean3r[train]")):
        open_set("hypersim", tmp_path).scene(0)


def test_missing_sequences_and_annotations_are_reported(tmp_path: Path) -> None:
    tiny.write("co3dv2", tmp_path)
    shutil.rmtree(tmp_path / "apple" / "110_13051_23361")
    (problem,) = DATASETS.get("co3dv2").problems(tmp_path)
    assert "1 of 2 sequences" in problem and "110_13051_23361" in problem
    (tmp_path / "apple" / "frame_annotations.jgz").write_bytes(b"\x1f\x8b truncated")
    with pytest.raises(InputError, match=r"frame_annotations\.jgz is damaged"):
        open_set("co3dv2", tmp_path).scene(0)


def pictures_of(name: str, root: Path) -> list[Path]:
    folder = {"co3dv2": "images", "arkitscenes": "lowres_wide", "hypersim": "scene_cam_00_final_preview"}
    folder |= {"scannetpp": "undistorted_images", "dl3dv": "images_4", "wildrgbd": "rgb", "vkitti2": "Camera_0"}
    suffixes = (".jpg", ".JPG", ".png")
    found = [path for path in root.rglob(f"{folder[name]}/*") if path.suffix in suffixes]
    return sorted(path for path in found if path.name.startswith("rgb_") or name != "vkitti2")


@pytest.mark.parametrize("name", NAMES)
def test_a_single_picture_is_not_a_scene(name: str, tmp_path: Path) -> None:
    module = tiny.importlib.import_module(f"data.tiny.{name}")
    module.write(tmp_path, tiny.scenes()[:1])
    for path in pictures_of(name, tmp_path)[2 if name == "scannetpp" else 1 :]:  # the first of ScanNet++ is marked bad
        path.unlink()
    assert any("a scene needs two" in problem for problem in DATASETS.get(name).problems(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_that_are_missing_or_cut_off_are_named(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    found = open_set(name, tmp_path)
    first, second = found._frames_of(0)[0].image, found._frames_of(0)[1].image
    first.write_bytes(first.read_bytes()[:200])
    second.unlink()
    for v, path, what in ((0, first, "damaged"), (1, second, "missing")):
        with pytest.raises(InputError, match=what) as error:
            found.view(0, v)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "arkitscenes"])
def test_poses_that_are_not_rotations_are_refused(name: str, tmp_path: Path) -> None:
    pose = tiny.scenes()[0].cam_from_world.copy()
    pose[1, :3, :3] *= 1.5
    module = tiny.importlib.import_module(f"data.tiny.{name}")
    module.write(tmp_path, [replace(tiny.scenes()[0], cam_from_world=pose)])
    found = open_set(name, tmp_path)
    found.camera(0, 0)
    with pytest.raises(InputError, match="not a rotation"):
        found.camera(0, 1)


def test_invalid_trajectories_are_refused(tmp_path: Path) -> None:
    tiny.write("arkitscenes", tmp_path)
    path = next(tmp_path.rglob("lowres_wide.traj"))
    for content, why in (("1 2 3\n", "seven numbers"), ("0 nan 0 0 0 0 0\n", "not finite"), ("", "no pose")):
        path.write_text(content)
        with pytest.raises(InputError, match=why):
            open_set("arkitscenes", tmp_path).scene(0)
    path.write_text("0 0 0 0 0 0 0\n")
    with pytest.raises(InputError, match="and a pose"):
        open_set("arkitscenes", tmp_path).scene(0)
    lens = open_set("arkitscenes", tmp_path)._frames_of(1)[2].lens
    lens.write_text("256 192 200\n")
    with pytest.raises(InputError, match="pincam is damaged"):
        open_set("arkitscenes", tmp_path).camera(1, 2)


def damage_json(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "scannetpp": ("transforms_undistorted.json", damage_json),
    "dl3dv": ("transforms.json", damage_json),
    "wildrgbd": ("metadata", damage_json),
    "vkitti2": ("extrinsic.txt", lambda path: path.write_text("frame cameraID\n0 0 a b c\n")),
    "hypersim": ("camera_keyframe_positions.hdf5", lambda path: path.write_bytes(b"no HDF5")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_cameras_are_named(name: str, tmp_path: Path) -> None:
    tiny.write(name, tmp_path)
    what, damage = DAMAGES[name]
    path = min(tmp_path.rglob(what))
    damage(path)
    with pytest.raises(InputError) as error:
        open_set(name, tmp_path).scene(0)
    assert str(path) in str(error.value)


def test_depth_that_is_not_finite_is_unknown(tmp_path: Path) -> None:
    """Half floats may be NaN or infinite; integers of the other formats may not."""
    tiny.write("co3dv2", tmp_path)
    found = open_set("co3dv2", tmp_path)
    path = found._frames_of(0)[0].depth
    values = np.ones((tiny.HEIGHT, tiny.WIDTH), np.float16)
    values[10, :10], values[11, :10] = np.nan, np.inf
    tiny.save_png(path, values.view(np.uint16))
    depth = found.view(0, 0).depth
    assert not depth[10:12, :10].any() and (depth[20:] == co3dv2.SCALE).all()

    tiny.write("hypersim", tmp_path / "hypersim")
    found = open_set("hypersim", tmp_path / "hypersim")
    hypersim.save_hdf5(found._frames_of(0)[0].depth, np.full((tiny.HEIGHT, tiny.WIDTH), np.nan))
    assert not found.view(0, 0).depth.any()
    with h5py.File(found._frames_of(0)[1].depth, "w") as file:
        file["other"] = np.zeros(3)
    with pytest.raises(InputError, match="no HDF5 array called dataset"):
        found.view(0, 1)
