"""Frames that a camera reads row by row while it turns are taken as if it had read them at once."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from lean3r.inputs.pictures import Pictures
from lean3r.refine import RefineOptions, refine
from lean3r.refine.features import camera_of
from lean3r.refine.job import Group
from lean3r.refine.rolling import Readout, at_once
from lean3r.refine.separate import difference_deg

sys.path.insert(0, str(Path(__file__).parent))
import scenes

FRAMES, STEP_S = 12, 0.1


def poses_at(frames: np.ndarray) -> np.ndarray:
    """cam_from_world [N, 4, 4] of a camera that walks, and shakes its head, at fractions of frames."""
    at = (frames - (FRAMES - 1) / 2) * 0.3
    sway = 16 * np.sin(0.6 * frames)
    return np.stack(
        [
            scenes.look((-5 * x + turn, 4.0 + x, 1.5 * x), (x, 0.15 * x**2 - 0.3, 0.1 * x))
            for x, turn in zip(at, sway, strict=True)
        ]
    )


def read_row_by_row(number: int, share: float) -> np.ndarray:
    """A frame [H, W] whose rows are read during such a share of the time between frames."""
    bands = np.array_split(np.arange(scenes.HEIGHT), 12 if share else 1)
    middles = np.array([band.mean() for band in bands]) / scenes.HEIGHT - 0.5
    shots = [scenes.photograph(pose)[0] for pose in poses_at(number + share * middles)]
    return np.concatenate([shot[band] for shot, band in zip(shots, bands, strict=True)])


@pytest.mark.parametrize("found", [Readout(0.0, 0.02), Readout(-0.03, 0.0)])
def test_features_are_moved_to_the_middle_of_the_time(found: Readout) -> None:
    camera = camera_of(Group(320, 240, "SIMPLE_RADIAL", (290.0, 160.0, 120.0, -0.05)))
    rate, rng = np.array([0.4, -1.2, 0.3]), np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-0.4, 0.4, (50, 2)), np.ones(50)])
    once = np.asarray(camera.img_from_cam(points))
    seen = once.copy()
    for _ in range(20):  # where a feature is seen says when it is
        since_s = (seen / [320, 240] - 0.5) @ found
        seen = np.asarray(camera.img_from_cam(Rotation.from_rotvec(rate * since_s[:, None]).apply(points)))
    assert np.abs(seen - once).max() > 2
    np.testing.assert_allclose(at_once(seen, camera, rate, found), once, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_film_of_a_rolling_shutter_has_the_cameras_of_the_middle_of_its_frames(share: float, tmp_path: Path) -> None:
    truth = poses_at(np.arange(float(FRAMES)))
    for number in range(FRAMES):
        Image.fromarray(read_row_by_row(number, share)).save(tmp_path / f"{number:03d}.png")
    scene = scenes.scene(truth)
    sources = tuple(replace(source, timestamp_s=STEP_S * i) for i, source in enumerate(scene.sources))
    found = refine(replace(scene, sources=sources), Pictures(tmp_path), RefineOptions(seconds=300.0))
    notes = [(note["code"], note["text"]) for note in found.info.get("warnings", [])]
    assert [code for code, _ in notes] == (["rolling-shutter"] if share else [])
    assert found.info["refinement"]["trusted"] == FRAMES
    assert difference_deg(found.cam_from_world, truth) < (2.5 if share else 0.1)  # 4.6 as if read at once
    if share:
        time_ms = int(re.findall(r"of (\d+) ms", notes[0][1])[0])
        assert time_ms == pytest.approx(1000 * share * STEP_S, abs=3)
