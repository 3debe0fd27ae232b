"""Overlays on a video or on photos, such as a logo, the time or a frame: they stand still while the picture moves.

They match best of all, as if the camera were at rest, and can outnumber the matches of the scene. What gives them away
is the place: there, most matches stand still, in pairs of frames between which the rest of the picture moves far.
Points of a scene hardly ever do (6 of 21,531 matches of a walk through an office).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.job import Job
from lean3r.refine.matching import LEAST_INLIERS, image_ids

CELL = 16  # pixels; the side of the squares that are an overlay or not
STILL_PX, MOVED_PX = 1.0, 16.0  # a match that stands still; median of the others in a picture that moves
MOST, LEAST = 0.5, 10  # share and number of the matches at a place that stand still, where it is an overlay
LEAST_OF_PHOTOS = 3  # such a number: they are few, and seldom taken twice from one place


def drop_overlays(job: Job, database: Path) -> None:
    """Remove the matches of overlays on the frames of videos, and on photos, from a database."""
    ids = image_ids(job, database)
    with pycolmap.Database.open(database) as opened:
        listed = zip(*opened.read_all_matches(), strict=True)
        pairs = [(*pycolmap.pair_id_to_image_pair(pair), np.asarray(index)) for pair, index in listed if len(index)]
        for alike, least in _in_one_format(job):
            group, frames = job.groups[job.views[alike[0]].group], [ids[view] for view in alike if view in ids]
            xy = {image: np.asarray(opened.read_keypoints(image))[:, :2].astype(np.float64) for image in frames}
            within = [(a, b, index) for a, b, index in pairs if a in xy and b in xy]
            before = [xy[a][index[:, 0]] for a, _, index in within]
            after = [xy[b][index[:, 1]] for _, b, index in within]
            found = overlaid(before, after, group.width, group.height, least)
            for (a, b, index), is_overlay in zip(within, found, strict=True):
                if is_overlay.any():
                    opened.delete_matches(a, b)
                    opened.write_matches(a, b, index[~is_overlay].astype(np.uint32))


def _in_one_format(job: Job) -> list[tuple[Sequence[int], int]]:
    """Views that would carry an overlay at the same place: the frames of a video, and photos of one size; and how many
    matches must stand still there."""
    in_videos = {view for run in job.sequences for view in run}
    photos: dict[tuple[int, int], list[int]] = {}
    for number, view in enumerate(job.views):
        if number not in in_videos:
            photos.setdefault((job.groups[view.group].width, job.groups[view.group].height), []).append(number)
    return [*((run, LEAST) for run in job.sequences), *((views, LEAST_OF_PHOTOS) for views in photos.values())]


def overlaid(
    before: list[np.ndarray], after: list[np.ndarray], width: int, height: int, least: int
) -> list[np.ndarray]:
    """Which matches of each pair of pictures, pixels [M, 2] in both, are of an overlay [M] bool: at places where most
    of them, and at least so many, stand still."""
    still_there, all_there = np.zeros((2, -(-height // CELL), -(-width // CELL)))
    cells, still = [], []
    for old, new in zip(before, after, strict=True):
        moved = np.linalg.norm(new - old, axis=1)
        is_still = moved < STILL_PX
        row, column = (np.clip(old, 0, (width - 1, height - 1)) // CELL).astype(int).T[::-1]
        cells.append((row, column))
        still.append(is_still)
        if (~is_still).sum() >= LEAST_INLIERS and np.median(moved[~is_still]) >= MOVED_PX:
            np.add.at(all_there, (row, column), 1)
            np.add.at(still_there, (row[is_still], column[is_still]), 1)
    is_overlay = (still_there >= least) & (still_there > MOST * all_there)
    return [is_still & is_overlay[cell] for is_still, cell in zip(still, cells, strict=True)]
