"""Photos of two places that share one thing, and photos of one place."""

from __future__ import annotations

import numpy as np
import pytest
from scenes import FOCAL, HEIGHT, WIDTH, arc

from lean3r.refine.job import Answer, Group, Job, View
from lean3r.refine.shared_thing import SHARED, places_of, with_places

VIEWS = 8
LENS = ("SIMPLE_PINHOLE", (FOCAL, WIDTH / 2, HEIGHT / 2))
POSES = arc(VIEWS, 0.3)
EACH, THING = 400, 80  # points of a place, and of the thing that both have


def job() -> Job:
    views = tuple(View(0, 1.0, f"{view}.png") for view in range(VIEWS))
    nowhere = np.full((VIEWS, 4, 4), np.nan)
    group = Group(WIDTH, HEIGHT, *LENS)
    return Job(views, (group,), nowhere, np.ones((VIEWS, 4)), nowhere, np.zeros(VIEWS, bool), None, 2000, 1)


def model(place: np.ndarray, half: float, hidden: tuple[int, ...] = ()) -> Answer:
    """The answer of views of each number's `place` [S], which all have one thing in common, `half` as wide as this; of
    those that are `hidden`, nothing but the thing is seen."""
    rng = np.random.default_rng(0)
    low, high = np.array([-2.6, -1.6, 5.5]), np.array([2.6, 1.6, 6.5])
    xyz = np.concatenate([rng.uniform(low, high, (2 * EACH, 3)), rng.uniform(-half, half, (THING, 3)) * [1, 1, 0]])
    xyz[2 * EACH :, 2] += 5.8
    of = np.repeat([0, 1, 2], [EACH, EACH, THING])
    point, view, xy = [], [], []
    for number, pose in enumerate(POSES):
        cam = xyz @ pose[:3, :3].T + pose[:3, 3]
        there = FOCAL * cam[:, :2] / cam[:, 2:] + (WIDTH / 2, HEIGHT / 2)
        seen = ((there > 0) & (there < (WIDTH, HEIGHT))).all(1) & (rng.random(len(xyz)) < 0.7)
        seen &= (of == 2) | ((of == place[number]) & (number not in hidden))
        point.append(np.flatnonzero(seen))
        view.append(np.full(seen.sum(), number))
        xy.append(there[seen])
    report = {"doubts": [None] * VIEWS, "parts": [0] * VIEWS, "notes": []}
    every, errors = np.ones(VIEWS, bool), np.full(len(xyz), 0.1)
    seen = np.concatenate(point), np.concatenate(view), np.concatenate(xy)
    return Answer(POSES, every, LENS[:1], LENS[1:], (0,) * VIEWS, xyz, errors, *seen, report)


@pytest.mark.parametrize("place", [[0, 0, 0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 0]])
def test_two_places_with_one_poster_are_told_apart(place: list[int]) -> None:
    """All came out as one place, and certain."""
    second = np.flatnonzero(place).tolist()
    found = with_places(job(), model(np.array(place), 0.7))
    assert found.report["doubts"] == [SHARED if view in second else None for view in range(VIEWS)]
    assert found.report["parts"] == place
    ((code, text),) = found.report["notes"]
    assert code == "shared-thing" and f"{len(second)} of {VIEWS} photos" in text


def test_one_place_is_one() -> None:
    """Also where people stand before all but its poster in one photo."""
    one = model(np.zeros(VIEWS, int), 0.7)
    assert with_places(job(), one) is one
    assert len(places_of(job(), model(np.zeros(VIEWS, int), 0.7, hidden=(3,)))) == 1
