"""Layers that store their weight as codes: the interface for loading, saving and counting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Encoded(Protocol):
    """A layer that stores its weight as codes and scales in buffers; one of them is named "weight"."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the decoded weight."""
        ...

    def encode_weight(self, weight: Tensor, smooth: Tensor | None = None) -> Mapping[str, Tensor]:
        """A weight in full precision -> the buffers that the layer stores instead, by name.

        `smooth` [inputs] are the smoothing factors beside the weight; None if the file has none.
        """
        ...
