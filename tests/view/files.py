"""What a page does with the bytes of points, in NumPy."""

from __future__ import annotations

import gzip

import numpy as np

from lean3r.view.chunks import LEVELS, STEPS, Packed
from lean3r.view.content import Points


def unpacked(packed: Packed, levels: int = LEVELS) -> Points:
    """The points of the first levels; conf is the rank, 0 to 1."""
    parts = []
    for level in range(levels):
        counts = [chunk["counts"][level] for chunk in packed.chunks]
        data = np.frombuffer(gzip.decompress(packed.levels[level]), np.uint8).reshape(15, sum(counts))
        wide = [(data[at].astype(np.uint16) << 8) | data[at + 1] for at in (0, 2, 4, 13)]
        steps = np.stack([np.cumsum(column, dtype=np.uint16) for column in wide[:3]], axis=1)
        low = np.repeat([chunk["low"] for chunk in packed.chunks], counts, axis=0).reshape(-1, 3)
        side = np.repeat([chunk["side"] for chunk in packed.chunks], counts, axis=0).reshape(-1, 3)
        view = np.where(wide[3] == STEPS, -1, wide[3].astype(np.int32))
        normals = unfolded(data[11:13].T)
        parts.append((low + steps / STEPS * side, data[8:11].T, data[6] / 255, normals, view))
    return Points(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def unfolded(codes: np.ndarray) -> np.ndarray:
    """Unit vectors [P, 3] from [P, 2] uint8; 0 where there are none."""
    flat = (codes.astype(np.float64) - 128) / 126
    z = 1 - np.abs(flat).sum(axis=1)
    back = np.maximum(-z, 0)[:, None]
    normals = np.concatenate([flat + np.where(flat >= 0, -back, back), z[:, None]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.where(codes[:, :1] == 0, 0, normals)
