"""Groups of views connected through a single view are well oriented, but their scale is poorly constrained. It is
taken from the network's depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lean3r.refine.job import Answer
from lean3r.refine.judge import firm_part
from lean3r.refine.world import depth_ratios
from lean3r.types import Reconstruction

LEAST_BRIDGE = 6  # points that a view must share with two others of a part, so that its position is constrained
LEAST_POINTS = 12  # points of a hanging part that are needed to judge its scale
FAR = np.log(2.0)  # the network's depth determines scale no better than this


def rescale_hanging(
    answer: Answer, reconstruction: Reconstruction, scales: np.ndarray, held: np.ndarray
) -> tuple[Answer, list[int]]:
    """Scale hanging groups around the view that connects them, if their depth differs from the network's by more than a
    factor of two, relative to the rest; returns the answer and the views that were moved.

    `scales` [S] are those of the shrunk pictures that the answer refers to; `held` [S] views count as firm. Directions
    between views do not change.
    """
    seen = _seen(answer)
    firm = sorted({*firm_views(answer), *np.flatnonzero(held & answer.has).tolist()})
    if 2 * len(firm) < answer.has.sum():
        return answer, []
    ratios = depth_ratios(reconstruction, answer, answer.xy / scales[answer.view][:, None])
    usual = _median(ratios[np.isin(answer.view, firm)])
    moved: list[int] = []
    view = answer.view  # of each ratio: the answer itself loses measurements on the way
    for part, hinge in hanging_parts(seen, firm, np.flatnonzero(answer.has)):
        mine = np.isin(view, part)
        known = np.isfinite(ratios[mine])
        if known.sum() < LEAST_POINTS or abs(np.log(_median(ratios[mine]) / usual)) <= FAR:
            continue
        answer = _scale_part(answer, seen, part, hinge, _median(ratios[mine]) / usual)
        moved += part
    return answer, sorted(moved)


def firm_views(answer: Answer) -> list[int]:
    """The views that do not hang."""
    return firm_part(_seen(answer), LEAST_BRIDGE)


def _seen(answer: Answer) -> np.ndarray:
    seen = np.zeros((len(answer.xyz), len(answer.has)), bool)
    seen[answer.point, answer.view] = True
    return seen


def hanging_parts(seen: np.ndarray, firm: Sequence[int], registered: np.ndarray) -> list[tuple[list[int], int]]:
    """The other views in groups that share points, each with the view of the firm part that it shares the most
    points with."""
    common = seen.T.astype(np.int64) @ seen
    left, parts = [int(v) for v in registered if v not in firm], []
    while left:
        part = [left.pop(0)]
        while near := [v for v in left if common[v, part].any()]:
            part += near
            left = [v for v in left if v not in near]
        parts.append((sorted(part), int(firm[int(common[part][:, firm].sum(0).argmax())])))
    return parts


def _scale_part(answer: Answer, seen: np.ndarray, part: list[int], hinge: int, factor: float) -> Answer:
    """A part by `factor` larger, around its hinge; points that views outside the part see stay in place."""
    poses, xyz = answer.cam_from_world.copy(), answer.xyz.copy()
    middle = -poses[hinge, :3, :3].T @ poses[hinge, :3, 3]
    for view in part:
        centre = -poses[view, :3, :3].T @ poses[view, :3, 3]
        poses[view, :3, 3] = -poses[view, :3, :3] @ (middle + factor * (centre - middle))
    beyond = np.delete(seen, [*part, hinge], axis=1).sum(axis=1) > 0
    moves = (seen[:, part].sum(axis=1) > 0) & ~beyond
    xyz[moves] = middle + factor * (xyz[moves] - middle)
    kept = moves[answer.point] | ~np.isin(answer.view, part)
    return replace(
        answer,
        cam_from_world=poses,
        xyz=xyz,
        point=answer.point[kept],
        view=answer.view[kept],
        xy=answer.xy[kept],
    )


def _median(ratios: np.ndarray) -> float:
    known = ratios[np.isfinite(ratios)]
    return float(np.median(known)) if len(known) else 1.0
