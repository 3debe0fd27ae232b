"""Portrait, wide, odd and mixed pictures, one or several, through reading into every model of the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts.tiny import tiny
from PIL import Image

import lean3r
from lean3r.models import MODELS

SHAPES = {
    "portrait": [(60, 107)],
    "wide": [(211, 71), (211, 71)],
    "odd": [(97, 101), (97, 101), (97, 101)],
    "mixed": [(120, 80), (80, 120), (101, 97), (200, 60)],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(MODELS))
def test_shapes(name: str, shape: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index, size in enumerate(SHAPES[shape]):
        Image.fromarray(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)).resize(size).save(tmp_path / f"{index}.png")
    model = tiny(name)
    scene = lean3r.reconstruct(model, tmp_path, resolution=5 * model.patch, points=lean3r.PointOptions(max_points=100))
    assert [(s.width, s.height) for s in scene.sources] == SHAPES[shape]
    height, width = scene.depth.shape[1:]
    assert height % model.patch == 0 and width % model.patch == 0
    assert scene.mask.all() == (shape != "mixed"), "only pictures of several shapes are padded"
    assert (scene.depth[scene.mask] > 0).all() and (scene.depth[~scene.mask] == 0).all()
    assert np.isfinite(scene.original_intrinsics).all() and np.isfinite(scene.cam_from_world).all()
    for source, mask in zip(scene.sources, scene.mask, strict=True):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        scale_x, scale_y, left, top = source.original_from_network
        assert scale_x == scale_y, "one scale for both directions: nothing is distorted"
        corner = np.array([scale_x * cols[0] + left, scale_y * rows[0] + top])
        end = np.array([scale_x * (cols[-1] + 1) + left, scale_y * (rows[-1] + 1) + top])
        cropped = model.patch * scale_x
        assert (corner >= -1e-9).all() and (corner <= cropped).all()
        assert (end <= np.array([source.width, source.height]) + 1e-9).all()
        assert (end >= np.array([source.width, source.height]) - cropped).all()
