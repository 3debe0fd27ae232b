"""Overlays on a video or on photos, such as a logo, the time or a frame: they stand still while the picture moves. On
videos also those that run through a strip of it, as news do, whose words match others, too.

They match best of all, as if the camera were at rest, and can outnumber the matches of the scene. What gives them away
is the place: there, most matches stand still, or are all shifted by the same, in pairs of frames between which the rest
of the picture moves far. Points of a scene hardly ever do (6 of 21,531 matches of a walk through an office). So does a
background that rests while a thing turns before it, whose matches are ten times as many as those of the thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.crops import of_crops
from lean3r.refine.job import Job
from lean3r.refine.matching import LEAST_INLIERS, image_ids

CELL = 16  # pixels; the side of the squares that are an overlay or not
STILL_PX, MOVED_PX = 1.0, 16.0  # a match that stands still; median of the others in a picture that moves
MOST, LEAST = 0.5, 10  # share and number of the matches at a place that stand still, where it is an overlay
RUN_PX, LEVEL_PX, MANY = 4.0, 0.3, 100  # how far a text runs, and goes up or down; its matches in a row of squares
LEAST_OF_PHOTOS = 3  # such a number: they are few, and seldom taken twice from one place
RESTS = (
    "most of the picture rests while a part of it moves, as a thing on a turntable or a film within a frame: cameras "
    "are relative to what moves"
)


def drop_overlays(job: Job, database: Path) -> bool:
    """Remove the matches of overlays on the frames of videos, and on photos, from a database; of frames also those of
    flat pictures (crops.py). Whether most matches were such, as of a background that rests."""
    ids, rests = image_ids(job, database), False
    with pycolmap.Database.open(database) as opened:
        listed = zip(*opened.read_all_matches(), strict=True)
        pairs = [(*pycolmap.pair_id_to_image_pair(pair), np.asarray(index)) for pair, index in listed if len(index)]
        for alike, least in _in_one_format(job):
            group, frames = job.groups[job.views[alike[0]].group], [ids[view] for view in alike if view in ids]
            xy = {image: np.asarray(opened.read_keypoints(image))[:, :2].astype(np.float64) for image in frames}
            within = [(a, b, index) for a, b, index in pairs if a in xy and b in xy]
            before = [xy[a][index[:, 0]] for a, _, index in within]
            after = [xy[b][index[:, 1]] for _, b, index in within]
            found, most_do = overlaid(before, after, group.width, group.height, least)
            rests |= most_do
            if alike in job.sequences:
                flat = of_crops([(a, b) for a, b, _ in within], before, after)
                runs = running(before, after, group.height)
                found = [np.any(each, axis=0) for each in zip(found, runs, flat, strict=True)]
            for (a, b, index), is_overlay in zip(within, found, strict=True):
                if is_overlay.any():
                    opened.delete_matches(a, b)
                    opened.write_matches(a, b, index[~is_overlay].astype(np.uint32))
    return rests


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
) -> tuple[list[np.ndarray], bool]:
    """Which matches of each pair of pictures, pixels [M, 2] in both, are of an overlay [M] bool: at places where most
    of them, and at least so many, stand still; or at all places, if most matches do. Whether they do: then a background
    rests, of which a thing before it shows some places in a few pictures only."""
    still_there, all_there = np.zeros((2, -(-height // CELL), -(-width // CELL)))
    cells, still = [], []
    for old, new in zip(before, after, strict=True):
        moved = np.linalg.norm(new - old, axis=1)
        is_still = moved < STILL_PX
        cells.append(cell := cells_of(old, still_there.shape))
        still.append(is_still)
        if (~is_still).sum() >= LEAST_INLIERS and np.median(moved[~is_still]) >= MOVED_PX:
            np.add.at(all_there, cell, 1)
            np.add.at(still_there, cell, is_still)
    is_overlay = (still_there >= least) & (still_there > MOST * all_there)
    rests = bool(still_there.sum() > MOST * all_there.sum())
    return [is_still & (rests | is_overlay[cell]) for is_still, cell in zip(still, cells, strict=True)], rests


def cells_of(xy: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column [M] of the squares, in a grid of this shape, in which pixels [M, 2] lie."""
    rows, columns = shape
    column, row = np.clip(xy // CELL, 0, (columns - 1, rows - 1)).astype(int).T
    return row, column


def running(before: list[np.ndarray], after: list[np.ndarray], height: int) -> list[np.ndarray]:
    """Which matches of each pair of frames, pixels [M, 2] in both, begin in strips [M] bool through which a text runs:
    most of their matches, and many, are shifted alike, level to a fraction of a pixel. No hand turns a camera so."""
    running_there, all_there = np.zeros((2, -(-height // CELL)))
    rows = [(np.clip(old[:, 1], 0, height - 1) // CELL).astype(int) for old in before]
    for old, new, row in zip(before, after, rows, strict=True):
        shift = usual_shift(old, new)
        runs = np.linalg.norm(new - old - shift, axis=1) < STILL_PX
        if abs(shift[0]) >= RUN_PX and abs(shift[1]) < LEVEL_PX:
            np.add.at(all_there, row, 1)
            np.add.at(running_there, row[runs], 1)
    is_strip = (running_there >= MANY) & (running_there > MOST * all_there)
    return [is_strip[row] for row in rows]


def usual_shift(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The shift [2] of the most matches, pixels [M, 2], that are shifted alike: within STILL_PX or nearly so."""
    shift = new - old
    cell = np.floor(shift / STILL_PX).astype(int)
    counts: Counter[tuple[int, int]] = Counter()
    for x, y in ((0, 0), (0, 1), (1, 0), (1, 1)):  # squares of two cells a side, which overlap
        counts.update(map(tuple, (cell - (x, y)).tolist()))
    (first, _), *_ = counts.most_common(1)
    return np.median(shift[((cell - first) // 2 == 0).all(1)], axis=0)
