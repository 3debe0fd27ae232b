"""The feed-forward part of a block."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.layers.linear import Linear, TakesRows, gelu_for, takes_rows
from lean3r.ops.fp8 import Rows


class Mlp(TakesRows, nn.Module):
    """Linear, exact GELU, linear: [..., C] -> [..., out] (out is C by default)."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim if out is None else out)

    def takes_rows(self, x: Tensor) -> bool:
        """See TakesRows."""
        return takes_rows(self.fc1, x)

    def forward(self, x: Tensor | Rows) -> Tensor:
        """Apply to the last axis."""
        return self.fc2(gelu_for(self.fc2, self.fc1(x)))


class SwiGlu(TakesRows, nn.Module):
    """Linear to twice the hidden width, SiLU of one half times the other, linear: [..., C] -> [..., C]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w12 = Linear(dim, 2 * hidden)
        self.w3 = Linear(hidden, dim)

    def takes_rows(self, x: Tensor) -> bool:
        """See TakesRows."""
        return takes_rows(self.w12, x)

    def forward(self, x: Tensor | Rows) -> Tensor:
        """Apply to the last axis."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def feed_forward(kind: Literal["gelu", "swiglu"], dim: int, hidden: int) -> nn.Module:
    """The MLP of a block; a SwiGLU gets two thirds of `hidden`, rounded up to a multiple of 8."""
    if kind == "swiglu":
        return SwiGlu(dim, (hidden * 2 // 3 + 7) // 8 * 8)
    return Mlp(dim, hidden)
