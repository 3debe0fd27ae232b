"""Frames of a video that few points tie to the others lie where the camera's motion goes on as steadily as before.

Their place is uncertain in a few directions only: behind a bare wall, all of them may be nearer or farther together,
or smaller. Hands and vehicles do not jerk there more than elsewhere, and that says which of these places is likely.
What many points tie does not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from lean3r.geometry.rotation import so3_exp
from lean3r.refine.equations import Equations
from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of
from lean3r.refine.ties import DAMPING, LOOSE

OPTIMISTIC = 7.0  # true errors of real walks in predicted ones, whose measurements count as independent (ties.py)
# The three quarters of accelerations that are smallest lie below this many deviations along an axis if all are normal;
# at rest half of the time, half of those in motion do.
USUAL, OF_NORMAL = 0.75, 2.027
LEAST = 6  # accelerations of firm frames that tell what is usual
JERK = 4.0  # usual accelerations above which one tells less and less: the camera turned back, or a take ended there
ROUNDS, CONVERGED = 20, 1e-6  # of the depth
MOST_RAD = 0.2  # turn of a frame up to which measurements depend on it as they did at first


def steadied(answer: Answer, runs: Sequence[Sequence[int]], times_s: Sequence[float | None]) -> Answer:
    """The answer with the frames that are doubted as LOOSE placed by measurements and steadiness; its points stay,
    since those of doubted frames are left out later. `runs` are those of consecutive views of a video, at times_s [S].
    The same answer where nothing tells what is steady."""
    loose = [view for view, doubt in enumerate(answer.report["doubts"]) if doubt == LOOSE]
    mine = np.isin(answer.point, answer.point[np.isin(answer.view, loose)])
    if not mine.any():
        return answer
    of = Equations(replace(answer, point=answer.point[mine], view=answer.view[mine], xy=answer.xy[mine]))
    is_loose = np.isin(of.views, loose)
    bends = _bends(of.views, runs, times_s)
    size, touched = np.linalg.norm(bends @ centres_of(of.pose), axis=1), (bends[:, is_loose] != 0).any(axis=1)
    if not is_loose.any() or (~touched).sum() < LEAST:
        return answer
    usual = float(np.quantile(size[~touched], USUAL)) / OF_NORMAL
    if usual <= 0:
        return answer
    # Within the loose part all bends are larger where it is larger: they would only shrink it.
    across = touched & (bends[:, ~is_loose] != 0).any(axis=1)
    try:
        move = _move(of, bends[across] / usual, np.flatnonzero(is_loose))
    except np.linalg.LinAlgError:  # nothing can be said, and that must not cost the model
        return answer
    poses = of.pose.copy()
    poses[:, :3, :3] = so3_exp(torch.from_numpy(move[:, :3])).numpy() @ poses[:, :3, :3]
    poses[:, :3, 3] = (poses[:, :3, 3] + move[:, 3:]) * of.unit
    placed = answer.cam_from_world.copy()
    placed[of.views[is_loose]] = poses[is_loose]
    return replace(answer, cam_from_world=placed)


def _move(of: Equations, bends: np.ndarray, loose: np.ndarray) -> np.ndarray:
    """How the poses of `loose` views [L] move [V, 6] so that measurements, as they depend on poses at first, and the
    accelerations of the centres, `bends` [B, V] in usual ones, are most likely together."""
    views, unknowns = len(of.views), 6 * len(loose)
    by_measurements = of.information().reshape(views, 6, views, 6)[loose][:, :, loose].reshape(unknowns, unknowns)
    by_measurements += DAMPING * np.trace(by_measurements) * np.eye(unknowns)
    by_move = np.einsum("bl,lij->bilj", bends[:, loose], of.centres()[loose]).reshape(-1, unknowns)
    before, found = (bends @ centres_of(of.pose)).ravel(), np.zeros(unknowns)
    for _ in range(ROUNDS):
        size = np.linalg.norm((before + by_move @ found).reshape(-1, 3), axis=1)
        weighted = by_move.T / np.repeat((1 + (size / JERK) ** 2) ** 2, 3)
        matrix = by_measurements / OPTIMISTIC**2 + weighted @ by_move
        previous, found = found, -np.linalg.solve(matrix, weighted @ before)
        if np.abs(found - previous).max() < CONVERGED:
            break
    move = np.zeros((views, 6))
    move[loose] = found.reshape(-1, 6)
    return move * min(1.0, MOST_RAD / max(float(np.linalg.norm(move[:, :3], axis=1).max()), 1e-12))


def _bends(views: np.ndarray, runs: Sequence[Sequence[int]], times_s: Sequence[float | None]) -> np.ndarray:
    """The accelerations [B, V] of the camera at each frame between two others of its run, of the places of `views`."""
    times = np.array([np.nan if time is None else time for time in times_s], float)
    rows = []
    for run in runs:
        at = np.flatnonzero(np.isin(views, list(run)))
        for three in zip(at, at[1:], at[2:], strict=False):
            first, second = np.diff(times[views[list(three)]])
            if first > 0 and second > 0:
                row = np.zeros(len(views))
                row[list(three)] = 1 / first, -(1 / first + 1 / second), 1 / second
                rows.append(2 * row / (first + second))
    return np.array(rows).reshape(-1, len(views))
