"""The middle of a film's lens is found where it is not that of the pictures."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from lean3r.inputs.pictures import Pictures
from lean3r.refine import RefineOptions, refine
from lean3r.refine.separate import difference_deg

sys.path.insert(0, str(Path(__file__).parent))
import scenes

FRAMES, CENTRE = 8, (4, -9)  # pixels, of 320 x 240


def walk() -> np.ndarray:
    """cam_from_world [N, 4, 4] of a camera that walks, looks around and nods."""
    at = (np.arange(FRAMES) - (FRAMES - 1) / 2) * 0.3
    turn, nod = 16 * np.sin(0.6 * np.arange(FRAMES)), 8 * np.cos(0.9 * np.arange(FRAMES))
    steps = zip(at, turn, nod, strict=True)
    return np.stack(
        [scenes.look((y - 5 * x, 4 + x + up, 1.5 * x), (x, 0.15 * x**2 - 0.3, 0.1 * x)) for x, y, up in steps]
    )


def test_the_middle_of_a_lens_is_where_the_frames_have_it(tmp_path: Path) -> None:
    """Where it is that of the pictures it stays: test_rolling.py."""
    truth = walk()
    for number, pose in enumerate(truth):
        Image.fromarray(scenes.photograph(pose, centre=CENTRE)[0]).save(tmp_path / f"{number:03d}.png")
    scene = scenes.scene(truth)
    sources = tuple(replace(source, timestamp_s=0.1 * i) for i, source in enumerate(scene.sources))
    found = refine(replace(scene, sources=sources), Pictures(tmp_path), RefineOptions(seconds=300.0))
    assert "warnings" not in found.info and found.info["refinement"]["trusted"] == FRAMES
    off = found.original_intrinsics[:, :2, 2] - scenes.INTRINSICS[:2, 2] - CENTRE
    assert np.abs(off).max() < 2  # pixels
    assert difference_deg(found.cam_from_world, truth) < 0.2
