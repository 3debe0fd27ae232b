"""The focal length of a shared camera from matches alone: the one by which most of them fit an essential matrix.

Counting inliers stays robust where solving for the focal length from fundamental matrices degenerates: planar scenes
and cameras that mostly rotate. A wrong focal length still loses inliers.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.geometry.lens import LENSES
from lean3r.refine.job import Group, Job
from lean3r.refine.matching import image_ids

FOCALS = np.geomspace(0.55, 2.0, 14)  # in longer sides of the picture: 85 to 28 degrees
PAIRS, LEAST_PAIRS, LEAST_MATCHES = 40, 6, 50  # pairs that are tried, pairs that are needed, matches that each needs
MOST_MATCHES, FAR_PX = 300, 80.0  # of a pair: more or farther than that makes it no better
ERROR_PX = 1.5


def with_focals(job: Job, database: Path) -> Job:
    """The job with focal lengths estimated from its matches, for cameras without a stated one."""
    groups = list(job.groups)
    for number, group in enumerate(groups):
        if not (group.fixed or group.trusted):
            focal = consensus(_pairs(job, database, number), group, job.threads)
            if focal is not None:
                count, _ = LENSES[group.model]
                params = (*[focal] * count, *group.params[count:])
                groups[number] = replace(group, params=params, trusted=True)
    return replace(job, groups=tuple(groups))


def consensus(pairs: list[tuple[np.ndarray, np.ndarray]], group: Group, threads: int) -> float | None:
    """The focal length in pixels with the most inliers (pixels [M, 2] in both views of each pair); None if too few."""
    if len(pairs) < LEAST_PAIRS:
        return None
    options = pycolmap.RANSACOptions()
    options.max_error, options.random_seed, options.min_num_trials, options.max_num_trials = ERROR_PX, 0, 100, 400
    side = max(group.width, group.height)

    def fitting_of(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        inliers = np.zeros(len(FOCALS))
        for index, focal in enumerate(FOCALS * side):
            params = (focal, group.width / 2, group.height / 2)
            camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=group.width, height=group.height, params=params)
            estimate = pycolmap.estimate_essential_matrix(*pair, camera, camera, options)
            inliers[index] = 0 if estimate is None else estimate["num_inliers"]
        return inliers / max(inliers.max(), 1.0)

    with ThreadPoolExecutor(threads) as pool:  # lean3r.parallel would import torch
        fitting = np.sum(list(pool.map(fitting_of, pairs)), axis=0)
    best = int(fitting.argmax())
    if best in (0, len(FOCALS) - 1):
        return None
    # The vertex of a parabola through the best value and its neighbours, in steps of the grid.
    low, top, high = fitting[best - 1 : best + 2]
    shift = 0.5 * (low - high) / min(low - 2 * top + high, -1e-9)
    return float(FOCALS[best] * (FOCALS[1] / FOCALS[0]) ** float(np.clip(shift, -1, 1)) * side)


def _pairs(job: Job, database: Path, group: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Matched pixels of the most informative pairs within a group: many matches, wide displacement."""
    ids = {i: image for i, image in image_ids(job, database).items() if job.views[i].group == group}
    of_image = {image: view for view, image in ids.items()}
    scored = []
    with pycolmap.Database.open(database) as opened:
        xy = {image: np.asarray(opened.read_keypoints(image))[:, :2].astype(np.float64) for image in of_image}
        for pair, index in zip(*opened.read_all_matches(), strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair)
            if first in xy and second in xy and len(index) >= LEAST_MATCHES:
                a, b = xy[first][np.asarray(index)[:, 0]], xy[second][np.asarray(index)[:, 1]]
                moved = float(np.median(np.linalg.norm(a - b, axis=1)))
                scored.append((min(len(index), MOST_MATCHES) * min(moved, FAR_PX), pair, a, b))
    scored.sort(key=lambda item: (-item[0], item[1]))
    return [(a, b) for _, _, a, b in scored[:PAIRS]]
