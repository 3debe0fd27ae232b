"""What is in the files: the same geometry in each, in the stated axes, pixels and units."""

from __future__ import annotations

import json
import time
import tomllib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pycolmap
import pytest
import torch
import trimesh
from PIL import Image

from export.gltf import read_glb, shown_rgb
from export.scene import make_scene
from lean3r.errors import UsageError
from lean3r.export import EXPORTERS, ExportOptions, export, parse_formats, pictures, ply
from lean3r.export.frusta import frustum_reach, order_colours
from lean3r.export.lenses import camera_table
from lean3r.geometry.fusion import with_cloud, without_depth
from lean3r.types import SparsePoints

LANDSCAPE = [(4032, 3024)] * 4
PORTRAIT = [(2160, 3840)] * 4
MIXED = [(4032, 3024), (1080, 1920), (800, 801), (3000, 1200)]


def write(name, scene, directory, **options):
    return EXPORTERS.get(name)(scene, directory, ExportOptions(**options))


def colmap(scene, directory, **options):
    write("colmap", scene, directory, **options)
    return pycolmap.Reconstruction(directory / "sparse" / "0")


@pytest.mark.parametrize(
    ("originals", "height", "width"),
    [(LANDSCAPE, 72, 96), (PORTRAIT, 128, 72), (MIXED, 96, 96)],
    ids=["landscape", "portrait", "mixed"],
)
def test_colmap_round_trip_is_exact_at_the_original_size(tmp_path, originals, height, width):
    scene = make_scene(4, height=height, width=width, originals=originals)
    model = colmap(scene, tmp_path)
    errors = []
    for view, name in enumerate(scene.names):
        image = model.find_image_with_name(name)
        camera = model.camera(image.camera_id)
        assert (camera.width, camera.height) == originals[view]
        assert camera.model.name == "PINHOLE"
        np.testing.assert_allclose(camera.calibration_matrix(), scene.original_intrinsics[view])
        np.testing.assert_allclose(image.cam_from_world().matrix(), scene.cam_from_world[view][:3], atol=1e-12)
        seen = [point for point in image.points2D if point.has_point3D()]
        assert len(seen) == len(image.points2D) > 200
        world = np.stack([model.point3D(point.point3D_id).xyz for point in seen])
        observed = np.stack([point.xy for point in seen])
        assert (observed >= 0).all() and (observed <= originals[view]).all()
        camera_points = world @ image.cam_from_world().rotation.matrix().T + image.cam_from_world().translation
        errors.append(np.linalg.norm(camera.img_from_cam(camera_points) - observed, axis=1))
    errors = np.concatenate(errors)
    assert errors.mean() < 0.1
    assert np.median(errors) < 0.005
    assert model.compute_mean_reprojection_error() < 0.1  # per point, as COLMAP counts
    assert model.compute_mean_track_length() > 2


def test_colmap_tracks_are_valid_in_both_directions_and_bounded(tmp_path):
    model = colmap(make_scene(16), tmp_path, colmap_points=500)
    assert model.num_points3D() == 500
    for point_id, point in model.points3D.items():
        views = [element.image_id for element in point.track.elements]
        assert 1 <= len(views) == len(set(views)) <= 12
        for element in point.track.elements:
            assert model.image(element.image_id).points2D[element.point2D_idx].point3D_id == point_id
    assert np.mean([p.track.length() >= 2 for p in model.points3D.values()]) > 0.95


def test_colmap_residuals_show_disagreement_of_depths(tmp_path):
    scene = make_scene(4)
    noisy = replace(scene, depth=scene.depth * np.array([1, 1.01, 0.99, 1], np.float32)[:, None, None])
    exact = colmap(scene, tmp_path / "exact").compute_mean_reprojection_error()
    assert colmap(noisy, tmp_path / "noisy").compute_mean_reprojection_error() > 10 * exact


