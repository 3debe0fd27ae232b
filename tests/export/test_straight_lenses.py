"""Undistorted pictures of lenses that bend nothing, as programs read them that make smaller ones of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pycolmap
import pytest
from PIL import Image

from export.scene import make_scene
from lean3r.export import ExportOptions, export
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
