"""Pictures that are crops of one flat picture tell no depth, though a camera along a wall fits them to perfection."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from lean3r.refine.crops import of_crops


def shares_of_crops(views: list[np.ndarray]) -> list[float]:
    """Shares of the matches of all pairs that are of a flat picture, with the noise of features and some wrong ones."""
    rng = np.random.default_rng(1)
    pairs = list(combinations(range(len(views)), 2))
    before, after = ([views[p[n]] + rng.normal(0, 0.1, views[0].shape) for p in pairs] for n in (0, 1))
    for new in after:
        new[-20:] += rng.normal(0, 50, (20, 2))
    return [float(found.mean()) for found in of_crops(pairs, before, after)]


def seen(roll_deg: float, relief: float) -> list[np.ndarray]:
    """A camera slides along a wall at 5 m, level but for a roll from view to view, with points up to `relief` m off."""
    rng, views = np.random.default_rng(0), []
    points = rng.uniform((-2, -1, 5), (2, 1, 5 + relief), (200, 3))
    for number in range(4):
        angle = np.radians(roll_deg * number)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        at = (points - (0.2 * number, 0.05 * number, 0.1 * number)) @ turn.T
        views.append(500 * at[:, :2] / at[:, 2:] + (320, 240))
    return views


@pytest.mark.parametrize(
    ("roll_deg", "relief", "expected"),
    [
        (0.0, 0.0, True),  # shaken, scrolled, zoomed into
        (0.5, 0.0, False),  # a hand holds the camera, before the same wall
        (0.0, 0.3, False),  # or it runs on a rail, and the wall is none
    ],
)
def test_crops_are_told_from_views(roll_deg: float, relief: float, expected: bool) -> None:
    shares = shares_of_crops(seen(roll_deg, relief))
    assert min(shares) > 0.88 if expected else max(shares) == 0


def test_what_moves_behind_a_flat_picture_stays() -> None:
    """As the room behind a hand, or a film in the film; and a camera at rest is for others to tell."""
    first, *others = seen(0.0, 0.0)
    for number, view in enumerate(others, 1):
        view[:50] += 40 * number
    assert all(0.64 < share < 0.66 for share in shares_of_crops([first, *others]))
    assert shares_of_crops([first, first]) == [0.0] and shares_of_crops([first]) == []
