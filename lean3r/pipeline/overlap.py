"""Do pictures show the same things, and did the camera move between them? By matches of what the network saw.

A check for results whose cameras no refinement has proven, of any model: a few matches a view are enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from lean3r.refine.accept import TURNED_PX, best_turn, pair_errors
from lean3r.refine.pairs import likely_pairs
from lean3r.types import Reconstruction

FEATURES, RATIO, WITHIN_PX = 1500, 0.8, 2.0
LEAST = 12  # verified matches of a pair; views of one scene have 28 and more with some other, foreign ones 8 and less
PARTNERS = 2  # other views that a view is matched with before it is believed
STILL_PX = 2.0  # matches of a pair that moved less tell nothing of motion
MOST = 1000  # pairs that are tried for views without any partner
WIDE = 60  # pairs more that are looked at before a camera is said to turn only
FOCALS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0)  # times the predicted focal length, which may be wrong


class Pair(NamedTuple):
    """Verified matches of two views: pixels [M, 2] of the network's pictures in each."""

    views: tuple[int, int]
    first: np.ndarray
    second: np.ndarray


class Overlap(NamedTuple):
    """Whether each view [S] bool shows what another shows, and whether all that is known is explained by a camera that
    turns and does not move (False where nothing is known)."""

    overlaps: np.ndarray
    turns_only: bool


def look(scene: Reconstruction, counts: np.ndarray, views: np.ndarray) -> Overlap:
    """Compare some views [S] bool of a scene, in the pixels that count, [S, H, W] bool."""
    matcher = _Matcher(scene.images, counts)
    partners = np.zeros(len(views), int)
    pairs, skipped = [], []
    for i, j in _nearest_first(scene, views):
        if min(partners[i], partners[j]) >= PARTNERS:
            skipped.append((i, j))
            continue
        pair = matcher.match(i, j)
        if pair is not None:
            pairs.append(pair)
            partners[[i, j]] += 1
    # The predicted cameras chose the pairs where views are many, and may be wrong.
    alone, every = np.flatnonzero(views & (partners == 0)).tolist(), np.flatnonzero(views).tolist()
    for i, j in [(i, j) for i in alone for j in every if i != j][:MOST]:
        if partners[i] == 0 and (pair := matcher.match(i, j)) is not None:
            pairs.append(pair)
            partners[[i, j]] += 1
    if _turns_only(pairs, scene.intrinsics):
        # Neighbours may be near each other; those far apart would show the motion.
        pairs += filter(None, (matcher.match(i, j) for i, j in skipped[:: -max(1, len(skipped) // WIDE)]))
    return Overlap(partners > 0, _turns_only(pairs, scene.intrinsics))


def _nearest_first(scene: Reconstruction, views: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs of views, those that follow one another in the input first."""
    likely = likely_pairs(scene)
    pairs = combinations(range(len(views)), 2) if likely is None else map(tuple, likely.tolist())
    yield from sorted(((i, j) for i, j in pairs if views[i] and views[j]), key=lambda pair: pair[1] - pair[0])


class _Matcher:
    """Features of pictures, found when they are asked for, and matches between two of them."""

    def __init__(self, images: np.ndarray, counts: np.ndarray):
        from lean3r.colmap_library import pycolmap

        options = pycolmap.FeatureExtractionOptions()
        options.num_threads, options.use_gpu = 1, False
        options.sift.max_num_features = FEATURES
        # Features of small pictures are found in twice their size.
        options.sift.first_octave = -1 if counts[0].size < 400 * 400 else 0
        level = pycolmap.logging.minloglevel
        pycolmap.logging.minloglevel = 2  # it would tell that it is made
        self._extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
        pycolmap.logging.minloglevel = level
        self._ransac = pycolmap.RANSACOptions(max_error=WITHIN_PX, min_num_trials=50, max_num_trials=500, random_seed=0)
        self._verify = pycolmap.estimate_fundamental_matrix
        self._images, self._counts = images, counts
        self._features: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    def match(self, i: int, j: int) -> Pair | None:
        """Verified matches of two views; None where they are too few to mean anything."""
        (xy_i, of_i), (xy_j, of_j) = self._of(i), self._of(j)
        if min(len(xy_i), len(xy_j)) < LEAST:
            return None
        distance = torch.cdist(of_i, of_j)
        best, index = distance.topk(2, dim=1, largest=False)
        mutual = distance.argmin(0)[index[:, 0]] == torch.arange(len(of_i))
        chosen = (mutual & (best[:, 0] < RATIO * best[:, 1])).numpy()
        first, second = xy_i[chosen], xy_j[index[:, 0].numpy()[chosen]]
        if len(first) < LEAST:
            return None
        model = self._verify(first, second, self._ransac)
        inliers = np.zeros(len(first), bool) if model is None else np.asarray(model["inlier_mask"])
        return Pair((i, j), first[inliers], second[inliers]) if inliers.sum() >= LEAST else None

    def _of(self, view: int) -> tuple[np.ndarray, torch.Tensor]:
        if view not in self._features:
            grey = self._images[view].mean(-1).astype(np.uint8)
            points, descriptors = self._extractor.extract_from_uint8_array(grey)
            xy = np.array([(point.x, point.y) for point in points]).reshape(-1, 2)
            height, width = grey.shape
            col, row = np.floor(xy).astype(int).clip(0, (width - 1, height - 1)).T
            inside = self._counts[view][row, col]
            values = np.asarray(descriptors.data, np.float32).reshape(len(xy), -1)
            self._features[view] = xy[inside], torch.from_numpy(values[inside])
        return self._features[view]


def _turns_only(pairs: list[Pair], intrinsics: np.ndarray) -> bool:
    """Whether a camera that turns explains most matches, with some focal length near the predicted ones."""
    moved = [p for p in pairs if np.median(np.linalg.norm(p.first - p.second, axis=1)) > STILL_PX]
    return bool(pairs) and (not moved or min(_turned_px(moved, intrinsics, f) for f in FOCALS) < TURNED_PX)


def _turned_px(pairs: list[Pair], intrinsics: np.ndarray, focal: float) -> float:
    """Median distance of matches from where turned rays would be, at `focal` times the predicted focal lengths."""
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
