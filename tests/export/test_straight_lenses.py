"""Undistorted pictures of lenses that bend nothing, as programs read them that make smaller ones of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pycolmap
import pytest
from PIL import Image

from export.scene import make_scene
from lean3r.export import ExportOptions, export
from lean3r.export.lenses import Camera, undistort_camera
from lean3r.export.nerfstudio import of_angles
from lean3r.geometry.lens import colmap_camera, slopes_at
from lean3r.inputs.pictures import Pictures
from lean3r.types import Lens


@pytest.mark.parametrize(
    ("lens", "written"),
    [
        (("SIMPLE_PINHOLE", (260.0, 161.0, 118.0)), ("SIMPLE_PINHOLE", [260, 160, 117])),
        (("OPENCV", (260.0, 262.0, 161.0, 118.0, 0.0, 0.0, 0.0, 0.0)), ("PINHOLE", [260, 262, 160, 117])),
    ],
)
def test_undistorting_without_distortion_cuts_off_whole_pixels_for_the_factors(tmp_path, lens, written):
    """gsplat makes smaller pictures of its own, rounds their sides and scales intrinsics by what it divided before:
    that is wrong by a part of a pixel where sides are no multiples. Trainers read pinholes only, by name."""
    size, names = (323, 242), ["a.png", "b.png", "c.png"]
    scene = replace(make_scene(3, originals=[size] * 3, names=names), lenses=(Lens(*lens),) * 3)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for name in names:
        Image.fromarray(pixels).save(tmp_path / name)
    options = ExportOptions(pictures=Pictures([tmp_path]), undistort=True)
    out = export(scene, tmp_path / "out", "colmap", options=options)
    (camera,) = pycolmap.Reconstruction(out / "sparse" / "0").cameras.values()
    assert (camera.model.name, camera.params.tolist(), camera.width, camera.height) == (*written, 320, 240)
    with Image.open(out / "images" / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels[1:-1, 1:-2])


@pytest.mark.parametrize("size", [(1920, 1280), (480, 360), (360, 480)])
def test_a_lens_that_sees_behind_its_camera_in_the_corners(size: tuple[int, int]) -> None:
    """There is no ray ahead; and the undistorted picture is that of a lens which sees a little less."""
    width, height = size
    edge, ahead = Camera(fov(size, 89.0), *size), Camera(fov(size, 91.0), *size)
    corners = np.array([[0.5, 0.5], [width - 0.5, 0.5], [width - 0.5, height - 0.5]])
    inside = np.array([[width / 2, 0.5], [0.5, height / 2], [width / 2, height / 2], [3.0, 40.0]])
    assert np.isnan(slopes_at(ahead.lens, *size, corners)).all()
    slopes = slopes_at(ahead.lens, *size, inside)
    assert np.isfinite(slopes).all() and ((inside - np.array(size) / 2) * slopes >= 0).all()
    near, found = undistort_camera(edge), undistort_camera(ahead)
    assert np.allclose([found.width, found.height], [near.width, near.height], rtol=0.05)
    assert np.allclose(found.lens.params, near.lens.params, rtol=0.05)
    rows, cols = np.mgrid[0.5 : found.height : found.height - 1, 0.5 : found.width : found.width - 1]
    rays = slopes_at(found.lens, found.width, found.height, np.column_stack([cols.ravel(), rows.ravel()]))
    seen = np.asarray(colmap_camera(ahead.lens, *size).img_from_cam(np.column_stack([rays, np.ones(4)])))
    assert (seen > -1).all() and (seen < np.array(size) + 1).all(), "no empty pixels"


def fov(size: tuple[int, int], corner_deg: float) -> Lens:
    """A fisheye that sees the corners of its pictures by such an angle from its axis."""
    width, height = size
    focal = 0.5 * max(size)
    omega = np.radians(corner_deg) * focal / (np.hypot(width, height) / 2)
    return Lens("FOV", (focal, focal, width / 2, height / 2, float(omega)))


def test_a_fisheye_that_bends_nothing_is_written_for_nerfstudio() -> None:
    lens = of_angles(Lens("FOV", (250.0, 250.0, 240.0, 180.0, 0.0)), 480, 360)
    points = np.array([[0.3, -0.2, 1.0], [-0.9, 0.7, 1.0]])
    found = np.asarray(colmap_camera(lens, 480, 360).img_from_cam(points))
    assert np.allclose(found, points[:, :2] * 250 + [240, 180], atol=0.02)
