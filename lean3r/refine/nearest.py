"""Which features of two pictures belong together: each other's nearest, by the rules of COLMAP's exhaustive matcher.

The library's own matcher looks for approximate neighbours (one in sixty matches is not found) and, with two threads,
loses matches of a picture in one run of twenty or thirty (pycolmap 4.2.1). The products here take a third of its time
at 1,400 features a picture, and twice its time at 8,000. They are whole numbers below 2**24, so that float32 gives them
exactly, on any processor in any order.
"""

from __future__ import annotations

import numpy as np

LENGTH = 512.0  # of a SIFT descriptor of bytes
MAX_ANGLE_RAD, MAX_RATIO = 0.7, 0.8  # of the nearest; and of it to that of the second nearest
ROWS = 256  # features whose products with all others are held at once


def mutual_nearest(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Indices [M, 2] uint32 of features with descriptors [N, D] and [K, D] uint8 that are each other's nearest, and
    clearly nearer than the second nearest."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.uint32)
    nearest, is_clear = _nearest(a, b)
    candidates = np.flatnonzero(is_clear)
    targets, of_candidate = np.unique(nearest[candidates], return_inverse=True)
    back, is_clear = _nearest(b[targets], a)
    found = candidates[is_clear[of_candidate] & (back[of_candidate] == candidates)]
    return np.stack([found, nearest[found]], axis=1).astype(np.uint32)


def _nearest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of b [K, D] to each of a [N, D], and whether it is near, and clearly nearer than any other."""
    nearest, is_clear = np.zeros(len(a), np.int64), np.zeros(len(a), bool)
    across = np.ascontiguousarray(b.T)  # in this order the products take a tenth less time
    for start in range(0, len(a), ROWS):
        part = slice(start, start + ROWS)
        products = a[part] @ across
        best = products.argmax(axis=1)
        rows = np.arange(len(best))
        angle = _angle_rad(products[rows, best])
        products[rows, best] = 0
        nearest[part] = best
        is_clear[part] = (angle <= MAX_ANGLE_RAD) & (angle < MAX_RATIO * _angle_rad(products.max(axis=1)))
    return nearest, is_clear


def _angle_rad(product: np.ndarray) -> np.ndarray:
    return np.arccos(np.minimum(product / LENGTH**2, 1))
