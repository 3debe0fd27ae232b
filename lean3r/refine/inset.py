"""Insets on a video that turn as the camera turns, such as the map of a drone or of a game, or a wheel to steer by.

Their matches agree with each other wherever the camera looks, so that frames that share nothing seem to. What gives
them away: all verified matches of such frames lie at one small place of the picture, the same in both, which turns as a
sheet of paper does, while the rest of the picture turns otherwise. Where a camera is rolled, all of the picture turns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.job import Job
from lean3r.refine.matching import LEAST_INLIERS, Matches, image_ids
from lean3r.refine.moving import keep_only
from lean3r.refine.overlay import CELL, cells_of

SMALL, APART = 0.2, 0.1  # radius of an inset, and how far its middle may seem to move, in shorter sides of the picture
SHEET_PX = 2.0  # how far its matches may be from where a sheet of paper has them
MOST, LEAST, PAIRS = 0.5, 10, 3  # share and number of matches, and pairs of frames, that show an inset
TURN_RAD = np.radians(5)  # by which it turns there
SEEN = 8  # matches of an inset and of the rest, by which their turns are compared


def drop_insets(job: Job, database: Path, matches: Matches) -> bool:
    """Remove the matches of insets on the frames of videos from a database, by those that are verified; whether there
    were any."""
    ids, dropped = image_ids(job, database), False
    for run in job.sequences:
        group = job.groups[job.views[run[0]].group]
        frames = set(run)
        within = [n for n, pair in enumerate(matches.pairs.tolist()) if frames.issuperset(pair)]
        before = [matches.keypoints[matches.pairs[n, 0]][matches.indices[n][:, 0]] for n in within]
        after = [matches.keypoints[matches.pairs[n, 1]][matches.indices[n][:, 1]] for n in within]
        is_inset = inset(before, after, group.width, group.height)
        if is_inset.any():
            _drop(is_inset, database, {ids[view]: matches.keypoints[view] for view in run if view in ids})
            dropped = True
    return dropped


def _drop(is_inset: np.ndarray, database: Path, keypoints: dict[int, np.ndarray]) -> None:
    lies_there = {image: is_inset[cells_of(xy, is_inset.shape)] for image, xy in keypoints.items()}
    left = {}
    with pycolmap.Database.open(database) as opened:
        for pair, index in zip(*opened.read_all_matches(), strict=True):
            a, b = pycolmap.pair_id_to_image_pair(pair)
            if a in lies_there and b in lies_there and len(index):
                first, second = np.asarray(index).T
                left[a, b] = np.asarray(index)[~(lies_there[a][first] | lies_there[b][second])]
    keep_only(left, database)


def inset(before: list[np.ndarray], after: list[np.ndarray], width: int, height: int) -> np.ndarray:
    """Which squares [rows, columns] bool of the pictures belong to insets, by the verified matches of pairs of frames,
    pixels [M, 2] in both."""
    sheets, staying, everywhere = np.zeros((3, -(-height // CELL), -(-width // CELL)))
    pairs = 0
    for old, new in zip(before, after, strict=True):
        if _is_in_place(old, new, min(width, height)):
            fits, turn = _as_a_sheet(old, new)
            if fits.sum() > MOST * len(old) and abs(np.angle(turn)) > TURN_RAD:
                np.add.at(sheets, cells_of(old[fits], sheets.shape), 1)
                pairs += 1
    is_inset = _with_neighbours(sheets >= LEAST)
    if pairs < PAIRS or not is_inset.any() or not _turns_alone(is_inset, before, after):
        return np.zeros_like(is_inset)
    for old, new in zip(before, after, strict=True):
        cells = cells_of(old, is_inset.shape)
        np.add.at(everywhere, cells, 1)
        np.add.at(staying, cells, is_inset[cells_of(new, is_inset.shape)])
    return is_inset & (staying >= MOST * everywhere)


def _is_in_place(old: np.ndarray, new: np.ndarray, side: int) -> bool:
    """Whether most matches are at one place, the same in both frames."""
    centres = np.median(old, axis=0), np.median(new, axis=0)
    if np.linalg.norm(centres[1] - centres[0]) > APART * side:
        return False
    return all(
        np.median(np.linalg.norm(xy - c, axis=1)) < SMALL * side for xy, c in zip((old, new), centres, strict=True)
    )


def _as_a_sheet(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, complex]:
    """Which matches [M] bool are moved as a sheet of paper is, by their usual turn, and that turn, of length one."""
    turn = usual_turn(old, new)
    from_, to = old @ (1, 1j), new @ (1, 1j)
    shift = to - turn * from_
    centre = np.median(shift.real) + 1j * np.median(shift.imag)
    return np.abs(shift - centre) < SHEET_PX, turn


def usual_turn(old: np.ndarray, new: np.ndarray) -> complex:
    """The turn in the picture, a complex number of length one, of most lines between two matches, pixels [M, 2]."""
    from_, to = old @ (1, 1j), new @ (1, 1j)
    turns = []
    for step in range(1, min(len(old), 8)):  # each match with others of its frame, in no order
        lines = (np.roll(from_, step) - from_) * np.conj(np.roll(to, step) - to)
        turns.append(np.conj(lines[np.abs(lines) > 0]))
    of_lines = np.concatenate(turns)
    of_lines /= np.abs(of_lines)
    usual = np.median(np.real(of_lines)) + 1j * np.median(np.imag(of_lines))
    return complex(usual / max(abs(usual), 1e-9))


def _turns_alone(is_inset: np.ndarray, before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    """Whether the rest of the picture turns otherwise, in frames in which matches of both are verified."""
    turned = otherwise = 0.0
    pairs = 0
    for old, new in zip(before, after, strict=True):
        within = is_inset[cells_of(old, is_inset.shape)]
        if within.sum() >= SEEN and (~within).sum() >= LEAST_INLIERS:
            turn, rest = usual_turn(old[within], new[within]), usual_turn(old[~within], new[~within])
            turned += abs(np.angle(turn))
            otherwise += abs(np.angle(turn / rest))
            pairs += 1
    return pairs >= PAIRS and otherwise > MOST * turned


def _with_neighbours(cells: np.ndarray) -> np.ndarray:
    padded = np.pad(cells, 1)
    rows, columns = cells.shape
    return np.any([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0)
