"""How firmly the frames of a video hold together: where few points lead on, the rest may be larger or smaller.

What lies behind a quick turn past a bare wall hangs on the few points that both sides see. A model of it can fit every
match, and all methods may agree on it, and yet its scale is a guess. The covariance of the adjustment knows: with it
the positions of all frames have a predicted deviation from a part of the video and the points that it sees. On real
walks the true error is some seven times that, because errors of matches are not independent; the order is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from lean3r.refine.equations import Equations, cross, inverse
from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of

LOOSE = "few points tie it to the other frames: its place may be far off"
# Predicted deviation, in shares of the depth that frames usually see. Windows of an office walk and of rendered ones
# have at most 0.0145 where they are right; 0.015 to 0.06 where frames are wrong by a tenth of the depth and more.
LIMIT = 0.015
BESIDE = LIMIT / 2  # of frames beside such ones: on the way to them
FIRM = LIMIT / 3  # a part before a weak place and behind it sees both sides deviate by less than from either
COLLAPSED = 5.0  # times nearer than usual, that a frame sees all: then what it sees counts, all else moves by far more
LEAST = 12  # frames of a video for which it is asked
PART, LEAST_PART = 1 / 4, 6  # of the frames: the parts from which deviations are predicted, and their least number
SEEN = 40  # points of a part: those that most of its frames see
DAMPING = 1e-10  # of the information: frames that nothing ties to the others deviate very far, not infinitely far


def loosely_tied(answer: Answer, runs: Sequence[Sequence[int]], joined: Collection[int] = ()) -> list[int]:
    """The frames of videos whose place is predicted to deviate by more than LIMIT of the depth that is seen, and those
    on the way to them. It is seen from the trusted frames by which a video is `joined` to what was found before; where
    these are few, from the part to which most trusted frames are tied firmly."""
    registered = [np.array([view for view in run if answer.has[view]], int) for run in runs]
    registered = [run for run in registered if len(run) >= LEAST]
    if not registered or not len(answer.point):
        return []
    try:
        deviations = Deviations(answer)
        return [view for run in registered for view in _loose_of(run, answer, deviations, joined)]
    except np.linalg.LinAlgError:  # nothing can be said, and that must not cost the model
        return []


def _loose_of(run: np.ndarray, answer: Answer, deviations: Deviations, joined: Collection[int]) -> list[int]:
    trusted = answer.trusted[run]
    parts = [run[np.isin(run, list(joined)) & trusted]]
    if len(parts[0]) < LEAST_PART:
        size = max(LEAST_PART, round(PART * len(run)))
        parts = [run[start : start + size] for start in range(0, len(run) - size + 1, size // 2)]
    depth = depth_of(answer)[run]
    unit = np.minimum(np.median(depth), COLLAPSED * depth)
    found = [deviations.seen_from(part)[run] / unit for part in parts]
    best = max(found, key=lambda deviation: float((trusted / (1 + (deviation / FIRM) ** 2)).sum()))
    loose = best > LIMIT
    groups = np.cumsum(np.diff(best > BESIDE, prepend=False))
    return run[np.isin(groups, groups[loose])].tolist()


def depth_of(answer: Answer) -> np.ndarray:
    """The median depth [S] of the points that each view measures; infinite without any."""
    pose = answer.cam_from_world[answer.view]
    z = (pose[:, 2, :3] * answer.xyz[answer.point]).sum(1) + pose[:, 2, 3]
    seen = [z[answer.view == view] for view in range(len(answer.has))]
    return np.array([max(float(np.median(each)), 1e-9) if len(each) else np.inf for each in seen])


class Deviations:
    """How far the cameras of an answer deviate from where they should be, by the Gauss-Newton covariance of poses and
    points (equations.py). LinAlgError if its equations cannot be solved."""

    def __init__(self, answer: Answer) -> None:
        self._count, self._of = len(answer.has), Equations(answer)
        self._of_poses = self._covariance()

    def _covariance(self) -> np.ndarray:
        """Of the poses [6 V, 6 V], up to a similarity of them all."""
        information, pose = self._of.information(), self._of.pose
        # What a similarity of the world does to the poses is not determined: it is held still.
        gauge = np.zeros((len(pose), 6, 7))
        gauge[:, :3, :3] = gauge[:, 3:, 3:6] = pose[:, :3, :3]
        gauge[:, 3:, 6] = pose[:, :3, 3]
        still, _ = np.linalg.qr(gauge.reshape(-1, 7))
        size = float(np.trace(information)) / len(information)
        information += size * (still @ still.T + DAMPING * np.eye(len(information)))
        return np.linalg.inv(information)

    def seen_from(self, part: np.ndarray) -> np.ndarray:
        """Predicted deviation [S] of the centres, after the similarity that brings those of the views `part` [P], and
        the points that most of them see, where they should be; infinite for views that have no pose."""
        of = self._of
        part = np.flatnonzero(np.isin(of.views, part))
        seeing = np.bincount(of.point[np.isin(of.view, part)], minlength=len(of.xyz))
        points = np.argsort(-seeing, kind="stable")[:SEEN]
        points = points[seeing[points] > 1]
        places = np.concatenate([centres_of(of.pose), of.xyz[points]])
        covariance, views = self._of_places(points), len(of.views)
        known = 1 / _variances(covariance, places, np.arange(views), np.ones(views))  # how well, among all views
        fixed = np.concatenate([part, np.arange(views, len(places))])
        variances = _variances(covariance, places, fixed, known[fixed])[:views]
        deviation = np.full(self._count, np.inf)
        deviation[of.views] = of.unit * np.sqrt(variances)
        return deviation

    def _of_places(self, points: np.ndarray) -> np.ndarray:
        """The covariance [3 E, 3 E] of the centres and of these points."""
        of, views = self._of, len(self._of.views)
        by_poses = np.zeros((views + len(points), views, 3, 6))
        by_poses[range(views), range(views)] = of.centres()
        # A point lies where its measurements meet, and errs beside them too.
        used = np.flatnonzero(np.isin(of.point, points))
        order = np.argsort(points)
        at, by_point = order[np.searchsorted(points[order], of.point[used])], of.by_point[used]
        information = np.zeros((len(points), 3, 3))
        np.add.at(information, at, by_point.transpose(0, 2, 1) @ by_point)
        own = inverse(information)
        of_pose = -own[at] @ by_point.transpose(0, 2, 1) @ of.by_pose[used]
        np.add.at(by_poses, (views + at, of.view[used]), of_pose)
        by_poses = by_poses.transpose(0, 2, 1, 3).reshape(-1, 6 * views)
        covariance = by_poses @ self._of_poses @ by_poses.T
        behind = range(views, views + len(points))
        covariance.reshape(views + len(points), 3, -1, 3)[behind, :, behind] += own
        return covariance


def _variances(covariance: np.ndarray, places: np.ndarray, fixed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of places [E, 3] with this covariance [3 E, 3 E], after the similarity that brings the `fixed` [F] where they
    should be, by least squares with weights [F]: [E]."""
    moves = _moves(places - np.average(places[fixed], axis=0, weights=weights))
    root = np.sqrt(weights)
    fit = np.linalg.pinv((root[:, None, None] * moves[fixed]).reshape(-1, 7)) * np.repeat(root, 3)
    keep = np.eye(3 * len(places))
    keep[:, (3 * fixed[:, None] + np.arange(3)).ravel()] -= moves.reshape(-1, 7) @ fit
    variances = ((keep @ covariance) * keep).sum(1).reshape(-1, 3).sum(1)
    return np.maximum(variances, np.finfo(float).tiny)


def _moves(offsets: np.ndarray) -> np.ndarray:
    """How a similarity (translation, rotation vector, logarithm of the scale) moves points [N, 3]: [N, 3, 7]."""
    moves = np.zeros((len(offsets), 3, 7))
    moves[:, :, :3], moves[:, :, 3:6], moves[:, :, 6] = np.eye(3), -cross(offsets), offsets
    return moves
