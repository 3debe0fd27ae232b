"""The simplest dense head: one linear layer a patch, unfolded into its pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.layers.linear import Linear


class LinearPixels(nn.Module):
    """patch * patch * channels numbers a token, channel by channel and row by row inside a patch."""

    def __init__(self, dim: int, patch: int, channels: int):
        super().__init__()
        self.patch = patch
        self.proj = Linear(dim, patch * patch * channels)

    def forward(self, patches: Tensor, rows: int, cols: int) -> Tensor:
        """[N, rows * cols, C] -> [N, channels, rows * patch, cols * patch]."""
        grid = self.proj(patches).transpose(1, 2).unflatten(-1, (rows, cols))
        return F.pixel_shuffle(grid, self.patch)
