"""Random numbers for batches of scenes, the same on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def table(*rows: float | Sequence[float]) -> Tensor:
    """A constant tensor: on the CPU, whatever torch's default device is when its module is imported."""
    return torch.tensor(rows, device="cpu")


class Draw:
    """Random numbers for B scenes from one generator (on the CPU, so that scenes are the same on every device)."""

    def __init__(self, generator: torch.Generator, scenes: int):
        self.generator, self.scenes = generator, scenes

    def uniform(self, low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        """Uniform numbers [B, *shape]."""
        return low + (high - low) * torch.rand(self.scenes, *shape, generator=self.generator)

    def logarithmic(self, low: float, high: float, *shape: int) -> Tensor:
        """Log-uniform numbers [B, *shape]."""
        return torch.exp(self.uniform(math.log(low), math.log(high), *shape))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers [B, *shape]."""
        return torch.randn(self.scenes, *shape, generator=self.generator)

    def chance(self, probability: float | Tensor, *shape: int) -> Tensor:
        """Bool [B, *shape], True with the given probability."""
        return torch.rand(self.scenes, *shape, generator=self.generator) < probability

    def between(self, table: Tensor, kind: Tensor) -> Tensor:
        """Uniform numbers [B], each in the range (low, high) of the scene's kind in `table` [kinds, 2]."""
        low, high = table[kind].unbind(-1)
        return self.uniform(low, high)
