"""Which views to match, and their verified matches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.appearance import signature, vocabulary
from lean3r.refine.features import detect, files_to_view, set_cameras
from lean3r.refine.job import Job
from lean3r.refine.kept import Kept
from lean3r.refine.mirrored import mirrored
from lean3r.refine.nearest import mutual_nearest
from lean3r.refine.progress import MATCHES, say
from lean3r.refine.sequence import is_near

LEAST_INLIERS = 15
ALIKE = 8  # views of most similar appearance that each view is matched with; 16 folded a place of repeated textures
ALIKE_IN_PAST = 16  # that each view is matched with which goes on from a past: of many more views, most show its window
RELIABLE = ("CALIBRATED", "UNCALIBRATED", "PLANAR", "PLANAR_OR_PANORAMIC", "PANORAMIC")


@dataclass(frozen=True, eq=False)
class Matches:
    """Verified matches of P pairs of views: pairs [P, 2]; for each, indices [M, 2] into the keypoints [K, 2] of both
    views, and the relative pose b_from_a [4, 4], None where parallax is too small to determine it. `images`: the
    database that they are from, and the image of each view there."""

    keypoints: list[np.ndarray]
    pairs: np.ndarray
    indices: list[np.ndarray]
    relative: list[np.ndarray | None]
    images: tuple[Path, dict[int, int]] | None = None

    @property
    def counts(self) -> np.ndarray:
        """Matches of each pair [P]."""
        return np.array([len(index) for index in self.indices], dtype=np.int64)

    def descriptors(self, view: int) -> np.ndarray:
        """Those of a view's features [K, D] uint8."""
        assert self.images is not None
        database, ids = self.images
        with pycolmap.Database.open(database) as opened:
            return np.asarray(opened.read_descriptors(ids[view]).data)

    def meet(self, first: int) -> bool:
        """Whether a pair joins one of the `first` views to one of the others."""
        return bool(((self.pairs < first).sum(axis=1) == 1).any())


def find(job: Job, folder: Path, database: Path, octave: int, loops: bool = True) -> set[str]:
    """Find the features of a job's pictures, from this octave on, and their matches; or recall those that are kept, and
    keep the others. Without `loops` only pairs that the job names are matched, not those that look alike. Returns the
    files of photos that are mirrored, see `match`."""
    kept = Kept(job, folder, octave)
    detect(job, folder, database, octave, kept)
    odd = match(job, folder, database, kept, loops)
    kept.keep(database)
    return odd


def match(job: Job, folder: Path, database: Path, kept: Kept, loops: bool = True) -> set[str]:
    """Match the features of pairs that probably overlap or, for `loops`, look alike, except for matches that are
    kept, and for photos of which one is mirrored. Returns the files of those."""
    ids = image_ids(job, database)
    pairs = job.pairs
    if pairs is not None and loops:
        # Neighbouring frames of a video are listed already: there, appearance is for finding loops.
        near = is_near(job.sequences, len(job.views))
        pairs = np.unique(np.sort(np.concatenate([pairs, alike(job, database, ids, near)]), axis=1), axis=0)
    files = [view.file for view in job.views]
    every = combinations(range(len(files)), 2) if pairs is None else pairs
    listed = [(first, second) for first, second in ((files[i], files[j]) for i, j in every) if first and second]
    with pycolmap.Database.open(database) as opened, ThreadPoolExecutor(job.threads) as pool:
        image_of = {image.name: image.image_id for image in opened.read_all_images()}
        descriptors = {file: np.asarray(opened.read_descriptors(image).data) for file, image in image_of.items()}
        photos = {} if job.sequences else {image: descriptors[file] for file, image in image_of.items()}
        sizes = {image: _sizes(np.asarray(opened.read_keypoints(image))) for image in photos}
        turned = pool.submit(mirrored, photos, sizes)  # beside the matching

        def matched(pair: tuple[str, str]) -> tuple[np.ndarray, bool]:
            """Their matches, and whether these were kept."""
            found = kept.matches(*pair)
            return (mutual_nearest(*(descriptors[file] for file in pair)), False) if found is None else (found, True)

        in_order = [(a, b) if image_of[a] < image_of[b] else (b, a) for a, b in listed]
        found = pool.map(matched, in_order)
        odd = {file for file, image in image_of.items() if image in turned.result()}
        for done, ((first, second), (matches, were_kept)) in enumerate(zip(in_order, found, strict=True), 1):
            if not were_kept:
                kept.add(first, second, matches if len(matches) >= LEAST_INLIERS else matches[:0])
            if len(matches) >= LEAST_INLIERS and (first in odd) == (second in odd):
                opened.write_matches(image_of[first], image_of[second], matches)
            say(folder, MATCHES, done, len(in_order))
    return odd


