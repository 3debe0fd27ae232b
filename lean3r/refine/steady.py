"""Frames of a video that few points tie to the others lie where the camera's motion goes on as steadily as before.

Their place is uncertain in a few directions only: behind a bare wall, all of them may be nearer or farther together,
or smaller. Hands and vehicles do not jerk there more than elsewhere, nor do they move many times faster or slower, and
that says which of these places is likely. What many points tie does not move.
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
LEAST = 6  # accelerations of firm frames, or speeds, that tell what is usual
JERK = 4.0  # usual accelerations above which one tells less and less: the camera turned back, or a take ended there
SPEED = 0.5  # deviation of the logarithm of speeds behind a joint from those before it; 0.4 on an office walk
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
    times = np.array([np.nan if time is None else time for time in times_s], float)
    seen = replace(answer, point=answer.point[mine], view=answer.view[mine], xy=answer.xy[mine])
    try:
        poses = _steadied_poses(_as_fast_as_before(seen, loose, runs, times), loose, runs, times)
    except np.linalg.LinAlgError:  # nothing can be said, and that must not cost the model
        return answer
    if poses is None:
        return answer
    placed = answer.cam_from_world.copy()
    placed[loose] = poses[loose]
    return replace(answer, cam_from_world=placed)


def _steadied_poses(
    answer: Answer, loose: Sequence[int], runs: Sequence[Sequence[int]], times: np.ndarray
) -> np.ndarray | None:
    """Poses [S, 4, 4] whose `loose` ones lie where the camera goes on steadily; None where nothing tells what that
    is."""
    of = Equations(answer)
    is_loose = np.isin(of.views, loose)
    bends = _bends(of.views, runs, times)
    size, touched = np.linalg.norm(bends @ centres_of(of.pose), axis=1), (bends[:, is_loose] != 0).any(axis=1)
    usual = float(np.quantile(size[~touched], USUAL)) / OF_NORMAL if (~touched).sum() >= LEAST else 0.0
    if not is_loose.any() or usual <= 0:
        return None
    # Within the loose part all bends are larger where it is larger: they would only shrink it.
    across = touched & (bends[:, ~is_loose] != 0).any(axis=1)
    move = _move(of, bends[across] / usual, np.flatnonzero(is_loose))
    poses, found = of.pose.copy(), answer.cam_from_world.copy()
    poses[:, :3, :3] = so3_exp(torch.from_numpy(move[:, :3])).numpy() @ poses[:, :3, :3]
    poses[:, :3, 3] = (poses[:, :3, 3] + move[:, 3:]) * of.unit
    found[of.views] = poses
    return found


def _as_fast_as_before(
    answer: Answer, loose: Sequence[int], runs: Sequence[Sequence[int]], times: np.ndarray
) -> Answer:
    """The answer with the `loose` frames at the ends of runs, and the points that only these see, larger or smaller
    around the firm frame beside them: measurements leave their size open, and it shows in their speed."""
    of, centres = Equations(answer), centres_of(answer.cam_from_world)
    for run in runs:
        frames = np.array([view for view in run if answer.has[view]], int)
        firm = np.flatnonzero(~np.isin(frames, loose))
        if not len(firm):
            continue
        step, time_s = np.linalg.norm(np.diff(centres[frames], axis=0), axis=1), np.diff(times[frames])
        logs = np.log(step, where=step > 0, out=np.full(len(step), np.nan))
        logs -= np.log(time_s, where=time_s > 0, out=np.full(len(step), np.nan))
        usual = logs[firm[0] : firm[-1]]
        for part, beside, steps in (
            (frames[: firm[0]], frames[firm[0]], logs[: firm[0]]),
            (frames[firm[-1] + 1 :], frames[firm[-1]], logs[firm[-1] :]),
        ):
            if min(np.isfinite(steps).sum(), np.isfinite(usual).sum()) >= LEAST:
                faster = float(np.nanmedian(steps) - np.nanmedian(usual))
                variance = OPTIMISTIC**2 * _variance_of_size(of, part, centres[beside])
                answer = _larger(answer, part, centres[beside], np.exp(-faster * variance / (variance + SPEED**2)))
    return answer


def _variance_of_size(of: Equations, part: np.ndarray, middle: np.ndarray) -> float:
    """The variance of the logarithm of how large a part of the views is around a place, by measurements alone."""
    at = np.flatnonzero(np.isin(of.views, part))
    information = _information(of, at)
    away = centres_of(of.pose)[at] - middle / of.unit
    by_move = np.einsum("vk,vkj->vj", away, of.centres()[at]).ravel() / (away**2).sum()
    return max(float(by_move @ np.linalg.solve(information, by_move)), 0.0)


def _larger(answer: Answer, part: np.ndarray, middle: np.ndarray, factor: float) -> Answer:
    """The answer with views, and what only they see, `factor` times as large around a place."""
    poses, xyz = answer.cam_from_world.copy(), answer.xyz.copy()
    poses[part, :3, 3] = factor * poses[part, :3, 3] + (factor - 1) * (poses[part, :3, :3] @ middle)
    own = np.setdiff1d(answer.point, answer.point[~np.isin(answer.view, part)])
    xyz[own] = middle + factor * (xyz[own] - middle)
    return replace(answer, cam_from_world=poses, xyz=xyz)


def _move(of: Equations, bends: np.ndarray, loose: np.ndarray) -> np.ndarray:
    """How the poses of `loose` views [L] move [V, 6] so that measurements, as they depend on poses at first, and the
    accelerations of the centres, `bends` [B, V] in usual ones, are most likely together."""
    by_measurements = _information(of, loose)
    by_move = np.einsum("bl,lij->bilj", bends[:, loose], of.centres()[loose]).reshape(-1, 6 * len(loose))
    before, found = (bends @ centres_of(of.pose)).ravel(), np.zeros(6 * len(loose))
    for _ in range(ROUNDS):
        size = np.linalg.norm((before + by_move @ found).reshape(-1, 3), axis=1)
        weighted = by_move.T / np.repeat((1 + (size / JERK) ** 2) ** 2, 3)
        matrix = by_measurements / OPTIMISTIC**2 + weighted @ by_move
        previous, found = found, -np.linalg.solve(matrix, weighted @ before)
        if np.abs(found - previous).max() < CONVERGED:
            break
    move = np.zeros((len(of.views), 6))
    move[loose] = found.reshape(-1, 6)
    return move * min(1.0, MOST_RAD / max(float(np.linalg.norm(move[:, :3], axis=1).max()), 1e-12))


def _information(of: Equations, loose: np.ndarray) -> np.ndarray:
    """What measurements tell of the poses of `loose` views [L] while the others stay: [6 L, 6 L]."""
    views, unknowns = len(of.views), 6 * len(loose)
    information = of.information().reshape(views, 6, views, 6)[loose][:, :, loose].reshape(unknowns, unknowns)
    # In shares of each: a point that almost touches a camera makes one of them a million times the others.
    return information + DAMPING * np.diag(np.diag(information))


def _bends(views: np.ndarray, runs: Sequence[Sequence[int]], times: np.ndarray) -> np.ndarray:
    """The accelerations [B, V] of the camera at each frame between two others of its run, of the places of `views`."""
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
