"""How firmly the frames of a video hold together: where few points lead on, the rest may be larger or smaller.

What lies behind a quick turn past a bare wall hangs on the few points that both sides see. A model of it can fit every
match, and all methods may agree on it, and yet its scale is a guess. The covariance of the adjustment knows: with it
the positions of all frames have a predicted deviation from those of a part of the video. On real walks the true error
is three to nine times that, because errors of matches are not independent; the order is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of

LOOSE = "few points tie it to the other frames: its place may be far off"
# Predicted deviation, in shares of the depth that a frame sees. Windows of an office walk and of rendered ones have at
# most 0.018 where they are right; 0.028 to 0.039 where frames are wrong by a fifth of the depth and more.
LIMIT = 0.02
LEAST = 12  # frames of a video for which it is asked
PART, LEAST_PART = 1 / 4, 6  # of the frames: the parts from which deviations are predicted, and their least number
POINTS = 2000  # whose equations are held at once
BLUR = 1.2533  # mean length of a normal error in the plane, in its standard deviations
DAMPING = 1e-10  # of the information: frames that nothing ties to the others deviate very far, not infinitely far


def loosely_tied(answer: Answer, runs: Sequence[Sequence[int]]) -> list[int]:
    """The frames of videos whose place is predicted to deviate by more than LIMIT of the depth that is seen: from the
    part of the video to which most of its trusted frames are tied firmly."""
    registered = [np.array([view for view in run if answer.has[view]], int) for run in runs]
    registered = [run for run in registered if len(run) >= LEAST]
    if not registered or not len(answer.point):
        return []
    try:
        covariance = centre_covariance(answer)
    except np.linalg.LinAlgError:  # nothing can be said, and that must not cost the model
        return []
    centres, depth = centres_of(answer.cam_from_world), depth_of(answer)
    loose: list[int] = []
    for run in registered:
        size = max(LEAST_PART, round(PART * len(run)))
        parts = [run[start : start + size] for start in range(0, len(run) - size + 1, size // 2)]
        seen = np.median(depth[run])
        deviation = [deviation_from(part, run, centres, covariance) / (LIMIT * seen) for part in parts]
        best = max(deviation, key=lambda each: float((answer.trusted[run] / (1 + each**2)).sum()))
        loose += run[best > 1].tolist()
    return loose


def depth_of(answer: Answer) -> np.ndarray:
    """The median depth [S] of the points that each view measures; infinite without any."""
    pose = answer.cam_from_world[answer.view]
    z = (pose[:, 2, :3] * answer.xyz[answer.point]).sum(1) + pose[:, 2, 3]
    seen = [z[answer.view == view] for view in range(len(answer.has))]
    return np.array([max(float(np.median(each)), 1e-9) if len(each) else np.inf for each in seen])


def deviation_from(part: np.ndarray, views: np.ndarray, centres: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Predicted deviation [V] of the centres of `views` [V], after the similarity that brings those of `part` [P] where
    they should be; covariance [S, 3, S, 3] of the centres [S, 3]."""
    middle = centres[part].mean(0)
    moves = _moves(centres[views] - middle)
    fit = np.linalg.pinv(_moves(centres[part] - middle).reshape(-1, 7)).reshape(7, len(part), 3)
    carried = np.einsum("vik,kpj->vipj", moves, fit)  # how an error of the part moves each view
    own = covariance[views, :, views, :]
    across, within = covariance[part][:, :, views], covariance[part][:, :, part]
    crossed = np.einsum("vipj,pjvi->v", carried, across)
    of_part = np.einsum("vipj,pjqk,viqk->v", carried, within, carried, optimize=True)
    return np.sqrt(np.maximum(np.trace(own, axis1=1, axis2=2) - 2 * crossed + of_part, 0))


