"""Maps of depth and masks as arrays: their size, and what is unknown in them."""

from __future__ import annotations

import numpy as np


def nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an array [h, w, ...] by the nearest pixel centre, which does not mix values across edges."""
    if values.shape[:2] == (height, width):
        return values
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(np.int64)
    return values[rows[:, None], columns]


def no_depth(height: int, width: int) -> np.ndarray:
    """Unknown depth [height, width]: a single zero in memory (strides 0), read-only."""
    return np.broadcast_to(np.float32(0), (height, width))


def zero_unknown(depth: np.ndarray) -> tuple[np.ndarray, int]:
    """Depth with 0 where it is negative or not finite, and the number of pixels where it is not finite."""
    known = np.isfinite(depth)
    count = depth.size - int(known.sum())
    if count or bool((depth < 0).any()):
        depth = np.where(known & (depth > 0), depth, 0).astype(np.float32)
    return depth, count
