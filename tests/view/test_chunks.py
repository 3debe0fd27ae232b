"""Points are packed small and come back where they were, coarse ones first."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from lean3r.view import chunks
from lean3r.view.content import Points
from view.files import unpacked


def cloud(count: int, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(count, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Points(
        rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 256, (count, 3), dtype=np.uint8),
        rng.uniform(1, 5, count).astype(np.float32), normals, rng.integers(0, 9, count, dtype=np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 63, 5000, 90_000])
def test_what_is_packed_comes_back(count: int) -> None:
    points = cloud(count)
    packed = chunks.pack(points, np.full(count, 0.01, np.float32))
    back = unpacked(packed)
    assert packed.count == count == len(back)
    if not count:
        return
    assert all(sum(chunk["counts"]) <= chunks.MOST_IN_CHUNK for chunk in packed.chunks)
    order, other = np.lexsort(points.xyz.T.round(3)), np.lexsort(back.xyz.T.round(3))
    nearest = np.abs(np.sort(points.xyz, axis=0) - np.sort(back.xyz, axis=0)).max()
    assert nearest < 1e-3 and len(order) == len(other)
    assert np.array_equal(np.sort(points.rgb, axis=0), np.sort(back.rgb, axis=0))
    assert np.array_equal(np.bincount(points.view), np.bincount(back.view))


def test_normals_and_ranks_stay_with_their_points() -> None:
    points = cloud(2000)
    back = unpacked(chunks.pack(points, np.full(2000, 0.01, np.float32)))
    for at in range(0, 2000, 97):
        near = np.linalg.norm(points.xyz - back.xyz[at], axis=1).argmin()
        assert np.array_equal(points.rgb[near], back.rgb[at]) and points.view[near] == back.view[at]
        assert points.normals[near] @ back.normals[at] > 0.99
        assert abs((points.conf < points.conf[near]).mean() - back.conf[at]) < 0.012


def test_the_first_level_is_small_and_covers_everything() -> None:
    points = cloud(30_000)
    packed = chunks.pack(points, np.zeros(30_000, np.float32))
    counts = [sum(chunk["counts"][level] for chunk in packed.chunks) for level in range(chunks.LEVELS)]
    assert counts[0] == 469 and counts[-1] == 15_000
    coarse = unpacked(packed, levels=1).xyz
    assert np.abs(coarse.std(axis=0) - points.xyz.std(axis=0)).max() < 0.1


def test_a_speck_far_away_costs_no_accuracy() -> None:
    points = cloud(1000)
    far = np.array([[1e9, 0, 0], [0, -3e14, 2.0]], np.float32)
    xyz = np.concatenate([points.xyz, far])
    more = Points(xyz, *(np.concatenate([a, a[:2]]) for a in (points.rgb, points.conf, points.normals, points.view)))
    back = unpacked(chunks.pack(more, np.full(1002, 0.01, np.float32))).xyz
    assert np.abs(np.sort(back, axis=0)[1:-1] - np.sort(xyz, axis=0)[1:-1]).max() < 1e-3
    assert np.abs(back).max() == pytest.approx(3e14, rel=1e-3)


def test_thinning_keeps_points_everywhere() -> None:
    points = cloud(20_000)
    kept = chunks.thinned(points, 500)
    assert len(kept) == 500 and len(chunks.thinned(points, 0)) == 0
    assert np.abs(kept.xyz.std(axis=0) - points.xyz.std(axis=0)).max() < 0.15
    assert chunks.thinned(points, 30_000) is points


def test_equal_points_are_packed_alike() -> None:
    """The same result gives the same page, byte by byte."""
    first, second = (chunks.pack(cloud(3000), np.full(3000, 0.01, np.float32)) for _ in range(2))
    assert first.levels == second.levels and gzip.decompress(first.levels[0])
