"""Groups of photos that few matches join: whether the points of one are seen again where the model has them in photos
of the other.

Seen from far aside a feature is described otherwise, and among thousands the nearest is another one; among the few
around the place where the model has the point it is not. In a wrong model points are found there as seldom as beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.judge import FEW_CONFIRM, LEAST_SEEN, Verdict
from lean3r.refine.nearest import LENGTH

NEAR_PX, BESIDE_PX = 4.0, 20.0  # of a point's place; and how far from it the places beside are
ALIKE_RAD = 0.5  # between descriptors of one point
# Points that must be found, more than beside, and times as many. Of four right photos of ten they were 1,000, of groups
# that lay 2 to 6 degrees off each other, by few points of one place, up to 60, and 4 times as many.
LEAST_AGAIN, TIMES = 100, 2.5
TRIED, SHOWN = 1000, 4  # points of a group in a photo, and measurements of each


@dataclass(frozen=True, eq=False)
class Model:
    """Cameras and poses [S, 4, 4] of views; points xyz [P, 3] and their measurements: point, view and feature [O]; and
    the places [K, 2] and the descriptors [K, D] uint8 of a view's features."""

    cameras: Sequence[pycolmap.Camera]
    cam_from_world: np.ndarray
    xyz: np.ndarray
    point: np.ndarray
    view: np.ndarray
    feature: np.ndarray
    keypoints: Sequence[np.ndarray]
    descriptors: Callable[[int], np.ndarray]


def seen_again(model: Model, seen: np.ndarray, judged: Callable[[np.ndarray], Verdict]) -> tuple[np.ndarray, Verdict]:
    """Pairs [N, 2] of a point and a view that shows it again, of the groups of views that are doubted because few
    points join them to the others; and the verdict with these. `seen` [P, S] bool says which views measure each point,
    and `judged` is the verdict on it."""
    seen, pairs = seen.copy(), [np.zeros((0, 2), np.int64)]
    while True:
        verdict = judged(seen)
        trusted = np.flatnonzero(verdict.trusted)
        weak = np.array([doubt == FEW_CONFIRM for doubt in verdict.doubt], bool)
        more = [_between(model, group, trusted) for group in _groups(seen, np.flatnonzero(weak))]
        pairs += more
        if not any(map(len, more)):
            return np.concatenate(pairs), verdict
        for each in more:
            seen[each[:, 0], each[:, 1]] = True


def _groups(seen: np.ndarray, views: np.ndarray) -> list[np.ndarray]:
    """The views in groups that LEAST_SEEN points and more join."""
    whole = seen[:, views].astype(np.float32)
    is_joined = whole.T @ whole >= LEAST_SEEN
    np.fill_diagonal(is_joined, True)
    for _ in range(len(views)):
        is_joined = is_joined @ is_joined
    return [views[row] for row in np.unique(is_joined, axis=0)]


def _between(model: Model, group: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pairs [N, 2] of a point of one side and a view of the other; none if there are few, or not many more than places
    beside have."""
    pairs, beside = [np.zeros((0, 2), np.int64)], 0.0
    for own, away in ((group, others), (others, group)):
        counts = [np.bincount(model.point[np.isin(model.view, side)], minlength=len(model.xyz)) for side in (own, away)]
        points = np.flatnonzero((counts[0] > 1) & (counts[1] == 0))
        for view in away.tolist() if len(points) else ():
            found, chance = _in_view(model, points, own, view)
            pairs.append(np.stack([found, np.full(len(found), view)], axis=1))
            beside += chance
    found = np.concatenate(pairs)
    count = len(np.unique(found[:, 0]))
    return found if count - beside >= LEAST_AGAIN and count > TIMES * beside else found[:0]


def _in_view(model: Model, points: np.ndarray, own: np.ndarray, view: int) -> tuple[np.ndarray, float]:
    """Which of some points that the views `own` see are found where a view should show them, and how many are beside,
    by the mean of four directions."""
    pose, camera = model.cam_from_world[view], model.cameras[view]
    cam = model.xyz[points] @ pose[:3, :3].T + pose[:3, 3]
    points, cam = points[cam[:, 2] > 0], cam[cam[:, 2] > 0]
    places = np.asarray(camera.img_from_cam(cam), np.float64).reshape(-1, 2)
    margin = BESIDE_PX + NEAR_PX
    inside = ((places > margin) & (places < [camera.width - margin, camera.height - margin])).all(axis=1)
    points, places = points[inside], places[inside]
    step = 1 + len(points) // TRIED
    points, places = points[::step], places[::step]
    shown = _shown(model, points, own)
    features = model.keypoints[view], model.descriptors(view).astype(np.float32)
    found = _found(places, shown, *features)
    directions = BESIDE_PX * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    return points[found], float(np.mean([_found(places + away, shown, *features).sum() for away in directions]))


def _shown(model: Model, points: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Descriptors [P, SHOWN, D] of points in the views `own`, zeros where there are fewer."""
    size = model.descriptors(int(own[0])).shape[1]
    shown, count = np.zeros((len(points), SHOWN, size), np.float32), np.zeros(len(points), int)
    number = np.full(len(model.xyz), -1)
    number[points] = np.arange(len(points))
    for view in own.tolist():
        mine = np.flatnonzero((model.view == view) & (number[model.point] >= 0))
        at = number[model.point[mine]]
        mine, at = mine[count[at] < SHOWN], at[count[at] < SHOWN]
        shown[at, count[at]] = model.descriptors(view)[model.feature[mine]]
        count[at] += 1
    return shown


def _found(places: np.ndarray, shown: np.ndarray, keypoints: np.ndarray, descriptors: np.ndarray) -> np.ndarray:
    """Whether near places [P, 2] there is a feature like one of those of the point [P, SHOWN, D]."""
    order = np.argsort(keypoints[:, 0])
    first, last = (np.searchsorted(keypoints[order, 0], places[:, 0] + off) for off in (-NEAR_PX, NEAR_PX))
    place = np.repeat(np.arange(len(places)), last - first)
    ends = np.cumsum(last - first)
    feature = order[np.arange(len(place)) - np.repeat(ends - last, last - first)]
    near = np.linalg.norm(keypoints[feature] - places[place], axis=1) < NEAR_PX
    place, feature = place[near], feature[near]
    product = np.einsum("nsd,nd->ns", shown[place], descriptors[feature])
    found = np.zeros(len(places), bool)
    found[place[(product > np.cos(ALIKE_RAD) * LENGTH**2).any(axis=1)]] = True
    return found
