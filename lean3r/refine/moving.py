"""Photos in which something large moves by itself: a person, a bus, a cat.

If it shows much detail, a model may follow it instead of the place behind it, and fit it well. What gives that away:
the matches that such a model leaves agree on another motion, in other parts of the pictures. (Repeated windows match
others too, but among those whose right matches are more.) Which of both motions is that of the place is told by
how far they spread: a thing is compact, and the place is all around it. What goes with the camera, as a car's bonnet
or the background of a turntable do, is not the place: it shows no parallax.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine import accept, features
from lean3r.refine.job import Answer, Job
from lean3r.refine.matching import LEAST_INLIERS, RELIABLE, Matches, image_ids, kind

ALONG, ACROSS = 24, 16  # cells of a picture along its longer and its shorter side
FITS_PX = 4.0  # error of a match that fits a model: that of the verification
LEAST, MOST = 2, 2.0  # matches of a cell that move otherwise, and of them over those that fit there
# Share of the cells with matches that move otherwise, in the usual photo, where something is large. In sets of seven
# scenes without such things it was 0; with a person, a blob of a quarter of the picture or more, 0.12 to 0.48.
LARGE = 0.08
# And where the rest of most photos shows too little to tell, as behind a figure over 60 % of each: in the quarter
# of the photos that shows the most. Then a model is of a thing if it does not fit all over the usual photo: this share
# of the cells with features is near where it fits. It was 0.64 to 0.74 in sets of three places with such a figure, and
# 0.85 and more of all scenes but one, where nothing moved.
SOME, ALL_OVER = 0.05, 0.8
REACH = 5.0  # squared, in deviations: about what fills a rectangle, an ellipse that is hardly larger
WIDER = 1.2  # times as far, that the place spreads: 1.7 and more where a model is of it, 0.54 to 1.0 of a thing


class Moving(NamedTuple):
    """The views of which a large part moves otherwise than a model; whether this follows the thing, not the place; and
    the matches [M, 2] of each pair of images without those of what the model follows."""

    views: list[int]
    is_thing: bool
    others: dict[tuple[int, int], np.ndarray]


def moving(job: Job, answer: Answer, database: Path) -> Moving | None:
    """What moves otherwise than a model of the matches in a database of photos; None where that is little."""
    ids = image_ids(job, database)
    matches, cameras = _matches(job, ids, database), cameras_of(job, answer)
    every = accept.errors_px(matches, cameras, answer.cam_from_world) < FITS_PX
    fitting = np.split(every, np.cumsum(matches.counts)[:-1])
    cells = [cells_of(xy, camera) for xy, camera in zip(matches.keypoints, cameras, strict=True)]
    trusted, counts = answer.trusted & answer.has, np.zeros((2, len(job.views), ALONG * ACROSS))

    def rest_of(pair: np.ndarray, index: np.ndarray, fits: np.ndarray) -> np.ndarray:
        """The matches of a pair of trusted views that do not fit, and agree on one motion."""
        a, b = pair
        if not (trusted[a] and trusted[b]):
            return index[:0]
        return _agreeing(cameras[a], matches.keypoints[a], cameras[b], matches.keypoints[b], index[~fits])

    with ThreadPoolExecutor(job.threads) as pool:
        rests = list(pool.map(rest_of, matches.pairs, matches.indices, fitting))
    for (a, b), index, fits, rest in zip(matches.pairs, matches.indices, fitting, rests, strict=True):
        if trusted[a] and trusted[b]:
            for count, each in zip(counts, (index[fits], rest), strict=True):
                np.add.at(count[a], cells[a][each[:, 0]], 1)
                np.add.at(count[b], cells[b][each[:, 1]], 1)
    ours, theirs = counts
    stays, moves = ours > theirs, (theirs >= LEAST) & (theirs > MOST * ours)
    shares = moves.sum(axis=1) / np.maximum(1, (ours + theirs > 0).sum(axis=1))
    if not trusted.any() or np.quantile(shares[trusted], 0.75) < SOME:
        return None
    is_usual = bool(np.median(shares[trusted]) >= LARGE)
    views = np.flatnonzero(trusted & (shares >= (LARGE if is_usual else SOME))).tolist()
    if is_usual:
        wider = [_spread(stays[view], cameras[view]) / _spread(moves[view], cameras[view]) for view in views]
        is_thing = float(np.median(wider)) < WIDER
    else:
        near = [_near(cells[view], ours[view], cameras[view]) for view in np.flatnonzero(trusted)]
        is_thing = float(np.median(near)) < ALL_OVER
    is_thing = is_thing and not accept.turn_only(replace(matches, indices=rests), cameras)
    if not (is_usual or is_thing):
        return None
    others = {}
    for (a, b), index, fits in zip(matches.pairs, matches.indices, fitting, strict=True):
        at_a, at_b = cells[a][index[:, 0]], cells[b][index[:, 1]]
        if trusted[a] and trusted[b]:  # a thing that bends does not fit everywhere
            is_ours = np.where(fits, ~(moves[a][at_a] & moves[b][at_b]), stays[a][at_a] & stays[b][at_b])
        else:  # where it is can be known in one of them only
            is_ours = stays[a][at_a] | stays[b][at_b]
        others[ids[a], ids[b]] = index[~is_ours]
    return Moving(views, is_thing, others)


def keep_only(matches: dict[tuple[int, int], np.ndarray], database: Path) -> None:
    """Leave only these matches of pairs of images in a database, none of them verified."""
    with pycolmap.Database.open(database) as opened:
        opened.clear_two_view_geometries()
        for (a, b), index in matches.items():
            opened.delete_matches(a, b)
            if len(index) >= LEAST_INLIERS:
                opened.write_matches(a, b, index.astype(np.uint32))


def _matches(job: Job, ids: dict[int, int], database: Path) -> Matches:
    """All matches in a database, verified or not."""
    view_of = {image: view for view, image in ids.items()}
    keypoints, pairs, indices = [np.zeros((0, 2))] * len(job.views), [], []
    with pycolmap.Database.open(database) as opened:
        for view, image in ids.items():
            keypoints[view] = np.asarray(opened.read_keypoints(image))[:, :2].astype(np.float64)
        for pair, index in zip(*opened.read_all_matches(), strict=True):
            pairs.append([view_of[image] for image in pycolmap.pair_id_to_image_pair(pair)])
            indices.append(np.asarray(index).astype(np.int64).reshape(-1, 2))
    return Matches(keypoints, np.array(pairs, np.int64).reshape(-1, 2), indices, [None] * len(pairs))


def cameras_of(job: Job, answer: Answer) -> list[pycolmap.Camera]:
    """The camera that an answer has for each view."""
    return [
        features.camera_of(replace(job.groups[view.group], model=answer.models[mine], params=answer.params[mine]))
        for view, mine in zip(job.views, answer.camera, strict=True)
    ]


def _agreeing(
    first: pycolmap.Camera, xy: np.ndarray, second: pycolmap.Camera, there: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """The matches [M, 2] of two pictures that agree on one motion."""
    if len(index) >= LEAST_INLIERS:
        options = pycolmap.TwoViewGeometryOptions()
        options.ransac.random_seed = 0
        geometry = pycolmap.estimate_two_view_geometry(first, xy, second, there, index.astype(np.uint32), options)
        agreeing = np.asarray(geometry.inlier_matches).astype(np.int64).reshape(-1, 2)
        if kind(geometry) in RELIABLE and len(agreeing) >= LEAST_INLIERS:
            return agreeing
    return index[:0]


def cells_of(xy: np.ndarray, camera: pycolmap.Camera) -> np.ndarray:
    """The number of the cell that each place [N, 2] of a picture is in."""
    columns, rows = grid_of(camera)
    x, y = np.clip(xy / (camera.width, camera.height) * (columns, rows), 0, (columns - 1, rows - 1)).astype(int).T
    return y * columns + x


def _near(features_at: np.ndarray, ours: np.ndarray, camera: pycolmap.Camera) -> float:
    """The share of the cells with features, given by the cell [N] of each, that are near those with matches [C]."""
    with_some = np.bincount(features_at, minlength=len(ours)) >= LEAST
    return share_near(np.flatnonzero(with_some), np.flatnonzero(ours), camera)


def share_near(cells: np.ndarray, chosen: np.ndarray, camera: pycolmap.Camera) -> float:
    """The share of cells [N], by their numbers, that are near chosen ones [M]; 1 of too few to tell."""
    columns = grid_of(camera)[0]
    every, some = (np.stack(np.divmod(each, columns), 1).astype(float) for each in (cells, chosen))
    if len(some) < 3 or not len(every):
        return 1.0
    away = every - some.mean(axis=0)
    spread = np.cov(some.T) + np.eye(2) / 12  # one cell is as wide as it is
    return float((np.einsum("ni,ij,nj->n", away, np.linalg.inv(spread), away) < REACH).mean())


def _spread(chosen: np.ndarray, camera: pycolmap.Camera) -> float:
    """How far cells [C] bool of a picture lie from their middle, in cells; one cell is as wide as it is."""
    place = np.stack(np.divmod(np.flatnonzero(chosen), grid_of(camera)[0]))
    return float(np.sqrt(1 + place.var(axis=1).sum())) if place.size else 1.0


def grid_of(camera: pycolmap.Camera) -> tuple[int, int]:
    """The numbers of columns and rows of cells in a picture."""
    return (ALONG, ACROSS) if camera.width >= camera.height else (ACROSS, ALONG)