def centre_covariance(answer: Answer) -> np.ndarray:
    """Covariance [S, 3, S, 3] of the camera centres, up to a similarity of them all; zero of views that have no pose.

    The Gauss-Newton covariance of poses and points, with the weights of the adjustment's robust loss and the noise that
    its errors show; intrinsics count as known, lenses as pinholes.
    """
    views = np.flatnonzero(answer.has)
    place = np.full(len(answer.has), -1)
    place[views] = range(len(views))
    used = answer.has[answer.view]
    of_view, point = place[answer.view[used]], answer.point[used]
    pose = answer.cam_from_world[views]
    turned = (pose[of_view, :3, :3] @ answer.xyz[point][..., None])[..., 0]
    unit = float(np.median((turned + pose[of_view, :3, 3])[:, 2]))  # so that moves count as much as turns
    turned, pose[:, :3, 3] = turned / unit, pose[:, :3, 3] / unit
    cam = turned + pose[of_view, :3, 3]
    focal = np.array([answer.params[answer.camera[view]][0] for view in views])[of_view]
    error = answer.error_px[point]
    weight = np.sqrt(1 / (1 + error**2)) * BLUR / max(float(np.mean(answer.error_px)), 1e-3)
    to_image = np.zeros((len(cam), 2, 3))
    to_image[:, 0, 0] = to_image[:, 1, 1] = 1
    to_image[:, :, 2] = -cam[:, :2] / cam[:, 2:]
    to_image *= (weight * focal / cam[:, 2])[:, None, None]
    by_pose = np.concatenate([-to_image @ _cross(turned), to_image], axis=2)  # rotation vector, translation
    by_point = to_image @ pose[of_view, :3, :3]
    information = _reduced(by_pose, by_point, of_view, point, len(views))
    # What a similarity of the world does to the poses is not determined: it is held still.
    gauge = np.zeros((len(views), 6, 7))
    gauge[:, :3, :3] = gauge[:, 3:, 3:6] = pose[:, :3, :3]
    gauge[:, 3:, 6] = pose[:, :3, 3]
    still, _ = np.linalg.qr(gauge.reshape(-1, 7))
    size = float(np.trace(information)) / len(information)
    information += size * (still @ still.T + DAMPING * np.eye(len(information)))
    covariance = np.linalg.inv(information)
    # The centre is -R' t; a small rotation w of the camera moves it by R' (w x t).
    to_centre = np.zeros((len(views), 3, len(views), 6))
    inverse = pose[:, :3, :3].transpose(0, 2, 1)
    each = range(len(views))
    to_centre[each, :, each] = np.concatenate([-inverse @ _cross(pose[:, :3, 3]), -inverse], axis=2)
    to_centre = unit * to_centre.reshape(3 * len(views), -1)
    whole = np.zeros((len(answer.has), 3, len(answer.has), 3))
    whole[views[:, None], :, views] = (
        (to_centre @ covariance @ to_centre.T).reshape(len(views), 3, -1, 3).swapaxes(1, 2)
    )
    return whole


def _reduced(by_pose: np.ndarray, by_point: np.ndarray, view: np.ndarray, point: np.ndarray, views: int) -> np.ndarray:
    """The information [6 V, 6 V] on poses that measurements give, whose derivatives are by_pose [O, 2, 6] and by_point
    [O, 2, 3], with all points free."""
    own = np.zeros((views, 6, 6))
    np.add.at(own, view, by_pose.transpose(0, 2, 1) @ by_pose)
    information = np.zeros((views, 6, views, 6))
    information[range(views), :, range(views)] = own
    information = information.reshape(6 * views, 6 * views)
    order = np.argsort(point, kind="stable")
    for start in range(0, int(point.max(initial=-1)) + 1, POINTS):
        some = order[slice(*np.searchsorted(point[order], (start, start + POINTS)))]
        at = point[some] - start
        of_points = np.zeros((POINTS, 3, 3))
        np.add.at(of_points, at, by_point[some].transpose(0, 2, 1) @ by_point[some])
        trace = np.trace(of_points, axis1=1, axis2=2)[:, None, None]
        half = np.linalg.cholesky(np.linalg.inv(of_points + (1e-9 * trace + (trace == 0)) * np.eye(3)))
        shared = np.zeros((views, POINTS, 6, 3))
        np.add.at(shared, (view[some], at), by_pose[some].transpose(0, 2, 1) @ by_point[some])
        shared = (shared @ half).transpose(0, 2, 1, 3).reshape(6 * views, -1)
        information -= shared @ shared.T
    return information


def _moves(offsets: np.ndarray) -> np.ndarray:
    """How a similarity (translation, rotation vector, logarithm of the scale) moves points [N, 3]: [N, 3, 7]."""
    moves = np.zeros((len(offsets), 3, 7))
    moves[:, :, :3], moves[:, :, 3:6], moves[:, :, 6] = np.eye(3), -_cross(offsets), offsets
    return moves


def _cross(vectors: np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 3] that multiply by the cross product with vectors [N, 3] from the left."""
    x, y, z = vectors.T
    zero = np.zeros(len(vectors))
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
