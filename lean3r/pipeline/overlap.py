"""Feature matches between the network's pictures: which views overlap, and whether the camera translated.

This checks results whose cameras are not confirmed by refinement, for any model. A few matches a view are enough.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from lean3r.refine.accept import TURNED_PX, best_turn, pair_errors
from lean3r.refine.pairs import likely_pairs
from lean3r.types import Reconstruction

FEATURES, RATIO, WITHIN_PX = 1500, 0.8, 2.0
LEAST = (
    12  # verified matches of a pair; views of one scene have 28 or more with another one, unrelated views 8 or fewer
)
PARTNERS = 2  # a view needs no further matching once it overlaps with so many others
STILL_PX = 2.0  # a pair whose matches moved less gives no evidence of motion
DOUBLED_BELOW = 400 * 400  # pixels: in larger pictures there are features enough
MAX_PAIRS = 1000  # pairs to try for views without a partner
WIDE = 60  # further pairs to match before deciding that the camera only rotates
FOCALS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0)  # factors of the predicted focal length, which may be wrong


class Pair(NamedTuple):
    """Verified matches of two views: `first` and `second` [M, 2] in network pixels."""

    views: tuple[int, int]
    first: np.ndarray
    second: np.ndarray


class Overlap(NamedTuple):
    """has_partner [S] bool: the views that overlap with another one; rotates_only: whether rotation in place explains
    all matches (False if there are none)."""

    has_partner: np.ndarray
    rotates_only: bool


def find_overlap(scene: Reconstruction, usable: np.ndarray, views: np.ndarray) -> Overlap:
    """Match the chosen views [S] bool of a scene with each other, in the usable pixels [S, H, W] bool.

    What the features of the pictures leave in doubt is decided by those of pictures of twice the size, which take
    four times as long: views without a partner, and rotation in place.
    """
    matcher = Matcher(scene.images, usable)
    partners = np.zeros(len(views), int)
    pairs, skipped = [], []
    likely = _nearest_first(scene, views)
    for i, j in likely:
        if min(partners[i], partners[j]) >= PARTNERS:
            skipped.append((i, j))
            continue
        pair = matcher.match(i, j)
        if pair is not None:
            pairs.append(pair)
            partners[[i, j]] += 1
    isolated = set(np.flatnonzero(views & (partners == 0)).tolist())
    if not isolated and not _rotates_only(pairs, scene.intrinsics):
        return Overlap(partners > 0, rotates_only=False)
    if usable[0].size < DOUBLED_BELOW:
        matcher = Matcher(scene.images, usable, doubled=True)
    # With many views, the predicted cameras chose the likely pairs; they may be wrong.
    every = sorted(combinations(np.flatnonzero(views).tolist(), 2), key=lambda pair: pair[1] - pair[0])
    unlikely = [pair for pair in every if not isolated.isdisjoint(pair)][:MAX_PAIRS]
    for i, j in dict.fromkeys([pair for pair in likely if not isolated.isdisjoint(pair)] + unlikely):
        if min(partners[i], partners[j]) == 0 and (pair := matcher.match(i, j)) is not None:
            pairs.append(pair)
            partners[[i, j]] += 1
    if _rotates_only(pairs, scene.intrinsics):
        # Neighbouring views may be close together; views further apart would show a translation.
        again = [pair.views for pair in pairs] + skipped[:: -max(1, len(skipped) // WIDE)]
        pairs = [pair for pair in (matcher.match(i, j) for i, j in again) if pair is not None]
    return Overlap(partners > 0, _rotates_only(pairs, scene.intrinsics))


def _nearest_first(scene: Reconstruction, views: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of the chosen views, by their distance in the order of the input."""
    likely = likely_pairs(scene)
    pairs = combinations(range(len(views)), 2) if likely is None else map(tuple, likely.tolist())
    return sorted(((i, j) for i, j in pairs if views[i] and views[j]), key=lambda pair: pair[1] - pair[0])


