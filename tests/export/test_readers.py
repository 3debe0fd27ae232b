"""PLY and GLB as programs read them that share no code with ours, and what writing them imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from export.gltf import read_glb
from export.scene import make_scene
from lean3r.export import EXPORTERS, ExportOptions
from lean3r.export.gltf import GLTF_FROM_OPENCV, Geometry, glb_bytes
from lean3r.export.mesh import surface
from lean3r.export.ply import ply_bytes
from lean3r.geometry.surface import vertex_normals

VIEWS = make_scene(4, height=48, width=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """points.ply, scene.glb, mesh.ply and mesh.glb of one scene."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("ply", "glb", "mesh"):
        EXPORTERS.get(name)(VIEWS, folder, ExportOptions())
    return folder


def test_open3d_reads_points_and_surfaces(folder):
    open3d = pytest.importorskip("open3d", reason="pip install open3d: 400 MB, so no dependency of the tests")
    cloud = open3d.io.read_point_cloud(str(folder / "points.ply"))
    np.testing.assert_array_equal(np.asarray(cloud.points, np.float32), VIEWS.points.xyz)
    np.testing.assert_array_equal((255 * np.asarray(cloud.colors)).round(), VIEWS.points.rgb)
    np.testing.assert_array_equal(np.asarray(cloud.normals, np.float32), VIEWS.points.normals)
    found = surface(VIEWS)
    for name, axes in (("mesh.ply", np.eye(3)), ("mesh.glb", GLTF_FROM_OPENCV)):
        mesh = open3d.io.read_triangle_mesh(str(folder / name))
        corners = np.asarray(mesh.vertices)[np.asarray(mesh.triangles)]
        np.testing.assert_allclose(corners, (found.vertices @ axes)[found.faces], atol=1e-6)
    assert open3d.io.read_triangle_model(str(folder / "scene.glb")).meshes


def test_trimesh_and_plyfile_read_normals_and_confidences(folder):
    with open(folder / "points.ply", "rb") as file:
        vertex = trimesh.exchange.ply.load_ply(file)["metadata"]["_ply_raw"]["vertex"]
    names = ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "alpha", "confidence"]
    assert list(vertex["properties"]) == names
    columns = [*VIEWS.points.xyz.T, *VIEWS.points.normals.T, *VIEWS.points.rgb.T, np.full(len(VIEWS.points.xyz), 255)]
    for name, values in zip(names, [*columns, VIEWS.points.conf], strict=True):
        np.testing.assert_array_equal(vertex["data"][name].ravel(), values)
    plyfile = pytest.importorskip("plyfile", reason="pip install plyfile")
    read = plyfile.PlyData.read(str(folder / "points.ply"))["vertex"]
    np.testing.assert_array_equal(np.stack([read[name] for name in names[3:6]], axis=1), VIEWS.points.normals)


def test_pygltflib_reads_what_the_tree_says(folder):
    pygltflib = pytest.importorskip("pygltflib", reason="pip install pygltflib")
    for name in ("scene.glb", "mesh.glb"):
        gltf = pygltflib.GLTF2().load(str(folder / name))
        blob, (_, arrays) = gltf.binary_blob(), read_glb(folder / name)
        assert all(gltf.meshes[node.mesh].name == node.name for node in gltf.nodes if node.camera is None)
        for mesh in gltf.meshes:
            attributes = mesh.primitives[0].attributes
            accessor = gltf.accessors[attributes.POSITION]
            view = gltf.bufferViews[accessor.bufferView]
            xyz = np.frombuffer(blob, "<f4", 3 * accessor.count, view.byteOffset).reshape(-1, 3)
            np.testing.assert_array_equal(xyz, arrays[attributes.POSITION])
            np.testing.assert_array_equal([xyz.min(axis=0), xyz.max(axis=0)], [accessor.min, accessor.max])


def test_trimesh_has_the_same_normals_and_would_write_the_same_ply(folder):
    mesh = trimesh.load(folder / "mesh.ply", process=False)
    glb = trimesh.load(folder / "mesh.glb", force="mesh", process=False)
    np.testing.assert_allclose(glb.vertex_normals, mesh.vertex_normals @ GLTF_FROM_OPENCV, atol=1e-5)
    (folder / "theirs.ply").write_bytes(trimesh.exchange.ply.export_ply(mesh, vertex_normal=True))
    theirs = trimesh.load(folder / "theirs.ply", process=False)
    np.testing.assert_array_equal(mesh.faces, theirs.faces)
    ours, same = (each.metadata["_ply_raw"]["vertex"]["data"] for each in (mesh, theirs))
    assert ours.dtype == same.dtype
    for name in ours.dtype.names:
        is_normal = name in ("nx", "ny", "nz")
        np.testing.assert_allclose(ours[name], same[name], rtol=0, atol=1e-5 if is_normal else 0)


def test_triangles_without_area_and_points_without_triangles_have_no_normal():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [5, 5, 5]], float)
    normals = vertex_normals(vertices, np.array([[0, 1, 2], [0, 1, 3]]))
    np.testing.assert_array_equal(normals, [[0, 0, 1]] * 3 + [[0, 0, 0]] * 2)


def test_files_without_anything_in_them_are_valid(tmp_path):
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    assert b"element vertex 0\n" in ply_bytes(*nothing) and b"element face 0\n" in ply_bytes(*nothing, nothing[0])
    (tmp_path / "none.glb").write_bytes(glb_bytes({"one": Geometry(np.ones((1, 3)), np.ones((1, 3), np.uint8))}))
    assert read_glb(tmp_path / "none.glb")[1][0].tolist() == [[1, 1, 1]]


def test_a_run_imports_neither_scipy_nor_a_mesh_library(tmp_path):
    code = (
        "import sys; from export.scene import make_scene; from lean3r.export import export\n"
        f"export(make_scene(2, height=24, width=32), {str(tmp_path / 'out')!r})\n"
        "assert not {'scipy', 'trimesh', 'networkx', 'sympy', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
