"""The mesh lies on the surfaces, in their colours, faces the cameras, and stays within bounds."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import trimesh

from export.scene import BOX, ROOM, look_at, make_scene, reconstruction
from lean3r.errors import MissingExtraError, UsageError
from lean3r.export import DEFAULT_FORMATS, EXPORTERS, ExportOptions, export, mesh
from lean3r.export.mesh import _merge_pieces
from lean3r.geometry import tsdf
from lean3r.geometry.consistency import Scene
from lean3r.geometry.lens import Optics
from lean3r.geometry.surface import boundary_loops
from lean3r.types import Reconstruction, Source


def off(points: np.ndarray) -> np.ndarray:
    """Distance of points to the walls of the room or the sides of the box."""
    walls = np.minimum(np.abs(points - ROOM[0]), np.abs(points - ROOM[1])).min(axis=1)
    outside = np.linalg.norm(np.maximum(np.maximum(BOX[0] - points, points - BOX[1]), 0), axis=1)
    inside = np.minimum(points - BOX[0], BOX[1] - points).min(axis=1)
    return np.minimum(walls, np.where(inside > 0, inside, outside))


def test_mesh_lies_on_the_surfaces_and_faces_the_cameras(tmp_path):
    scene = make_scene(4, height=60, width=80)
    files = EXPORTERS.get("mesh")(scene, tmp_path, ExportOptions())
    assert [f.name for f in files] == ["mesh.ply", "mesh.glb"]
    found = trimesh.load(files[0], process=False)
    assert len(found.faces) > 5000
    assert np.median(off(found.vertices)) < 0.002 and np.percentile(off(found.vertices), 99) < 0.08
    centres = np.stack([-p[:3, :3].T @ p[:3, 3] for p in scene.cam_from_world])
    towards = ((centres.mean(0) - found.triangles_center) * found.face_normals).sum(1) > 0
    assert towards.mean() > 0.95
    # Inner edges belong to two triangles, also where blocks meet; only the rim of what was seen is open.
    _, faces_of_edge = np.unique(np.sort(found.edges, axis=1), axis=0, return_counts=True)
    assert (faces_of_edge == 2).mean() > 0.92 and faces_of_edge.max() == 2
    nearest = trimesh.PointCloud(scene.points.xyz).kdtree.query(found.vertices[::50])[1]
    difference = np.abs(found.visual.vertex_colors[::50, :3].astype(int) - scene.points.rgb[nearest])
    assert np.median(difference) < 12
    glb = trimesh.load(files[1], force="mesh")
    np.testing.assert_allclose(np.sort(glb.bounds[:, 1]), np.sort(-found.bounds[:, 1]), atol=1e-5)


def sphere(views: int = 20, size: int = 48) -> Reconstruction:
    """A sphere of radius 1 from all around, without anything behind it."""
    centre, number = np.array([0.3, -0.2, 0.1]), np.arange(views) + 0.5
    height, turn = 1 - 2 * number / views, number * np.pi * (3 - 5**0.5)
    across = np.sqrt(1 - height**2)
    eyes = centre + 4 * np.stack([across * np.cos(turn), height, across * np.sin(turn)], axis=1)
    poses = np.stack([look_at(eye, centre) for eye in eyes])
    intrinsics = np.array([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1]])
    y, x = np.meshgrid(*[np.arange(size) + 0.5] * 2, indexing="ij")
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
    along, square = rays @ np.array([0, 0, 4.0]), (rays**2).sum(axis=-1)
    inside = along**2 - square * (16 - 1)
    depth = np.where(inside > 0, (along - np.sqrt(inside.clip(0))) / square, 0).astype(np.float32)
    arrays = {
        "images": np.full((views, size, size, 3), 128, np.uint8),
        "depth": np.stack([depth] * views),
        "conf": np.ones((views, size, size), np.float32),
        "mask": np.ones((views, size, size), bool),
        "cam_from_world": poses,
        "intrinsics": np.stack([intrinsics] * views),
    }
    return reconstruction(tuple(Source(f"{view}.png", size, size) for view in range(views)), arrays)


def test_a_closed_object_is_closed_across_blocks_and_the_manifest_says_so(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(mesh, "_merge_pieces", lambda *parts: found.append(parts) or merge(*parts))
    merge = _merge_pieces
    scene = sphere()
    out = export(scene, tmp_path / "out", "mesh", options=ExportOptions(mesh_voxel=0.05))
    report = json.loads((out / "manifest.json").read_text())["mesh"]
    read = trimesh.load(out / "mesh.ply", process=False)
    assert report == {
        "vertices": len(read.vertices), "triangles": len(read.faces), "components": 1, "boundary_loops": 0,
    }  # fmt: skip
    assert read.is_watertight and read.is_winding_consistent and read.euler_number == 2
    # Each block alone is open at its border, so that it takes the shared vertices to close the sphere.
    assert len(found[0][1]) > 8 and all(boundary_loops(faces) for faces in found[0][1])


def test_samples_that_blocks_share_are_the_same_and_no_surface_ends_where_blocks_do():
    """Far walls have pixels wider than blocks, and views that see little of a block see as little of its neighbour."""
    scene = make_scene(3, height=40, width=52)
    depth = np.where(scene.depth > 4, scene.depth, 0.3 * scene.depth)
    maps = Scene(depth, scene.cam_from_world, Optics.of(scene))
    grid = tsdf.plan_grid(maps, 0.03, 0.12, 60_000)._replace(spare=60_000)
    planned = len(grid.blocks)
    blocks = {tuple(b.start // 16): b for b in tsdf.integrate(maps, np.ones(depth.shape), scene.images, grid)}
    assert len(blocks) > planned
    for place, block in blocks.items():
        for axis in range(3):
            beside = tuple(np.add(place, np.eye(3, dtype=int)[axis]))
            border = block.distance.take(16, axis)
            if beside in blocks:
                np.testing.assert_array_equal(border, blocks[beside].distance.take(0, axis))
            else:
                cells = np.stack([border[:-1, :-1], border[1:, :-1], border[:-1, 1:], border[1:, 1:]])
                assert not ((cells.min(axis=0) <= 0) & (cells.max(axis=0) > 0)).any()


@pytest.mark.parametrize("size", [(48, 64), (85, 48)], ids=["landscape", "portrait"])
def test_one_view_makes_a_mesh(size):
    found = mesh.surface(make_scene(1, height=size[0], width=size[1]))
    assert len(found.faces) > 300 and np.median(off(found.vertices)) < 0.005


def test_no_depth_makes_an_empty_ply_alone(tmp_path):
    scene = make_scene(2, height=24, width=32)
    files = EXPORTERS.get("mesh")(replace(scene, depth=np.zeros_like(scene.depth)), tmp_path, ExportOptions())
    assert [f.name for f in files] == ["mesh.ply"] and b"element vertex 0" in files[0].read_bytes()


def test_voxels_grow_if_the_scene_is_too_large(monkeypatch, caplog):
    monkeypatch.setattr(mesh, "MOST", 60)
    found = mesh.surface(make_scene(2, height=48, width=64), voxel=0.001)
    assert 100 < len(found.faces) < 40_000
    assert "are too many for this scene" in caplog.text


def test_pockets_that_merged_vertices_leave_are_removed():
    """Two triangles back to back between the same corners: the edges of the rest then have two triangles, not four."""
    apart = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1 + 1e-5, 0], [1, 1, 0]])
    faces = np.array([[0, 1, 2], [1, 0, 3], [1, 4, 2]])
    found = _merge_pieces([apart], [faces], [np.zeros((5, 3))])
    assert len(found.faces) == 1
    np.testing.assert_allclose(np.sort(found.vertices[found.faces[0]], 0), np.sort(apart[[1, 4, 2]], 0), atol=1e-4)


def test_a_floating_patch_that_others_see_through_is_removed():
    scene = make_scene(6, height=60, width=80)
    depth = scene.depth.copy()
    depth[3, 20:32, 30:48] = 0.8
    found = mesh.surface(replace(scene, depth=depth))
    pose = scene.cam_from_world[3]
    z = found.vertices @ pose[2, :3] + pose[2, 3]
    clean = mesh.surface(scene).vertices @ pose[2, :3] + pose[2, 3]
    assert (z < 1.0).sum() <= 1.1 * (clean < 1.0).sum() + 20


def test_mesh_is_optional_and_names_its_extra(monkeypatch, tmp_path):
    assert not {"mesh", "nerfstudio"} & set(DEFAULT_FORMATS)
    with pytest.raises(UsageError, match="mesh_voxel"):
        ExportOptions(mesh_voxel=0.0)
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(MissingExtraError, match=r"lean3r\[mesh\]"):
        EXPORTERS.get("mesh")(make_scene(1, height=24, width=32), tmp_path, ExportOptions())
