"""Films whose crop was moved over the frames of the camera are taken with the middle of the lens where it was."""

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

FRAMES = 8


def test_a_film_whose_crop_moves_has_a_middle_of_the_lens_for_each_frame(tmp_path: Path) -> None:
    frames = np.arange(FRAMES)
    at, turn, nod = (frames - (FRAMES - 1) / 2) * 0.4, 16 * np.sin(0.9 * frames), 8 * np.cos(1.3 * frames)
    steps = zip(at, turn, nod, strict=True)
    truth = np.stack(
        [scenes.look((y - 5 * x, 4 + x + up, 1.5 * x), (x, 0.15 * x**2 - 0.3, 0.1 * x)) for x, y, up in steps]
    )
    away = np.round(32 * np.sin(frames[:, None] * (1.1, 1.7)))
    away -= np.round(np.median(away, axis=0))
    for number, (pose, (x, y)) in enumerate(zip(truth, away.tolist(), strict=True)):
        Image.fromarray(scenes.photograph(pose, centre=(x, y))[0]).save(tmp_path / f"{number:03d}.png")
    scene = scenes.scene(truth)
    sources = tuple(replace(source, timestamp_s=0.1 * i) for i, source in enumerate(scene.sources))
    found = refine(replace(scene, sources=sources), Pictures(tmp_path), RefineOptions(seconds=300.0))
    assert [note["code"] for note in found.info.get("warnings", [])] == ["moving-crop"]
    assert found.info["refinement"]["trusted"] == FRAMES
    assert difference_deg(found.cam_from_world, truth) < 1.0
    middles = np.stack([matrix[:2, 2] for matrix in found.original_intrinsics]) - scenes.INTRINSICS[:2, 2]
    assert np.abs(middles - away).max() < 3  # pixels
