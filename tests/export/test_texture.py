"""A mesh with a texture shows the pictures at their own size, where they belong, and nothing that passed by."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from PIL.JpegImagePlugin import get_sampling

from export.gltf import read_glb
from export.scene import colours, make_scene, render
from lean3r.errors import MissingExtraError, UsageError
from lean3r.export import EXPORTERS, ExportOptions, export
from lean3r.export.gltf import gltf_from_world
from lean3r.export.texture import gains, textured
from lean3r.export.unwrap import covered, simplified
from lean3r.geometry.surface import vertex_normals
from lean3r.inputs.pictures import Pictures
from lean3r.types import Reconstruction


def photographs(scene: Reconstruction, folder: Path) -> Pictures:
    """Pictures of the room at the size of the originals."""
    folder.mkdir()
    for source, pose, intrinsics in zip(scene.sources, scene.cam_from_world, scene.intrinsics, strict=True):
        sx, sy, ox, oy = source.original_from_network
        large = np.array([[sx, 0, ox], [0, sy, oy], [0, 0, 1]]) @ intrinsics
        Image.fromarray(render(pose, large, source.height, source.width)[1]).save(folder / source.name, quality=95)
    return Pictures(folder)


def grid(size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of the room's far wall."""
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, size), np.linspace(-0.8, 0.4, size))
    vertices = np.stack([x, y, np.full_like(x, 4.0)], -1).reshape(-1, 3)
    corner = (np.arange(size - 1)[:, None] * size + np.arange(size - 1)).ravel()
    quads = [(corner, corner + 1, corner + size), (corner + 1, corner + size + 1, corner + size)]
    faces = np.concatenate([np.stack(quad, 1) for quad in quads])
    towards = vertex_normals(vertices, faces)[0, 2] < 0
    return vertices, faces if towards else faces[:, ::-1]


