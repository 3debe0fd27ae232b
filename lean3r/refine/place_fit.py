"""The similarity from cameras to the positions of their pictures: some are wrong, repeated, or without height."""

from __future__ import annotations

import numpy as np
import torch

from lean3r.errors import InputError
from lean3r.geometry.align import Similarity, umeyama, umeyama_robust

FEWEST_PLACES = 3
OUTLIER = 4.0  # largest deviation of a position from the fit, in robust standard deviations
CONTRADICTORY_M = 6.0
ONE_PLACE_M, SAME_M = 0.1, 0.01  # spread of positions that give no scale; positions nearer are one that was repeated
FEWEST_FREE, ROUNDS = 6, 50  # cameras that tell their own heights, and steps in which these are found
CLEARLY = 4.0  # times as large a variance has a fit that holds cameras without heights level, where they are not
HORIZONTAL, FREE = 4, 6  # unknowns of either fit that level positions determine
NO_SCALE = "which does not determine the scale. Use --scale with a known distance between two cameras instead of --gps."


def fit_places(
    centres: np.ndarray, target: np.ndarray, certain: np.ndarray, has_height: np.ndarray
) -> tuple[Similarity, np.ndarray, np.ndarray]:
    """The similarity from the `certain` [N] bool of the centres [N, 3] to the positions [N, 3] (x east, y down, z
    north), those that fit, two at least, and the positions.

    Positions that are repeated, as by a receiver that is slower than the camera, count as one. Those without a height
    (`has_height` [N]) are taken as level, and get the cameras' own heights where that fits clearly better: a level fit
    to cameras at several heights has too small a scale. Any two positions fit; if no more are left, the fit is to all,
    unless they contradict each other. InputError if those that fit are one place.
    """
    fit, used = _robust(centres, target, certain, has_height)
    if not has_height.all() and certain.sum() >= FEWEST_FREE:
        freed, own, fitting = target.copy(), fit, used
        for _ in range(ROUNDS):
            freed[~has_height, 1] = own.apply(torch.from_numpy(centres)).numpy()[~has_height, 1]
            if not has_height.any():
                freed[:, 1] -= freed[certain, 1].mean()
            own, fitting = _robust(centres, freed, certain, has_height)
        level = _variance(misses(fit, centres, target, has_height)[certain], HORIZONTAL)
        if level > CLEARLY * _variance(misses(own, centres, freed, has_height)[certain], FREE):
            fit, used, target = own, fitting, freed
    spread, size = _spread(target[used]), float(fit.scale) * _spread(centres[used])
    if spread < ONE_PLACE_M or size < SAME_M * spread:
        raise InputError(f"the pictures whose GPS positions fit their cameras have one position, {NO_SCALE}")
    return fit, used, target


def misses(fit: Similarity, centres: np.ndarray, target: np.ndarray, has_height: np.ndarray) -> np.ndarray:
    """How far [N] a fit leaves centres from their positions, level where these have no height."""
    away = fit.apply(torch.from_numpy(centres)).numpy() - target
    away[~has_height, 1] = 0
    return np.linalg.norm(away, axis=1)


def _robust(
    centres: np.ndarray, target: np.ndarray, certain: np.ndarray, has_height: np.ndarray
) -> tuple[Similarity, np.ndarray]:
    same = np.linalg.norm(target[:, None, [0, 2]] - target[None][..., [0, 2]], axis=2) < SAME_M
    weight = certain / np.maximum(1, (same & certain).sum(axis=1))
    src, dst, weights = map(torch.from_numpy, (centres, target, weight))
    fit = umeyama_robust(src, dst, weights)
    off = misses(fit, centres, target, has_height)
    usual = OUTLIER * max(1.4826 * float(np.median(off[certain])), 1e-6)
    used = certain & (off <= max(usual, float(np.sort(off[certain])[1])))
    if used.sum() < FEWEST_PLACES:
        whole = umeyama(src, dst, weights)
        if misses(whole, centres, target, has_height)[certain].max() < CONTRADICTORY_M:
            return whole, certain
    return fit, used


def _variance(off: np.ndarray, unknowns: int) -> float:
    """Of N distances in the plane that a fit with so many unknowns leaves; outliers hardly count."""
    return float(np.median(off) ** 2) * 2 * len(off) / (2 * len(off) - unknowns)


def _spread(points: np.ndarray) -> float:
    return float(np.linalg.svd(points - points.mean(axis=0), compute_uv=False)[0])
