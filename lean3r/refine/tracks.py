"""Points that are followed from frame to frame of a video where features find little.

On bare walls and in the blur of a quick turn the description of a feature is seldom found again, and the few matches
that are left decide how all behind them lies. The picture itself still shows where a spot went: it is followed by the
method of Lucas and Kanade (inputs/flow.py), both ways, from where the matches that there are say that it should be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from lean3r.colmap_library import pycolmap
from lean3r.inputs.flow import LEAST_CORNER, UNLIKE, Patches, pyramid
from lean3r.inputs.motion import whole_shift
from lean3r.refine.job import MASKS, PICTURES, Job
from lean3r.refine.matching import LEAST_INLIERS, image_ids

ALONG, ACROSS = 6, 4  # cells of a frame along its longer and its shorter side
WEAK = 100  # matches of two consecutive frames below which points are followed; above, they only made models less exact
LEAST = 8  # matches of a cell with the next frame, below which points are followed there
TRIED = 2  # candidates for each that a cell lacks
LEVELS, LEVELS_BACK = 3, 2  # sizes of the picture, each half the one before
CORNER_PX = 7  # at most one new point in a square of so many pixels
BACK_PX = 0.4  # from where a point began to where it is followed back
SAME_PX = 0.6  # from a feature, of which a followed point is a measurement
BORDER_PX = 3.0  # from the edge of the picture
AWAY_PX, LEAST_PLANE = 8.0, 12  # of matches from a plane's motion, by which points are looked for; matches for one
MOST_CONDITION = 1e12  # of a homography that has an inverse
REACH = 3  # frames over which a track gives matches


@dataclass(eq=False)
class Frame:
    """A frame of a video: its picture [H, W] float32, grey; the places xy [N, 2] of its points, features first; where
    points are `allowed` [H, W] bool (None: everywhere); and of points that earlier frames show, these frames, the
    number of the point in them, and whether it was followed on the way, the last frame first."""

    picture: np.ndarray
    xy: np.ndarray
    allowed: np.ndarray | None = None
    earlier: dict[int, list[tuple[int, int, bool]]] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, folder: Path, view: int, xy: np.ndarray) -> Frame:
        """A view of a job in its folder, with features at these places [N, 2]."""
        file = job.views[view].file
        assert file is not None
        mask = folder / MASKS / f"{file}.png"
        allowed = _grey(mask) > 0 if mask.is_file() else None
        return cls(_grey(folder / PICTURES / file).astype(np.float32), xy.astype(np.float64), allowed)

    @cached_property
    def levels(self) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """The picture in each size, and its slopes along rows and columns."""
        return [(each, list(np.gradient(each))) for each in pyramid(self.picture, LEVELS)]

    def add(self, xy: np.ndarray) -> range:
        """New points, and their numbers."""
        first = len(self.xy)
        self.xy = np.concatenate([self.xy, xy])
        return range(first, len(self.xy))


def add_tracks(job: Job, folder: Path, database: Path) -> None:
    """Follow points through the frames of each video of a job, where few features match those of the next frame, and
    add the points and their matches over several frames to the database, behind the features."""
    ids = image_ids(job, database)
    with pycolmap.Database.open(database) as opened:
        matches = _read_matches(opened, {image: view for view, image in ids.items()})
        for run in job.sequences:
            views = [view for view in run if view in ids]
            stored = {view: np.asarray(opened.read_keypoints(ids[view])) for view in views}
            followed: dict[tuple[int, int], list[tuple[int, int]]] = {}
            # Two frames at a time: their pictures in all sizes are large.
            frames = (Frame.of(job, folder, view, stored[view][:, :2]) for view in views)
            for (at, first), (after, second) in pairwise(zip(views, frames, strict=True)):
                follow(first, second, at, matches.get((at, after), np.zeros((0, 2), np.int64)))
                for number, track in second.earlier.items():
                    for view, before, is_followed in track:
                        if is_followed:
                            followed.setdefault((view, after), []).append((before, number))
                for view, frame in ((at, first), (after, second)):
                    opened.update_keypoints(ids[view], _with_points(stored[view], frame.xy))
            for (a, b), pairs in followed.items():
                known = matches.get((a, b))
                both = _joined(known, np.array(pairs, np.int64))
                if known is not None:
                    opened.delete_matches(ids[a], ids[b])
                if known is not None or len(both) >= LEAST_INLIERS:
                    opened.write_matches(ids[a], ids[b], both.astype(np.uint32))


def follow(first: Frame, second: Frame, view: int, matches: np.ndarray) -> None:
    """Follow points of one frame, number `view`, to the next, whose features match so [M, 2]; both get the points that
    they lack, and the second one knows its tracks."""
    found = [(int(a), int(b), False) for a, b in matches]
    guess = _motion(first, second, matches) if len(matches) < WEAK else None
    if guess is not None:
        candidates, cells = _candidates(first, matches)
        there, is_found = _track(first, second, first.xy[candidates], guess)
        is_found &= _inside(there, second)
        lacking = _lacking(first, matches)
        taken = {b for _, b, _ in found}
        for number, cell, place in zip(candidates[is_found], cells[is_found], there[is_found], strict=True):
            if lacking[cell] <= 0:
                continue
            away = np.linalg.norm(second.xy - place, axis=1) if len(second.xy) else np.full(1, np.inf)
            nearest = int(away.argmin())
            if away[nearest] < SAME_PX and nearest in taken:
                continue
            at = nearest if away[nearest] < SAME_PX else second.add(place[None])[0]
            taken.add(at)
            lacking[cell] -= 1
            found.append((int(number), at, True))
    for a, b, is_followed in found:
        before = [(v, number, was or is_followed) for v, number, was in first.earlier.get(a, ())]
        second.earlier[b] = [(view, a, is_followed), *before][:REACH]


def _motion(first: Frame, second: Frame, matches: np.ndarray) -> np.ndarray | None:
    """The homography [3, 3] from one frame to the next that most matches are near; with few matches, the shift of the
    whole picture; None if that is not known."""
    if len(matches) >= LEAST_PLANE:
        options = pycolmap.RANSACOptions()
        options.max_error, options.random_seed = AWAY_PX, 0
        plane = pycolmap.estimate_homography_matrix(first.xy[matches[:, 0]], second.xy[matches[:, 1]], options)
        if plane is not None and np.linalg.cond(plane["H"]) < MOST_CONDITION:
            return np.asarray(plane["H"])
    shift = whole_shift(first.picture, second.picture) if first.picture.shape == second.picture.shape else None
    return None if shift is None else np.array([[1, 0, shift[1]], [0, 1, shift[0]], [0, 0, 1.0]])


def _candidates(frame: Frame, matches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points to follow from the cells of a frame that have few of these matches, and the cells: those that were
    followed longest first, then features, then corners, which the frame gets as new points."""
    lacking = _lacking(frame, matches)
    corners = _corners(frame, lacking)
    frame.add(corners[~np.isin(_squares(corners), _squares(frame.xy))])
    numbers = np.setdiff1d(np.arange(len(frame.xy)), matches[:, 0])
    length = np.array([len(frame.earlier.get(number, ())) for number in numbers.tolist()], int)
    numbers = numbers[np.argsort(-length, kind="stable")]
    _, first_of_square = np.unique(_squares(frame.xy[numbers]), return_index=True)
    numbers = numbers[np.sort(first_of_square)]
    numbers = numbers[_inside(frame.xy[numbers], frame)]
    cells = _cells(frame, frame.xy[numbers])
    chosen = np.zeros(len(numbers), bool)
    for cell in np.flatnonzero(lacking > 0):
        chosen[np.flatnonzero(cells == cell)[: TRIED * lacking[cell]]] = True
    return numbers[chosen], cells[chosen]


