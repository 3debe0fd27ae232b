"""What a removed block leaves behind: a matrix for special tokens, and one for patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lean3r.layers.linear import linear
from lean3r.types import TokenLayout


class Removed(nn.Module):
    """x += W x, with a W [C, C] for special tokens and one for patches; both are 0 at first, and no view sees another.

    The matrices are plain parameters, not linear layers, so that compression plans skip them.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.special = nn.Parameter(torch.zeros(dim, dim))
        self.patch = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor, layout: TokenLayout, key_mask: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C], as Block; padding is treated as patches."""
        parts = x.unflatten(1, (-1, layout.tokens)).split([layout.special, layout.tokens - layout.special], 2)
        weights = self.special, self.patch
        change = [linear(part.to(w.dtype), w, None) for part, w in zip(parts, weights, strict=True)]
        return x + torch.cat(change, 2).flatten(1, 2).to(x.dtype)
