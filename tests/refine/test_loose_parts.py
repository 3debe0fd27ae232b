"""Parts of a model that hang on one view: found by their points, and scaled by the network's depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scenes import FOCAL, HEIGHT, STRIDE, WIDTH, look, scene

from lean3r.refine.hanging import hanging_parts, rescale_hanging
from lean3r.refine.job import Answer
from lean3r.refine.judge import firm_part

VIEWS = 6


def model(hanging: float) -> tuple[Answer, np.ndarray]:
    """A true model of six cameras before a wall, and its poses. Views 4 and 5 see points of their own with 3 alone;
    what they see is `hanging` times as far from view 3 as it is."""
    poses = np.stack([look((0, 0, 0), (0.3 * v, 0.02 * v * v, 0)) for v in range(VIEWS)])
    rng = np.random.default_rng(0)
    xyz, point, view = [], [], []
    for seers, count in (((0, 1, 2), 40), ((1, 2, 3), 40), ((3, 4, 5), 30)):
        for _ in range(count):
            point += [len(xyz)] * len(seers)
            view += seers
            xyz.append((rng.uniform(-0.4, 1.8), rng.uniform(-0.9, 0.9), 4.5 + rng.uniform(0, 1)))
    xyz, point, view = np.array(xyz), np.array(point, np.int32), np.array(view, np.int32)
    cam = np.einsum("oij,oj->oi", poses[view][:, :3, :3], xyz[point]) + poses[view][:, :3, 3]
    xy = cam[:, :2] / cam[:, 2:] * FOCAL + [WIDTH / 2, HEIGHT / 2]
    moved, middle = poses.copy(), np.array([0.9, 0.18, 0])
    for v in (4, 5):
        moved[v, :3, 3] = -(middle + hanging * (-poses[v, :3, 3] - middle))
    xyz[80:] = middle + hanging * (xyz[80:] - middle)
    none = np.zeros(len(xyz))
    return Answer(moved, np.ones(VIEWS, bool), ("PINHOLE",), ((),), (0,) * VIEWS, xyz, none, point, view, xy, {}), poses


def network(answer: Answer):
    """What a network says: depth 5 everywhere, in a scale of its own."""
    found = scene(np.stack([look((0, 0, 0), (0, 0, 0))]))
    depth = np.full((VIEWS, HEIGHT // STRIDE, WIDTH // STRIDE), 50, np.float32)
    return replace(found, sources=found.sources * VIEWS, depth=depth)


def test_parts_connected_through_one_view_are_found_and_scaled() -> None:
    answer, true = model(hanging=7.0)
    seen = np.zeros((len(answer.xyz), VIEWS), bool)
    seen[answer.point, answer.view] = True
    assert firm_part(seen) == [0, 1, 2, 3]
    assert hanging_parts(seen, [0, 1, 2, 3], np.arange(VIEWS)) == [([4, 5], 3)]
    found, moved = rescale_hanging(answer, network(answer), np.ones(VIEWS), np.zeros(VIEWS, bool))
    assert moved == [4, 5]
    assert np.allclose(found.cam_from_world[:4], true[:4])
    assert np.allclose(found.cam_from_world[4:], true[4:], atol=0.15)  # the wall is 4.5 to 5.5 away, not 5
    assert np.allclose(found.xyz[80:, 2], 5, atol=1) and len(found.point) == len(answer.point)


def test_parts_that_the_depth_does_not_contradict_stay() -> None:
    answer, _ = model(hanging=1.6)
    assert rescale_hanging(answer, network(answer), np.ones(VIEWS), np.zeros(VIEWS, bool)) == (answer, [])


def test_several_parts_are_scaled_though_the_first_one_loses_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, _ = model(hanging=7.0)
    # Points that 5 sees too stay in place when 4 moves alone: the measurements of 4 are dropped.
    monkeypatch.setattr("lean3r.refine.hanging.hanging_parts", lambda *_: [([4], 3), ([5], 3)])
    found, moved = rescale_hanging(answer, network(answer), np.ones(VIEWS), np.zeros(VIEWS, bool))
    assert moved == [4, 5] and len(found.point) < len(answer.point)
