"""Layers whose weight is kept as codes: what reading, writing and counting have to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Encoded(Protocol):
    """A layer that keeps its weight as codes and scales, in buffers, "weight" among them."""

    @property
    def shape(self) -> torch.Size:
        """Of the weight that these stand for."""
        ...

    def encode_weight(self, weight: Tensor) -> Mapping[str, Tensor]:
        """A weight in full precision -> the tensors that the layer keeps in its place, by their names in it."""
        ...
