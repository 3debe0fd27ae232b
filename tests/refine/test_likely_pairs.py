"""Which views are matched: photos go by how they look more than by the network's guess, frames by their order."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lean3r.refine import pairs
from lean3r.refine.job import Group, Job, View
from lean3r.refine.matching import ALIKE, MANY_ALIKE, most_alike

sys.path.insert(0, str(Path(__file__).parent))
import scenes

VIEWS = 6


def job(sequences: tuple[tuple[int, ...], ...] = (), past: int = 0) -> Job:
    """Of some views, of which the `sequences` are videos."""
    views = tuple(View(0, 1.0, f"{view}.bmp", None) for view in range(VIEWS))
    nowhere = np.full((VIEWS, 4, 4), np.nan)
    group = Group(64, 64, "SIMPLE_PINHOLE", (64.0, 32.0, 32.0))
    none = np.zeros(VIEWS, bool)
    job = Job(views, (group,), nowhere, np.ones((VIEWS, 4)), nowhere, none, None, 100, 1)
    return replace(job, sequences=sequences, past=past)


def test_photos_and_frames_that_go_on_have_more_that_look_alike() -> None:
    every = np.arange(VIEWS)
    assert most_alike(job(), every).tolist() == [MANY_ALIKE] * VIEWS
    assert most_alike(job(((0, 1, 2),)), every).tolist() == [ALIKE] * 3 + [MANY_ALIKE] * 3
    assert most_alike(job((tuple(range(VIEWS)),)), every).tolist() == [ALIKE] * VIEWS
    going_on = job((tuple(range(VIEWS)),), past=4)
    assert most_alike(going_on, every).tolist() == [ALIKE] * 4 + [MANY_ALIKE] * 2
    assert most_alike(job(), np.array([5, 1])).tolist() == [MANY_ALIKE] * 2


def test_fewer_neighbours_are_the_best_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "ALL_PAIRS", 2)
    monkeypatch.setattr(pairs, "NEXT", 0)
    scene = scenes.scene(scenes.arc(VIEWS))
    few, many = (pairs.likely_pairs(scene, neighbours) for neighbours in (1, VIEWS - 1))
    assert few is not None and many is not None and len(few) < len(many)
    share = pairs.overlap(scene)
    share = np.maximum(share, share.T)
    np.fill_diagonal(share, 0)
    best = {tuple(sorted((view, int(row.argmax())))) for view, row in enumerate(share)}
    assert best == set(map(tuple, few.tolist())) <= set(map(tuple, many.tolist()))