def _sizes(keypoints: np.ndarray) -> np.ndarray:
    """The sizes [K] of features: the side of a square of their area, whose shape [2, 2] is behind their place."""
    return np.sqrt(np.abs(np.linalg.det(keypoints[:, 2:6].reshape(-1, 2, 2))))


def verify(job: Job, database: Path) -> Matches:
    """Verify the matches of photos geometrically."""
    verification = _verify(database)
    if not job.knows_focals:
        # Focal lengths from the fundamental matrices of all pairs together: better than any guess from one picture.
        calibration = pycolmap.ViewGraphCalibrationOptions()
        calibration.random_seed = 0
        calibration.relpose_min_num_inliers, calibration.relpose_min_inlier_ratio = LEAST_INLIERS, 0.1
        calibration.relpose_max_error = verification.ransac.max_error
        pycolmap.calibrate_view_graph(database, calibration)
    return read_matches(job, database)


def verify_again(job: Job, database: Path) -> Matches:
    """Verify the matches in a database with the job's cameras."""
    set_cameras(job, database)
    with pycolmap.Database.open(database) as opened:
        opened.clear_two_view_geometries()
    _verify(database)
    return read_matches(job, database)


def _verify(database: Path) -> pycolmap.TwoViewGeometryOptions:
    """Verify all matches in a database, and return by which options."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    pycolmap.geometric_verification(database, two_view_geometry_options=options)
    return options


def read_matches(job: Job, database: Path) -> Matches:
    """The verified matches of a database, by views."""
    ids = image_ids(job, database)
    view_of = {image_id: view for view, image_id in ids.items()}
    keypoints = [np.zeros((0, 2))] * len(job.views)
    pairs, indices, relative = [], [], []
    with pycolmap.Database.open(database) as opened:
        cameras = {image.image_id: opened.read_camera(image.camera_id) for image in opened.read_all_images()}
        for image_id, view in view_of.items():
            keypoints[view] = np.asarray(opened.read_keypoints(image_id))[:, :2].astype(np.float64)
        for pair_id, geometry in zip(*opened.read_two_view_geometries(), strict=True):
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            inliers = np.asarray(geometry.inlier_matches).astype(np.int64)
            if len(inliers) < LEAST_INLIERS or kind(geometry) not in RELIABLE:
                continue
            i, j = view_of[first], view_of[second]
            pairs.append((i, j))
            indices.append(inliers)
            relative.append(_pose(geometry, cameras[first], keypoints[i], cameras[second], keypoints[j]))
    return Matches(keypoints, np.array(pairs, dtype=np.int64).reshape(-1, 2), indices, relative, (database, ids))


def kind(geometry: pycolmap.TwoViewGeometry) -> str:
    """The name of a two-view geometry's configuration."""
    return pycolmap.TwoViewGeometryConfiguration(geometry.config).name


def _pose(geometry, camera1, points1, camera2, points2) -> np.ndarray | None:
    pose = geometry.cam2_from_cam1
    if pose is None or geometry.tri_angle < 0:
        pycolmap.estimate_two_view_geometry_pose(camera1, points1, camera2, points2, geometry)
        pose = geometry.cam2_from_cam1
    return None if pose is None else np.vstack([pose.matrix(), [0.0, 0.0, 0.0, 1.0]])


def alike(job: Job, database: Path, ids: dict[int, int], near: np.ndarray) -> np.ndarray:
    """Pairs [P, 2] of each view and the views of most similar appearance, without those that are `near` [S, S] anyway:
    VLAD over a vocabulary of these pictures."""
    views = sorted(ids)
    with pycolmap.Database.open(database) as opened:
        descriptors = [np.asarray(opened.read_descriptors(ids[view]).data) for view in views]
    words = vocabulary(descriptors)
    if words is None:
        return np.zeros((0, 2), np.int64)
    vectors = [signature(of_view, words) for of_view in descriptors]
    likeness = np.stack(vectors) @ np.stack(vectors).T
    index = np.array(views)
    likeness[near[np.ix_(index, index)]] = -np.inf
    np.fill_diagonal(likeness, -np.inf)
    best = np.argsort(-likeness, axis=1)[:, : min(ALIKE_IN_PAST, len(views) - 1)]
    most = np.where((index >= job.past) & (job.past > 0), ALIKE_IN_PAST, ALIKE)
    is_listed = np.isfinite(np.take_along_axis(likeness, best, axis=1)) & (np.arange(best.shape[1]) < most[:, None])
    return np.stack([np.repeat(index, best.shape[1]), index[best].ravel()], axis=1)[is_listed.ravel()]


def image_ids(job: Job, database: Path) -> dict[int, int]:
    """The image id of each view that has features."""
    view_of = files_to_view(job)
    with pycolmap.Database.open(database) as opened:
        return {view_of[image.name]: image.image_id for image in opened.read_all_images()}
