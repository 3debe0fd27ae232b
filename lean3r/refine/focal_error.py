"""How well an adjustment of photographs determines their focal lengths, by its covariance.

A small reprojection error says nothing of it: few pictures, or a level flight over level ground, fit many focal
lengths, and angles, distances and depth go wrong with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from lean3r.geometry.lens import LENSES
from lean3r.refine.equations import Equations, inverse
from lean3r.refine.job import Answer, Group, Job
from lean3r.refine.judge import centres_of, places

STATED = 0.05  # deviation of focal lengths by EXIF data
GUESSED = 0.3  # of a network's: in places that it never saw 0.03 to 0.55, 0.26 in the root mean square
# A common part of all errors, in their standard deviations: matches err together, lenses differ from their models. On
# 59 sets of 3 to 6 photographs, 57 focal lengths were off by less than is said with it, mostly by a third of it.
COMMON = 0.2
FAR = 0.1  # deviation that matters; where less was expected, focal lengths were off by 0.04 at most
DAMPING = 1e-9
BATCH = 5000  # measurements whose change with all lenses is held at once
MOST_POINTS = 6000  # what a common part of all errors leaves does not depend on their number


def focal_error(job: Job, answer: Answer) -> float | None:
    """The relative deviation to expect of the focal lengths of the trusted views, by what was known and the pictures: 0
    where they were given. None for videos, whose many frames tell it, and for poses that are held."""
    if job.sequences or job.held.any():
        return None
    views = np.flatnonzero(answer.has & answer.trusted)
    groups = [job.groups[job.views[view].group] for view in views]
    if all(group.fixed or group.focal_fixed for group in groups):
        return 0.0
    if len({answer.camera[view] for view in views}) > len({job.views[view].group for view in views}):
        groups = [replace(group, trusted=False) for group in groups]  # what EXIF states of all did not fit
    are_told = places(centres_of(answer.cam_from_world[views])) > 2  # an adjustment of two holds it
    of_pictures = deviation(answer) if are_told else np.inf
    return float(1 / np.hypot(1 / of_known(groups), 1 / of_pictures))


def of_known(groups: Iterable[Group]) -> float:
    """The relative deviation of focal lengths before an adjustment."""
    return STATED if all(group.trusted or group.fixed for group in groups) else GUESSED


def deviation(answer: Answer) -> float:
    """The relative deviation to expect of the focal lengths that an adjustment of three trusted views or more finds."""
    return float(np.sqrt(np.median(expected_variances(answer)[0])))


def expected_variances(answer: Answer, frees_centres: bool = False) -> np.ndarray:
    """`lens_variances` of the trusted views, with the common part of all errors; infinite where they cannot be told."""
    answer = some_points(answer.of_trusted(), MOST_POINTS)
    try:
        variances = lens_variances(replace(answer, has=answer.has & answer.trusted), frees_centres)
    except np.linalg.LinAlgError:
        return np.full((3 if frees_centres else 1, 1), np.inf)
    return (COMMON**2 * len(answer.point) + 1) * variances


def some_points(answer: Answer, most: int) -> Answer:
    """The answer with every n-th point, so that no more are left."""
    step = -(-len(answer.xyz) // most)
    if step <= 1:
        return answer
    kept = answer.point % step == 0
    return replace(
        answer,
        xyz=answer.xyz[::step],
        error_px=answer.error_px[::step],
        point=answer.point[kept] // step,
        view=answer.view[kept],
        xy=answer.xy[kept],
    )


def lens_variances(answer: Answer, frees_centres: bool = False) -> np.ndarray:
    """Of the logarithm of each camera's focal length [1, C], of an adjustment with poses, points, focal lengths and the
    first radial distortion free; or [3, C], also of its principal points, by x and y in focal lengths, free as well.
    LinAlgError if its equations cannot be solved."""
    of = Equations(answer)
    used = sorted({answer.camera[view] for view in of.views})
    bends = np.array([LENSES[answer.models[camera]][1] > 0 for camera in used])
    wanted = 3 if frees_centres else 1
    views, count = len(of.views), wanted * len(used) + int(bends.sum())
    number = np.array([used.index(answer.camera[view]) for view in of.views])

    def by_lens(some: slice) -> np.ndarray:
        return _by_lens(of, some, number, bends, frees_centres)

    # What is told of the lenses, and of them and the poses together, without what the freedom of the points costs.
    own, mixed, told = np.zeros((count, count)), np.zeros((views, 6, count)), np.zeros((len(of.xyz), 3, count))
    parts = [slice(start, start + BATCH) for start in range(0, len(of.view), BATCH)]
    for some in parts:
        np.add.at(told, of.point[some], of.by_point[some].transpose(0, 2, 1) @ by_lens(some))
    told = inverse(of.information_of_points()) @ told
    for some in parts:
        mine = by_lens(some)
        left = mine - of.by_point[some] @ told[of.point[some]]
        own += np.tensordot(mine, left, ((0, 1), (0, 1)))
        np.add.at(mixed, of.view[some], of.by_pose[some].transpose(0, 2, 1) @ left)
    mixed = mixed.reshape(6 * views, count)
    poses = of.information()
    size = np.sqrt(np.maximum(np.diag(poses), np.finfo(float).tiny))
    poses, mixed = poses / size[:, None] / size + DAMPING * np.eye(len(size)), mixed / size[:, None]
    told = own - mixed.T @ np.linalg.solve(poses, mixed)
    size = np.sqrt(np.maximum(np.diag(own), np.finfo(float).tiny))
    covariance = np.linalg.inv(told / size[:, None] / size + DAMPING * np.eye(count)) / size[:, None] / size
    variances = np.diag(covariance)[: wanted * len(used)].reshape(wanted, len(used))
    return np.where(variances > 0, variances, np.inf)  # rounding leaves others where nothing determines them


def _by_lens(of: Equations, some: slice, number: np.ndarray, bends: np.ndarray, frees_centres: bool) -> np.ndarray:
    """How `some` measurements [O, 2, K] change with the logarithms of the cameras' focal lengths, then with their
    principal points if wanted, and then with the first distortion of those that have one (`bends` [C]), in standard
    deviations; `number` [V] is that of each view's camera."""
    view = of.view[some]
    turned = (of.pose[view, :3, :3] @ of.xyz[of.point[some]][..., None])[..., 0] + of.pose[view, :3, 3]
    rays = turned[:, :2] / turned[:, 2:]
    # `by_pose` ends with the change by a translation: along x, that is the focal length in standard deviations by z.
    focal = (of.by_pose[some, 0, 3] * turned[:, 2])[:, None]
    by_focal = rays * focal
    mine = (number[view][:, None] == np.arange(len(bends)))[:, None]
    columns = [by_focal[..., None] * mine]
    if frees_centres:
        columns += [(focal * axis)[..., None] * mine for axis in np.eye(2)]
    columns.append((by_focal * (rays**2).sum(1, keepdims=True))[..., None] * mine[..., bends])
    return np.concatenate(columns, axis=2)