def _lacking(frame: Frame, matches: np.ndarray) -> np.ndarray:
    """How many points each cell of a frame lacks that has these matches."""
    return LEAST - np.bincount(_cells(frame, frame.xy[matches[:, 0]]), minlength=ALONG * ACROSS)


def _corners(frame: Frame, lacking: np.ndarray) -> np.ndarray:
    """The middle [N, 2] of each square that shows a corner, of the cells that lack matches, the clearest first."""
    if not (lacking > 0).any():
        return np.zeros((0, 2))
    dy, dx = frame.levels[0][1]
    yy, xx, xy = (_by_squares(product) for product in (dy * dy, dx * dx, dy * dx))
    clear = ((yy + xx) / 2 - np.sqrt(((yy - xx) / 2) ** 2 + xy**2)).ravel()  # the smaller eigenvalue
    row, column = np.divmod(np.arange(len(clear)), yy.shape[1])
    found = CORNER_PX * (np.stack([column, row], 1) + 0.5)
    usable = (clear > LEAST_CORNER) & (lacking[_cells(frame, found)] > 0)
    return found[usable][np.argsort(-clear[usable], kind="stable")]


def _by_squares(values: np.ndarray) -> np.ndarray:
    """The mean in each square of CORNER_PX."""
    rows, columns = (side // CORNER_PX for side in values.shape)
    whole = values[: rows * CORNER_PX, : columns * CORNER_PX]
    return whole.reshape(rows, CORNER_PX, columns, CORNER_PX).mean((1, 3))


def _track(first: Frame, second: Frame, xy: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points [N, 2] of one frame are in the next [N, 2], by way of a guess, and whether they are found: the way
    back leads to where they began."""
    if not len(xy):
        return xy, np.zeros(0, bool)
    there, is_like = _one_way(first, second, xy, _moved(guess, xy), LEVELS)
    back, is_like_back = _one_way(second, first, there, _moved(np.linalg.inv(guess), there), LEVELS_BACK)
    return there, is_like & is_like_back & (np.linalg.norm(back - xy, axis=1) < BACK_PX)


def _one_way(
    first: Frame, second: Frame, xy: np.ndarray, there: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    at, moved = (xy[:, ::-1] - 0.5).astype(np.float32), (there - xy)[:, ::-1].astype(np.float32)
    unlike = corner = np.zeros(len(xy))
    for level in reversed(range(levels)):
        (before, slopes), (after, _) = first.levels[level], second.levels[level]
        patches = Patches(before, 2**level, at, slopes)
        moved, unlike = patches.track(after, moved / 2**level)
        moved, corner = moved * 2**level, patches.corner
    found = xy + moved[:, ::-1]
    is_found = (corner > LEAST_CORNER) & (unlike < UNLIKE)
    return found, is_found & np.isfinite(found).all(1)


def _moved(plane: np.ndarray, xy: np.ndarray) -> np.ndarray:
    places = np.column_stack([xy, np.ones(len(xy))]) @ plane.T
    return places[:, :2] / np.where(np.abs(places[:, 2:]) < 1e-9, 1e-9, places[:, 2:])


def _inside(xy: np.ndarray, frame: Frame) -> np.ndarray:
    """Whether places [N, 2] are in the picture, and allowed."""
    height, width = frame.picture.shape
    inside = np.all((xy >= BORDER_PX) & (xy <= (width - BORDER_PX, height - BORDER_PX)), axis=1)
    if frame.allowed is not None:
        x, y = np.clip(np.nan_to_num(xy), 0, (width - 1, height - 1)).astype(int).T
        inside &= frame.allowed[y, x]
    return inside


def _cells(frame: Frame, xy: np.ndarray) -> np.ndarray:
    """The number of the cell that each place [N, 2] is in."""
    height, width = frame.picture.shape
    columns, rows = (ALONG, ACROSS) if width >= height else (ACROSS, ALONG)
    x, y = np.clip(xy / (width, height) * (columns, rows), 0, (columns - 1, rows - 1)).astype(int).T
    return y * columns + x


def _squares(xy: np.ndarray) -> np.ndarray:
    """A number for the square of CORNER_PX that each place [N, 2] is in."""
    x, y = np.maximum(xy // CORNER_PX, 0).astype(np.int64).T
    return y * (1 << 32) + x


def _grey(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"))


def _read_matches(opened: pycolmap.Database, view_of: dict[int, int]) -> dict[tuple[int, int], np.ndarray]:
    """The matches [M, 2] of a database, by pairs of views, the earlier one first."""
    matches = {}
    for pair, index in zip(*opened.read_all_matches(), strict=True):
        a, b = (view_of[image] for image in pycolmap.pair_id_to_image_pair(pair))
        index = np.asarray(index).astype(np.int64)
        matches[min(a, b), max(a, b)] = index if a < b else index[:, ::-1]
    return matches


def _with_points(stored: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """A database's keypoints [K, C], and further points behind them as features of the size of a pixel."""
    more = np.zeros((len(xy) - len(stored), stored.shape[1]), np.float32)
    more[:, :2] = xy[len(stored) :]
    if stored.shape[1] == 6:
        more[:, [2, 5]] = 1.0
    return np.concatenate([stored.astype(np.float32), more])


def _joined(matches: np.ndarray | None, more: np.ndarray) -> np.ndarray:
    """Matches [M, 2], and those of more that contradict none of them."""
    if matches is None:
        return more
    new = ~np.isin(more[:, 0], matches[:, 0]) & ~np.isin(more[:, 1], matches[:, 1])
    return np.concatenate([matches, more[new]])
