"""Insets that turn with the camera, such as the map of a game."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scenes
from PIL import Image

from lean3r.inputs.pictures import Pictures
from lean3r.refine import KnownCameras, RefineOptions, attempts, features, matching, run
from lean3r.refine.inset import inset
from lean3r.refine.job import PICTURES
from lean3r.refine.overlay import CELL

WIDTH, HEIGHT, FOCAL = 540, 360, 500.0
FRAMES = 14
Pairs = tuple[list[np.ndarray], list[np.ndarray]]


def projected(points: np.ndarray, pan_rad: float, roll_rad: float, along: float) -> np.ndarray:
    """Pixels [M, 2] of points in front of a camera that pans, is rolled, and walks to the side; NaN beyond them."""
    away = points - (along, 0, 0)
    c, s = np.cos(pan_rad), np.sin(pan_rad)
    away = away @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    xy = FOCAL * away[:, :2] / away[:, 2:] @ np.array([[c, s], [-s, c]]) + (WIDTH / 2, HEIGHT / 2)
    is_seen = (away[:, 2] > 0.5) & (xy >= 0).all(1) & (xy < (WIDTH, HEIGHT)).all(1)
    return np.where(is_seen[:, None], xy, np.nan)


def pairs_of(frames: list[np.ndarray]) -> Pairs:
    """The matches of all pairs of frames, pixels [M, 2] of the same things in each, that have 15."""
    both = [(a, b, ~np.isnan(a + b).any(1)) for a, b in combinations(frames, 2)]
    both = [each for each in both if each[2].sum() >= 15]
    noise = np.random.default_rng(1)
    return tuple(  # type: ignore[return-value]
        [each[side][each[2]] + noise.normal(0, 0.3, (each[2].sum(), 2)) for each in both] for side in (0, 1)
    )


def walk(pan_rad: np.ndarray, roll_rad: np.ndarray, on_map_rad: np.ndarray | None, seen: slice = slice(None)) -> Pairs:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-9, 9, 900), rng.uniform(-2, 2, 900), rng.uniform(4, 8, 900)])[seen]
    frames = [projected(points, *at) for at in zip(pan_rad, roll_rad, np.arange(FRAMES) * 0.05, strict=True)]
    if on_map_rad is not None:
        on_map = np.sqrt(rng.uniform(0, 1, 40)) * np.exp(2j * np.pi * rng.uniform(0, 1, 40)) * 45
        turned = [on_map * np.exp(1j * turn) for turn in on_map_rad]
        maps = [np.column_stack([each.real + 480, each.imag + 300]) for each in turned]
        frames = [np.vstack(each) for each in zip(frames, maps, strict=True)]
    return pairs_of(frames)


PAN, ROLL, REST = np.linspace(0, 1.8, FRAMES), np.linspace(0, 0.5, FRAMES), np.zeros(FRAMES)


@pytest.mark.parametrize("roll", [REST, 0.3 * ROLL])
def test_a_map_that_turns_with_the_camera_is_found_where_it_is(roll: np.ndarray) -> None:
    found = inset(*walk(PAN, roll, PAN), WIDTH, HEIGHT)
    row, column = np.argwhere(found).T
    assert found[300 // CELL, 480 // CELL]
    assert np.hypot(CELL * column + 8 - 480, CELL * row + 8 - 300).max() < 45 + 2 * CELL * np.sqrt(2)


@pytest.mark.parametrize(
    "pairs",
    [
        walk(PAN, REST, None),
        walk(PAN, ROLL, None),
        walk(REST, ROLL, None),
        walk(REST, ROLL, None, slice(0, 60)),
        walk(0.2 * PAN, ROLL, ROLL),
        ([], []),
    ],
    ids=["pans", "pans and rolls", "rolls", "rolls over few points", "a painting beside it rolls as well", "nothing"],
)
def test_a_camera_that_pans_or_is_rolled_shows_none(pairs: Pairs) -> None:
    assert not inset(*pairs, WIDTH, HEIGHT).any()


def test_places_that_share_a_map_only_are_not_joined(tmp_path: Path) -> None:
    """Of frames of two places, with a round map that turns from frame to frame."""
    files = tmp_path / "files"
    files.mkdir()
    poses = scenes.arc(6, 0.22)
    scenes.write(poses, files)
    scene = scenes.scene(poses)
    of_video = [replace(source, timestamp_s=index / 10) for index, source in enumerate(scene.sources)]
    scene, options = replace(scene, sources=tuple(of_video)), RefineOptions(features=300)
    job = run.prepare(scene, Pictures(files), options, KnownCameras(), None, tmp_path)
    everywhere = Image.fromarray((255 * scenes.texture(7)[:160, :160]).astype(np.uint8))
    y, x = np.mgrid[:80, :80] - 39.5
    for index, file in enumerate(sorted((tmp_path / PICTURES).rglob("*.bmp"))):
        place = scenes.photograph(poses[index % 3], seed=index // 3)[0]
        turned = np.asarray(everywhere.rotate(14 * index, Image.Resampling.BICUBIC))[40:120, 40:120]
        place[150:230, 230:310] = np.where(np.hypot(x, y) < 39, turned, place[150:230, 230:310])
        Image.fromarray(place).convert("L").save(file)
    list(attempts.attempts(job, tmp_path, features.COARSE))
    pairs = matching.read_matches(job, tmp_path / f"shared{features.COARSE}" / "database.db").pairs
    assert len(pairs) and (pairs // 3 == pairs[:, :1] // 3).all()