def test_colmap_shared_camera(tmp_path):
    scene = make_scene(3)
    model = colmap(scene, tmp_path / "same", shared_camera=True)
    assert model.num_cameras() == 1 and model.num_images() == 3
    np.testing.assert_allclose(model.camera(1).calibration_matrix(), np.median(scene.original_intrinsics, axis=0))
    with pytest.raises(UsageError, match="one size"):
        colmap(make_scene(4, height=96, width=96, originals=MIXED), tmp_path / "mixed", shared_camera=True)


def test_seconds_of_formats_side_by_side_are_not_added_up(tmp_path, monkeypatch):
    monkeypatch.setattr(EXPORTERS, "get", lambda name: lambda *_: time.sleep(0.2) or [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    out = export(make_scene(1), tmp_path / "out", "npz,ply,glb,cameras")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seconds"]["export"] < 0.7 < sum(manifest["seconds_by_format"].values())


def test_colmap_images_of_one_name_stay_apart(tmp_path):
    model = colmap(make_scene(3, names=["a.jpg", "a.jpg", "a_2.jpg"]), tmp_path)
    assert sorted(image.name for image in model.images.values()) == ["a.jpg", "a_2.jpg", "a_2_2.jpg"]


def test_points_are_the_unprojected_depth_in_npz_ply_and_glb(tmp_path):
    scene = make_scene(4, originals=MIXED, height=96, width=96)
    export(scene, tmp_path / "out", "npz,ply,glb")
    with np.load(tmp_path / "out" / "predictions.npz") as file:
        arrays = dict(file)
    points = scene.points
    cols, rows = points.xy.astype(int).T
    z = arrays["depth"][points.view, rows, cols].astype(np.float64)
    k = arrays["K"][points.view]
    rays = np.einsum("pij,pj->pi", np.linalg.inv(k), np.column_stack([points.xy, np.ones(len(z))]))
    world_from_cam = arrays["world_from_cam"][points.view]
    world = np.einsum("pij,pj->pi", world_from_cam[:, :3, :3], rays * z[:, None]) + world_from_cam[:, :3, 3]

    ply = trimesh.load(tmp_path / "out" / "points.ply")
    np.testing.assert_allclose(ply.vertices, world, atol=1e-5)
    np.testing.assert_array_equal(ply.colors[:, :3], points.rgb)
    np.testing.assert_array_equal(points.rgb, scene.images[points.view, rows, cols])

    glb = trimesh.load(tmp_path / "out" / "scene.glb")
    assert set(glb.geometry) == {"points", "cameras"}
    np.testing.assert_allclose(glb.geometry["points"].vertices, world * [1, -1, -1], atol=1e-5)
    np.testing.assert_array_equal(shown_rgb(*read_glb(tmp_path / "out" / "scene.glb"), "points"), points.rgb)
    assert all(np.allclose(glb.graph[node][0], np.eye(4)) for node in glb.graph.nodes_geometry)


def test_glb_colours_are_linear_floats_and_unlit(tmp_path):
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    scene = make_scene(3)
    count = len(scene.points.xyz)
    every = np.roll(np.resize(ramp, (count, 3)), 1, axis=0)
    write("glb", replace(scene, points=replace(scene.points, rgb=every)), tmp_path)
    write("mesh", scene, tmp_path)
    tree, arrays = read_glb(tmp_path / "scene.glb")
    np.testing.assert_array_equal(shown_rgb(tree, arrays, "points"), every)
    cameras = shown_rgb(tree, arrays, "cameras").reshape(3, -1, 3)
    np.testing.assert_array_equal(cameras, np.broadcast_to(order_colours(3)[:, None], cameras.shape))
    mesh_tree, mesh_arrays = read_glb(tmp_path / "mesh.glb")
    ply = trimesh.load(tmp_path / "mesh.ply", process=False)
    np.testing.assert_array_equal(shown_rgb(mesh_tree, mesh_arrays, "mesh"), ply.visual.vertex_colors[:, :3])
    for found in (tree, mesh_tree):
        for mesh in found["meshes"]:
            colours = found["accessors"][mesh["primitives"][0]["attributes"]["COLOR_0"]]
            assert (colours["componentType"], colours["type"]) == (5126, "VEC3")  # FLOAT
    # trimesh keeps linear colours, of 8 bits; of integers with more it would keep the lower ones, which are noise.
    read = trimesh.load(tmp_path / "scene.glb").geometry["points"].colors[:, :3] / 255
    np.testing.assert_allclose(read, arrays[tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]], atol=0.002)


def test_glb_has_the_cameras_to_look_through(tmp_path):
    """As glTF defines them: along -z, y up, the field of view that of the picture's height; seen in Blender, which
    renders the mesh through them as in the photos."""
    sizes = [(96, 72), (72, 96), (96, 72)]
    scene = replace(make_scene(3, originals=sizes), registration=("refined", "refined", "uncertain"))
    write("glb", scene, tmp_path)
    tree, arrays = read_glb(tmp_path / "scene.glb")
    nodes = [node for node in tree["nodes"] if "camera" in node]
    assert [node["name"] for node in nodes] == list(scene.names[:2])
    assert tree["scenes"] == [{"nodes": list(range(len(tree["nodes"])))}]
    mine = scene.of_certain()
    for view, (node, (width, height)) in enumerate(zip(nodes, sizes, strict=False)):
        lens = tree["cameras"][node["camera"]]["perspective"]
        k, pose = mine.original_intrinsics[view], np.array(node["matrix"]).reshape(4, 4).T
        x, y, z = ((arrays[0] - pose[:3, 3]) @ pose[:3, :3]).T
        shown_y = 0.5 + y / z / np.tan(lens["yfov"] / 2) / 2  # of the height, from above
        shown_x = 0.5 - x / z / np.tan(lens["yfov"] / 2) / lens["aspectRatio"] / 2
        cam = mine.points.xyz @ mine.cam_from_world[view, :3, :3].T + mine.cam_from_world[view, :3, 3]
        seen = cam @ k.T
        off = (k[:2, 2] - [width / 2, height / 2]) / [width, height]  # which glTF cannot say
        expected = seen[:, :2] / seen[:, 2:] / [width, height] - off
        np.testing.assert_allclose(np.stack([shown_x, shown_y], 1), expected, atol=1e-4)
        assert lens["aspectRatio"] == pytest.approx(width / height * k[1, 1] / k[0, 0]) and lens["znear"] > 0


def test_glb_is_y_up(tmp_path):
    write("glb", make_scene(4), tmp_path)
    scene = trimesh.load(tmp_path / "scene.glb")
    # The floor is below the cameras; +y is up in glTF.
    assert scene.geometry["points"].vertices[:, 1].min() == pytest.approx(-1.5, abs=0.01)
    assert scene.geometry["cameras"].vertices[:, 1].mean() > 0


def test_npz_and_cameras_agree_with_the_reconstruction(tmp_path):
    scene = make_scene(3, originals=MIXED[:3], height=96, width=96)
    export(scene, tmp_path / "out", ["npz", "cameras"])
    with np.load(tmp_path / "out" / "predictions.npz") as file:
        arrays = dict(file)
    assert set(arrays) == {
        "names", "depth", "conf", "mask", "K", "K_original", "cam_from_world", "world_from_cam", "image_size",
        "original_from_network", "scale", "registration",
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["depth"], scene.depth)
    np.testing.assert_array_equal(arrays["mask"], scene.mask)
    assert tuple(arrays["names"]) == scene.names and str(arrays["scale"]) == "relative"
    np.testing.assert_allclose(
        arrays["cam_from_world"] @ arrays["world_from_cam"], np.tile(np.eye(4), (3, 1, 1)), atol=1e-12
    )

    cameras = json.loads((tmp_path / "out" / "cameras.json").read_text(encoding="utf-8"))
    for view, entry in enumerate(cameras["views"]):
        assert (entry["name"], entry["width"], entry["height"]) == (scene.names[view], *MIXED[view])
        np.testing.assert_allclose(entry["K"], arrays["K_original"][view])
        np.testing.assert_allclose(entry["world_from_cam"], arrays["world_from_cam"][view])


def test_points_of_two_formats_are_written_once(tmp_path, monkeypatch):
    made, encode = [], ply.ply_bytes

    def slow(*arrays, **more):
        made.append(encode(*arrays, **more))
        time.sleep(0.1)  # both formats would find no file
        return made[-1]

    monkeypatch.setattr(ply, "ply_bytes", slow)
    monkeypatch.setattr("lean3r.parallel.torch", SimpleNamespace(get_num_threads=lambda: 2, set_num_threads=id))
    out = export(make_scene(2), tmp_path / "out", "ply,nerfstudio,cameras")
    assert len(made) == 1 and (out / "points.ply").read_bytes() == made[0]
    assert json.loads((out / "manifest.json").read_text())["files"].count("points.ply") == 1


@pytest.mark.parametrize(("scale", "size"), [("relative", 1), ("metric", 1), ("metric", 0.01), ("metric", 100)])
def test_depth_pictures_hold_depth_without_padding(tmp_path, scale, size):
    scene = replace(make_scene(3, originals=MIXED[:3], height=96, width=96), scale=scale)
    scene = replace(scene, depth=scene.depth * np.float32(size))
    write("depth", scene, tmp_path)
    sidecar = json.loads((tmp_path / "depth" / "scale.json").read_text(encoding="utf-8"))
    assert sidecar["unit"] == scale and (sidecar["scale"] == 0.001) == (scale == "metric" and size == 1)
    assert sidecar["scale"] <= scene.depth.max() / 1000
    for view, entry in enumerate(sidecar["views"]):
        with Image.open(tmp_path / "depth" / entry["file"]) as picture:
            values = np.asarray(picture)
            assert float(picture.text["scale"]) == sidecar["scale"]
        assert values.dtype == np.uint16
        x, y = entry["network_offset"]
        expected = scene.depth[view, y : y + values.shape[0], x : x + values.shape[1]]
        assert scene.mask[view].sum() == values.size
        np.testing.assert_allclose(values * sidecar["scale"], expected, atol=0.51 * sidecar["scale"])


def test_near_depth_is_not_written_as_unknown(tmp_path):
    scene = make_scene(1)
    depth = scene.depth.copy()
    depth[0, 0, :3] = 1e-7, 0, np.nan
    write("depth", replace(scene, depth=depth), tmp_path)
    with Image.open(next((tmp_path / "depth").glob("*.png"))) as picture:
        assert np.asarray(picture)[0, :3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("scale", ["relative", "metric"])
def test_a_pixel_far_away_does_not_make_the_others_coarse(tmp_path, scale):
    scene = replace(make_scene(2), scale=scale)
    depth = scene.depth.copy()
    depth[1, 0, 0] = 1e4 * depth.max()
    write("depth", replace(scene, depth=depth), tmp_path)
    sidecar = json.loads((tmp_path / "depth" / "scale.json").read_text(encoding="utf-8"))
    with Image.open(tmp_path / "depth" / sidecar["views"][1]["file"]) as picture:
        values = np.asarray(picture) * sidecar["scale"]
    assert values[0, 0] == 0
    np.testing.assert_allclose(values.ravel()[1:], depth[1].ravel()[1:], rtol=0.001)


def test_manifest_and_config_say_what_was_done(tmp_path):
    scene = make_scene(2)
    settings = {
        "seed": 7,
        "out": 'a "b"\\c\x7f\n',
        "max_views": None,
        "odd key": [1.5, True],
        "model": {"name": "nano"},
    }
    info = {
        "model": {"name": "nano", "licence": "Apache-2.0"},
        "config": settings,
        "seconds": {"network": 1.0},
        "peak_memory_mb": 0.5,
    }
    out = export(replace(scene, info=info, skipped=(("x.jpg", "truncated"),)), tmp_path / "out", "cameras,ply")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["licence"] == "Apache-2.0" and "config" not in manifest
    assert manifest["layout_version"] == 1 and manifest["scale"] == "relative"
    assert manifest["skipped"] == [{"name": "x.jpg", "reason": "truncated"}]
    assert set(manifest["seconds"]) == {"network", "export"} and manifest["peak_memory_mb"] > 10, "with the files"
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == present == {"cameras.json", "points.ply", "config.toml", "manifest.json"}
    read = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    assert read == {key: value for key, value in settings.items() if value is not None}


def test_preview_shows_the_cloud_and_does_not_depend_on_the_world_frame(tmp_path):
    from scipy.spatial.transform import Rotation

    from lean3r.export.preview import draw

    scene = make_scene(2, height=48, width=64)
    picture = draw(scene).astype(int)
    assert picture.shape == (700, 1600, 3)
    for panel in (picture[:, :800], picture[:, 800:]):
        drawn = np.ptp(panel, axis=2) > 24  # the background is grey
        assert 0.15 < drawn.mean() < 0.95
        rows, cols = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        assert max(np.ptp(rows) / 700, np.ptp(cols) / 800) > 0.85

    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()
    turned = replace(
        scene,
        cam_from_world=scene.cam_from_world @ turn.T,
        points=replace(
            scene.points,
            xyz=(scene.points.xyz @ turn[:3, :3].T).astype(np.float32),
            normals=scene.points.normals @ turn[:3, :3].T,
        ),
    )
    assert np.abs(draw(turned).astype(int) - picture).mean() < 3


def test_frusta_of_thousands_of_cameras_need_little_memory():
    scene = make_scene(2)
    poses = np.tile(np.eye(4), (3000, 1, 1))
    poses[:, 0, 3] = 0.4 * np.arange(3000)
    tracemalloc.start()
    reach = frustum_reach(replace(scene, cam_from_world=poses))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reach == pytest.approx(0.2) and most < 20e6, "half the way to the next camera"


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_frusta_without_depth_have_the_size_of_the_scene_in_any_unit(unit):
    scene = make_scene(3)
    poses = scene.cam_from_world.copy()
    poses[:, :3, 3] *= unit
    points = replace(scene.points, xyz=scene.points.xyz * np.float32(unit))
    bare = without_depth(replace(scene, cam_from_world=poses, points=points))
    assert frustum_reach(bare) == pytest.approx(unit * frustum_reach(scene), rel=0.2)


def test_formats_are_parsed_in_the_order_of_the_table():
    assert parse_formats("glb, ply") == parse_formats(["PLY", "glb"]) == ("ply", "glb")
    assert parse_formats("all") == tuple(EXPORTERS)
    with pytest.raises(UsageError, match="colmap"):
        parse_formats("colmp")


def test_points_and_their_views_are_those_of_certain_views_alone(tmp_path: Path) -> None:
    """Without depth, points that certain views measured are there, whichever view is listed first."""
    scene, count = make_scene(3), 30
    xyz = np.random.default_rng(0).uniform(-1, 1, (count, 3))
    view = np.array([[0, 1]] * 10 + [[1, 2]] * 10 + [[0, 0]] * 10, np.int32)
    point = np.repeat(np.arange(count, dtype=np.int32), 2)
    rgb, xy = np.zeros((count, 3), np.uint8), np.full((2 * count, 2), 5.0)
    sparse = SparsePoints(xyz, rgb, np.zeros(count), point, view.ravel(), xy)
    labels = ("uncertain", "refined", "refined")
    bare = with_cloud(without_depth(replace(scene, sparse=sparse, registration=labels)))
    assert len(bare.points.xyz) == 20 and set(bare.points.view) == {1}
    assert len(bare.of_certain().points.xyz) == 20


def test_formats_that_want_the_pictures_write_them_once(tmp_path: Path) -> None:
    """They are written side by side."""
    written: list[int] = []

    class Slow:
        def write(self, names: list[str], folder: Path) -> list[Path]:
            time.sleep(0.1)
            folder.mkdir()
            written.append(len(names))
            return []

    options, scene = ExportOptions(pictures=cast(Any, Slow())), make_scene(2)
    table = camera_table(scene, options)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: pictures.write(scene, tmp_path, options, table), range(2)))
    assert written == [2]
