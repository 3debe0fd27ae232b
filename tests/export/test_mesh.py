"""The mesh lies on the surfaces, in their colours, faces the cameras, and stays within bounds."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import trimesh

from export.scene import BOX, ROOM, make_scene
from lean3r.errors import MissingExtraError, UsageError
from lean3r.export import DEFAULT_FORMATS, EXPORTERS, ExportOptions, mesh


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
