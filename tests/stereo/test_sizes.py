"""Scenes in two sizes: cameras, points and surfaces stay where they are, and both are looked at."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stereo.rendered import error, scene, truth

from lean3r.stereo import measure as measuring
from lean3r.stereo.dense import densify, posed, rasters
from lean3r.stereo.measure import measure
from lean3r.stereo.sizes import LEAST, STEP, first_size, larger, smaller, smaller_points
from lean3r.types import Lens

SIZE = (340, 400)  # of pictures that are looked at in two sizes


@pytest.mark.parametrize("side", [7, 64, 240, 286, 292, 320, 640, 1600, 5000])
@pytest.mark.parametrize("wide", [0.25, 1.0, 4.0])
def test_large_pictures_are_looked_at_in_a_smaller_size(side: int, wide: float) -> None:
    height, width = round(side / math.sqrt(wide)), round(side * math.sqrt(wide))
    first = first_size(height, width)
    if side <= 286:
        assert first == (height, width)
    else:
        assert first[0] * first[1] >= 0.98 * LEAST**2
        assert 1.15 < height / first[0] < 1.02 * STEP and 1.15 < width / first[1] < 1.02 * STEP


@pytest.mark.parametrize("lens", [None, Lens("OPENCV", (310, 320, 205, 168, -0.1, 0.03, 0.001, -0.002))])
def test_smaller_pictures_see_the_same(lens: Lens | None) -> None:
    """The rays of their corners, pictures of the same colours, and the nearest of several points."""
    whole = scene(truth(2, 2, *SIZE))
    if lens is not None:
        whole = replace(whole, lenses=(lens,) * 2)
    mask = whole.mask.copy()
    mask[0, :, -64:] = False
    before = posed(replace(whole, mask=mask), [])
    small = smaller(before, (170, 200))
    cam = np.array([[0.1, -0.2, 1.0], [0.3, 0.1, 2.0]])
    for view in range(2):
        expected = before.optics.project(view, cam) / [400 / 200, 340 / 170]
        np.testing.assert_allclose(small.optics.project(view, cam), expected, atol=1e-9)
    means = [x.images[1].reshape(-1, 3).mean(0) for x in (before, small)]
    assert np.abs(means[0] - means[1]).max() < 1
    assert not small.mask[0, :, 168:].any() and small.mask[0, :, :168].all() and small.mask[1].all()
    assert smaller(before, SIZE) is before
    log_depth, has = torch.zeros(2, *SIZE), torch.zeros(2, *SIZE, dtype=torch.bool)
    log_depth[1, 339, 397:399], has[1, 339, 397:399] = torch.tensor([2.0, -1.0]), True
    points, there = smaller_points((log_depth, has), (170, 200))
    assert there.nonzero().tolist() == [[1, 169, 198], [1, 169, 199]] and points[there].tolist() == [2.0, -1.0]
    points, there = smaller_points((log_depth, has), (17, 20))
    assert there.nonzero().tolist() == [[1, 16, 19]] and points[there].tolist() == [-1.0]
    for row in range(0, 340, 5):  # by their corners, many would lie elsewhere
        one = torch.zeros(1, *SIZE, dtype=torch.bool)
        one[0, row, row + 3] = True
        [[_, small_row, col]] = smaller_points((one.float(), one), (243, 286))[1].nonzero().tolist()
        assert small_row <= (row + 0.5) * 243 / 340 < small_row + 1 and col <= (row + 3.5) * 286 / 400 < col + 1


def test_planes_stay_planes_and_edges_edges() -> None:
    y, x = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    plane = -(0.4 + 0.005 * x - 0.004 * y).log()
    rows, cols = (torch.arange(75) + 0.5) * 30 / 75, (torch.arange(90) + 0.5) * 40 / 90
    exact = -(0.4 + 0.005 * cols.clamp(0.5, 39.5) - 0.004 * rows.clamp(0.5, 29.5)[:, None]).log()
    torch.testing.assert_close(larger(plane, (75, 90)), exact, rtol=0, atol=1e-5)
    kind = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    edges = larger(torch.where(kind, 1.0, 2.0), (75, 90))
    assert ((edges - 1).abs() < 1e-5).logical_or((edges - 2).abs() < 1e-5).all(), "nothing between two surfaces"
    assert larger(plane, (30, 40)) is plane


def test_large_pictures_are_looked_at_in_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = truth(3, 3, *SIZE)
    before = scene(batch)
    calls: list[tuple[int, ...]] = []
    passes = measuring._passes

    def counted(view: measuring.View, guesses: list[torch.Tensor], *more: object) -> object:
        calls.append(tuple(guesses[0].shape[1:]))
        return passes(view, guesses, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "_passes", counted)
    after = densify(before)
    assert calls == [(256, 288)] * 3 + [(352, 400)] * 3
    assert after.info["stereo"]["status"] == "measured" and after.depth.shape[1:] == SIZE
    assert error(after.depth, batch) < 0.5 * error(before.depth, batch)


@pytest.mark.parametrize("stop", [2, 5])
def test_what_is_measured_when_interrupted_stays(stop: int) -> None:
    """In the small pictures, or in the large ones."""
    before = scene(truth(3, 3, *SIZE))
    prior, points = torch.from_numpy(before.depth).log(), rasters([], before.depth.shape)
    pictures = posed(before, [np.array([v for v in range(3) if v != view]) for view in range(3)])
    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt

    found = measure(pictures, prior, points, interrupt)
    assert found.interrupted and found.measured.sum() >= 2 and found.log_depth.shape == prior.shape
    assert found.independent.shape == prior.shape
    measured = found.log_depth[torch.from_numpy(found.measured)]
    assert (measured - prior[torch.from_numpy(found.measured)]).abs().mean() > 0.001
