"""Thinned arrays: flat, every n-th value in C order, so that the shipped cases are small; `pack.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor


def thinned(array: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """At most `most` values of an array, flat, and the stride, which is odd so that all columns are met."""
    stride = -(-array.size // most)
    stride += stride > 1 and stride % 2 == 0
    return array.reshape(-1)[::stride], stride


def same_places(found: Tensor, arrays: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The values of `found` that the file holds under `name`, and the file's; the whole shape has to agree."""
    if f"{name}.whole" not in arrays:
        return found, arrays[name]
    stride, *shape = arrays[f"{name}.whole"].tolist()
    assert list(found.shape) == shape, f"{name}: shape {tuple(found.shape)}, expected {tuple(shape)}"
    return found.flatten()[::stride], arrays[name]
