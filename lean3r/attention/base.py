"""The contract of a mechanism: it sees one call's projections and the layout of its tokens, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lean3r.types import TokenLayout


@dataclass(frozen=True)
class Projected:
    """One attention call before any mixing.

    x [B, N, C] is the block's normalised input; q, k, v [B, H, N, D] come before norm and rotation, so that
    a mechanism may pool them first; finish(q, k) applies both. key_mask [B, N] is False on padding, None
    when every token counts.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    finish: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    key_mask: Tensor | None = None


class Mechanism(nn.Module):
    """Base of all mechanisms: forward(projected, layout) -> [B, H, N, D]."""

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Mix values over tokens; subclasses say how. Padding never attends and is never attended to."""
        raise TypeError(f"{type(self).__name__} defines no forward")
