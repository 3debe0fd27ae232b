"""A trunk whose last blocks run several times, conditioned on the position of each pass.

Source: DVLT (arXiv 2605.30215): one pair of (frame, global) blocks applied K times; each branch and the state are
multiplied by factors that depend on the current and the next position in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.layers.block import MLP_ELEMENTS, Block, BlockOptions
from lean3r.layers.linear import norm_for
from lean3r.layers.trunk import Role, Trunk
from lean3r.tracing import is_traced, without_autocast
from lean3r.types import TokenLayout

FREQUENCIES = 32
HIDDEN = 64


def positions(loops: int) -> list[tuple[float, float]]:
    """(current, next) position in [0, 1] of each of `loops` passes: evenly spaced; the last pass stays at 1.

    A single pass goes from 0 to 1.
    """
    grid = [k / (loops - 1) for k in range(loops)] if loops > 1 else [0.0]
    return list(zip(grid, [*grid[1:], 1.0], strict=True))


class StepScales(nn.Module):
    """Factors [3, C] for the attention branch, the feed-forward branch and the state, from two positions: now and next.

    1 + MLP of the cosines and sines of both positions; exactly 1 at first, because the last layer starts at zero. It
    always runs in float32. Its weights are plain parameters, not linear layers, so that compression plans skip them.
    """

    def __init__(self, dim: int):
        super().__init__()
        inputs = 4 * FREQUENCIES
        self.hidden = nn.Parameter(torch.randn(HIDDEN, inputs) * inputs**-0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(HIDDEN))
        self.out = nn.Parameter(torch.zeros(3 * dim, HIDDEN))
        self.out_bias = nn.Parameter(torch.zeros(3 * dim))

    def forward(self, step: tuple[float, float]) -> Tensor:
        """(current, next) -> [3, C]."""
        device = self.hidden.device
        with without_autocast(device.type):
            rates = 10_000.0 ** (-torch.arange(FREQUENCIES, device=device) / FREQUENCIES)
            angles = torch.tensor(step, device=device)[:, None] * rates
            wave = torch.cat([angles.cos(), angles.sin()], dim=-1).flatten()
            hidden = F.silu(F.linear(wave, self.hidden, self.hidden_bias))
            return 1 + F.linear(hidden, self.out, self.out_bias).unflatten(0, (3, -1))


class ScaledBlock(Block):
    """x += a * attention(x); x += m * mlp(x); x *= s, with factors (a, m, s) [3, C]; without scales a plain Block."""

    def forward(
        self, x: Tensor, layout: TokenLayout, key_mask: Tensor | None = None, scales: Tensor | None = None
    ) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        if scales is None:
            return super().forward(x, layout, key_mask)
        attention, mlp, state = scales
        x = x + attention * self.ls1(self.attn(self.normed(x, layout), layout, key_mask))
        if torch.is_grad_enabled() or is_traced() or x.numel() <= MLP_ELEMENTS:
            return state * (x + mlp * self.ls2(self.mlp(norm_for(self.mlp, self.norm2, x))))
        rows = x.flatten(0, 1)  # a copy where batches do not follow one another in memory
        for part in rows.split(max(1, MLP_ELEMENTS // x.shape[-1])):
            part += mlp * self.ls2(self.mlp(norm_for(self.mlp, self.norm2, part)))
            part *= state
        return rows.view(x.shape)


class LoopedTrunk(Trunk):
    """A trunk whose blocks from `looped_from` on run several times; the others run once.

    The caller chooses the number of passes; the number of parameters does not depend on it.
    """

    BLOCK = ScaledBlock

    def __init__(
        self, schedule: Sequence[Role], dim: int, heads: int, *, looped_from: int = 0, **block: Unpack[BlockOptions]
    ):
        super().__init__(schedule, dim, heads, **block)
        self.looped_from = looped_from
        self.scales = nn.ModuleList(StepScales(dim) for _ in schedule[looped_from:])

    def one_pass(self, x: Tensor, layout: TokenLayout, step: tuple[float, float]) -> Tensor:
        """Run the looped blocks once, [B, S, T, C] -> [B, S, T, C]; `step` is the (current, next) position."""
        scales = {self.looped_from + index: scale(step) for index, scale in enumerate(self.scales)}
        return self(x, layout, start=self.looped_from, extra=scales)[0]
