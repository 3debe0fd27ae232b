"""The simplest dense head: one linear layer from a patch token to the pixels of the patch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.layers.linear import Linear


class LinearPixels(nn.Module):
    """patch * patch * channels values per token, channel by channel and row by row within the patch."""

    def __init__(self, dim: int, patch: int, channels: int):
        super().__init__()
        self.patch = patch
        self.proj = Linear(dim, patch * patch * channels)

    def forward(self, patches: Tensor, rows: int, cols: int) -> Tensor:
        """[N, rows * cols, C] -> [N, channels, rows * patch, cols * patch]."""
        grid = self.proj(patches).transpose(1, 2).unflatten(-1, (rows, cols))
        return F.pixel_shuffle(grid, self.patch)