def shown_at(found, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points [F, 3] of the faces at shares [3] of their corners, and the texture's colours there."""
    points = np.einsum("k,fkc->fc", share, found.vertices[found.faces])
    height, width = found.texture.shape[:2]
    at = np.einsum("k,fkc->fc", share, found.uv[found.faces]) * [width, height]
    col, row = np.floor(at).astype(int).T
    return points, found.texture[row.clip(0, height - 1), col.clip(0, width - 1)]


@pytest.mark.parametrize("originals", [None, [(480, 360), (300, 440), (640, 200), (480, 360)]])
def test_the_texture_has_the_detail_of_the_pictures(originals, tmp_path):
    scene = make_scene(4, originals=originals)
    vertices, faces = grid()
    rgb = np.zeros((len(vertices), 3), np.uint8)
    errors = {}
    for name, pictures in (("small", None), ("large", photographs(scene, tmp_path / "photos"))):
        found = textured(vertices, faces, rgb, scene, pictures)
        assert found.unseen < 0.01
        points, shown = shown_at(found, np.array([0.3, 0.3, 0.4]))
        errors[name] = np.abs(shown.astype(int) - colours(points)).mean()
        np.testing.assert_allclose(found.normals, [[0, 0, -1]] * len(found.normals), atol=1e-6)
    assert errors["large"] < 3 and errors["large"] < 0.6 * errors["small"]


def test_what_is_in_front_of_the_surface_is_not_on_it(tmp_path):
    """The box hides a part of the wall from some views; a hand before the lens is in one picture only."""
    scene = make_scene(7)
    images, depth = scene.images.copy(), scene.depth
    images[3, 10:50, 30:60] = (255, 0, 0)
    vertices, faces = grid(20)
    found = textured(vertices, faces, np.zeros((len(vertices), 3), np.uint8), replace(scene, images=images), None)
    points, shown = shown_at(found, np.ones(3) / 3)
    wrong = np.abs(shown.astype(int) - colours(points)).max(1)
    assert np.quantile(wrong, 0.95) < 60 and (shown[:, 0] > shown[:, 1].astype(int) + 150).mean() < 0.01
    near = np.where(depth > 0, 0.5 * depth, 0)  # everything is nearer than the wall: no view sees it
    hidden = textured(vertices, faces, np.full((len(vertices), 3), 77, np.uint8), replace(scene, depth=near), None)
    assert hidden.unseen == 1 and (hidden.texture == 77).all()


def test_pictures_of_different_exposure_make_no_patches():
    scene = make_scene(7)
    vertices, faces = grid()
    exposure = np.array([1, 0.7, 1, 0.75, 1.1, 0.8, 1])
    images = (scene.images * exposure[:, None, None, None]).round().clip(0, 255).astype(np.uint8)
    assert np.ptp(np.log(gains(np.full((7, 40, 3), 100.0) * exposure[:, None, None]) * exposure[:, None])) < 1e-3
    shown = {}
    for name, given in (("equal", scene), ("different", replace(scene, images=images))):
        found = textured(vertices, faces, np.zeros((len(vertices), 3), np.uint8), given, None)
        shown[name] = shown_at(found, np.ones(3) / 3)[1].astype(float)
    ratio = shown["different"] / shown["equal"]
    assert ratio.std() < 0.03 and abs(np.log(ratio.mean()) - np.log(exposure).mean()) < 0.05


def test_the_unit_of_the_world_does_not_matter():
    """Nor does its origin: a turntable in metres, a survey in map coordinates."""
    vertices, faces = grid()
    scene = make_scene(4)
    shown = []
    for scale, origin in ((1.0, 0.0), (0.002, 0.0), (1.0, 5e6)):
        poses = scene.cam_from_world.copy()
        poses[:, :3, 3] = scale * poses[:, :3, 3] - poses[:, :3, :3] @ np.full(3, origin)
        moved = replace(scene, cam_from_world=poses, depth=scale * scene.depth)
        found = textured(scale * vertices + origin, faces, np.zeros((len(vertices), 3), np.uint8), moved, None)
        shown.append(shown_at(found, np.ones(3) / 3)[1].astype(int))
    assert np.abs(shown[1] - shown[0]).mean() < 2 and np.abs(shown[2] - shown[0]).mean() < 2


def test_pictures_that_are_gone_and_meshes_without_area(tmp_path, caplog):
    scene = make_scene(3)
    pictures = photographs(scene, tmp_path / "photos")
    vertices, faces = grid()
    black = np.zeros((len(vertices), 3), np.uint8)
    (tmp_path / "photos" / scene.names[0]).unlink()
    assert textured(vertices, faces, black, scene, pictures).unseen < 0.05
    assert "1 of 3 pictures cannot be read again (IMG_000.jpg): they are not in the texture" in caplog.text
    others = replace(scene, sources=make_scene(3, names=["a", "b", "c"]).sources)
    assert textured(vertices, faces, black, others, pictures).unseen < 0.05
    assert "3 of 3 pictures cannot be read again (a): they are not in the texture, which has" in caplog.text
    assert textured(np.zeros((3, 3)), np.array([[0, 1, 2]]), black[:3], scene, None) is None
    with pytest.raises(UsageError, match="texture_from is 'photos/'; expected the Pictures of the scene"):
        ExportOptions(texture=True, texture_from="photos/")


def test_texels_are_on_their_triangles():
    corners = np.array([[3.2, 4.1], [41.7, 9.3], [20.4, 44.8], [70.1, 5.5], [104.6, 30.2], [66.3, 47.9]])
    corners = np.concatenate([corners, [[55.5, 20.5]] * 3])  # the last has no area
    faces = np.array([[0, 1, 2], [5, 4, 3], [6, 7, 8]])
    found = covered(corners, faces, 50, 110)
    row, col = np.divmod(found.index, 110)
    face_of, shares = found.at(np.arange(len(found.index)))
    at = np.einsum("tk,tkc->tc", shares, corners[faces[face_of]])
    np.testing.assert_allclose(at, np.stack([col, row], 1) + 0.5, atol=1e-3)
    assert set(face_of) == {0, 1} and len(np.unique(found.index)) == len(found.index)
    inside = (shares > 0).all(1)
    for face in (0, 1):
        a, b, c = corners[faces[face]]
        area = abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2
        assert (inside & (face_of == face)).sum() == pytest.approx(area, rel=0.03)


def test_the_file_is_read_by_others(tmp_path):
    scene = make_scene(4)
    pictures = photographs(scene, tmp_path / "photos")
    options = ExportOptions(texture=True).with_pictures(pictures, {"no"}, scene.sources)
    out = export(scene, tmp_path / "out", "mesh", options=options)
    tree, _ = read_glb(out / "mesh.glb")
    assert "COLOR_0" not in tree["meshes"][0]["primitives"][0]["attributes"]
    assert len(tree["materials"]) == 1, "a material that nothing has is what validators complain of"
    mesh = trimesh.load(out / "mesh.glb", force="mesh")
    picture = mesh.visual.material.baseColorTexture
    content = (out / "mesh.glb").read_bytes()
    file = Image.open(io.BytesIO(content[content.index(b"\xff\xd8\xff") :]))
    assert get_sampling(file) == 0  # 4:4:4: no colours of other charts along the borders of each
    told = json.loads((out / "manifest.json").read_text())["mesh"]["texture"]
    assert picture.size == tuple(told["size"]) and len(mesh.faces) == told["triangles"] <= 110_000
    assert told["unseen"] < 0.05
    seen = trimesh.visual.color.uv_to_color(mesh.visual.uv, picture)[:, :3]
    world = mesh.vertices @ gltf_from_world(scene)
    assert np.median(np.abs(seen.astype(int) - colours(world))) < 12
    assert not (out / "images").exists()


@pytest.mark.parametrize("views", [1, 2])
def test_few_views_and_large_meshes(views, tmp_path):
    files = EXPORTERS.get("mesh")(make_scene(views), tmp_path, ExportOptions(texture=True))
    assert [file.name for file in files] == ["mesh.ply", "mesh.glb"]
    far = grid(300)[0] + 1e4
    far[:, 2] += np.random.default_rng(0).normal(0, 0.01, len(far))
    less, faces = simplified(far, grid(300)[1])
    assert len(faces) <= 100_100 and np.abs(less.mean(0) - far.mean(0)).max() < 0.1
    assert len(np.unique(np.sort(faces, axis=1), axis=0)) == len(faces)
    np.testing.assert_allclose(np.linalg.norm(vertex_normals(less, faces), axis=1), 1)


def test_a_mesh_is_simplified_alike_in_any_unit():
    vertices, faces = grid(240)
    vertices[:, 2] += np.random.default_rng(0).normal(0, 0.001, len(vertices))
    found = [simplified(unit * vertices, faces) for unit in (1.0, 1e-4, 1e7)]
    for unit, (less, kept) in zip((1e-4, 1e7), found[1:], strict=True):
        assert len(kept) <= 100_100, unit
        assert abs(less[:, 2].std() / unit - found[0][0][:, 2].std()) < 2e-5, unit


def test_missing_packages_are_said_before_the_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "xatlas", None)
    with pytest.raises(MissingExtraError, match=r"a texture.*lean3r\[mesh\]"):
        ExportOptions(texture=True).check({"no"})


def test_a_texture_needs_the_mesh(tmp_path):
    with pytest.raises(UsageError, match="add mesh"):
        export(make_scene(), tmp_path / "out", "glb,ply", options=ExportOptions(texture=True))
    assert not (tmp_path / "out").exists()