class Matcher:
    """Features of pictures, extracted on first use and perhaps in twice the size, and matches between two pictures."""

    def __init__(self, images: np.ndarray, usable: np.ndarray, doubled: bool = False):
        from lean3r.colmap_library import pycolmap

        options = pycolmap.FeatureExtractionOptions()
        options.num_threads, options.use_gpu = 1, False
        options.sift.max_num_features = FEATURES
        options.sift.first_octave = -1 if doubled else 0
        level = pycolmap.logging.minloglevel
        pycolmap.logging.minloglevel = 2  # the constructor logs a line
        self._extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
        pycolmap.logging.minloglevel = level
        self._ransac = pycolmap.RANSACOptions(max_error=WITHIN_PX, min_num_trials=50, max_num_trials=500, random_seed=0)
        self._verify = pycolmap.estimate_fundamental_matrix
        self._images, self._usable = images, usable
        self._features: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    def match(self, i: int, j: int) -> Pair | None:
        """Verified matches of two views; None if they are too few."""
        (xy_i, features_i), (xy_j, features_j) = self.features(i), self.features(j)
        if min(len(xy_i), len(xy_j)) < LEAST:
            return None
        distance = torch.cdist(features_i, features_j)
        best, index = distance.topk(2, dim=1, largest=False)
        mutual = distance.argmin(0)[index[:, 0]] == torch.arange(len(features_i))
        chosen = (mutual & (best[:, 0] < RATIO * best[:, 1])).numpy()
        first, second = xy_i[chosen], xy_j[index[:, 0].numpy()[chosen]]
        if len(first) < LEAST:
            return None
        model = self._verify(first, second, self._ransac)
        inliers = np.zeros(len(first), bool) if model is None else np.asarray(model["inlier_mask"])
        return Pair((i, j), first[inliers], second[inliers]) if inliers.sum() >= LEAST else None

    def features(self, view: int) -> tuple[np.ndarray, torch.Tensor]:
        """Features of a view in its usable pixels: positions [N, 2] in pixels, descriptors [N, 128]."""
        if view not in self._features:
            grey = self._images[view].mean(-1).astype(np.uint8)
            points, descriptors = self._extractor.extract_from_uint8_array(grey)
            xy = np.array([(point.x, point.y) for point in points]).reshape(-1, 2)
            height, width = grey.shape
            col, row = np.floor(xy).astype(int).clip(0, (width - 1, height - 1)).T
            inside = self._usable[view][row, col]
            values = np.asarray(descriptors.data, np.float32).reshape(len(xy), 128)
            self._features[view] = xy[inside], torch.from_numpy(values[inside])
        return self._features[view]


def _rotates_only(pairs: list[Pair], intrinsics: np.ndarray) -> bool:
    """Whether rotation alone explains most matches, at some focal length near the predicted one."""
    moved = [p for p in pairs if np.median(np.linalg.norm(p.first - p.second, axis=1)) > STILL_PX]
    return bool(pairs) and (not moved or min(_rotation_error_px(moved, intrinsics, f) for f in FOCALS) < TURNED_PX)


def _rotation_error_px(pairs: list[Pair], intrinsics: np.ndarray, focal: float) -> float:
    """Median error in pixels of matches under the best rotation of each pair, at `focal` times the predicted focal
    lengths."""
    errors = []
    for views, *matches in pairs:
        a, b = (
            (xy - intrinsics[v, :2, 2]) / (focal * intrinsics[v, [0, 1], [0, 1]])
            for v, xy in zip(views, matches, strict=True)
        )
        pose = np.eye(4)
        pose[:3, :3] = best_turn(a, b)
        side = focal * float(np.mean([intrinsics[v, [0, 1], [0, 1]] for v in views]))
        errors.append(side * pair_errors(a, b, pose))
    return float(np.median(np.concatenate(errors)))
