"""Three-axis rotary position embedding of frames in order: time, row and column (as in LingBot-Map).

Neighbouring channels form a pair. Special token i of a frame is at row i, column i; patches follow behind them. The
angles are computed, not looked up, so that time has no end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lean3r.tables import table
from lean3r.types import TokenLayout

BASE = 10_000.0


def axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that time, row and column rotate: about a third each, all even (64: 20, 22, 22)."""
    side = 2 * round(head_dim / 6)
    return head_dim - 2 * side, side, side


def time_angles(layout: TokenLayout, times: Sequence[int], head_dim: int) -> Tensor:
    """Angles [S, T, D / 2] float64 of S frames with these time indices, tokens in the layout's order."""
    time = _angles(torch.tensor(times, dtype=torch.float64), axes(head_dim)[0])
    space = _space(layout.special, layout.rows, layout.cols, layout.window, head_dim)
    lead = len(times), layout.tokens
    return torch.cat([time[:, None].expand(*lead, -1), space.expand(*lead, -1)], -1)


class TimeRope:
    """(cos, sin) of the tokens of frames at `times`, kept for all blocks of one call; a tensor of times, as a traced
    model has them, is in no table. `waves`: those of time by head_dim, where they are on the device already."""

    def __init__(self, times: Sequence[int] | Tensor, waves: Mapping[int, Tensor] | None = None):
        self.times = times if isinstance(times, Tensor) else tuple(times)
        self.count = times.shape[0] if isinstance(times, Tensor) else len(times)
        self._waves = dict(waves or {})
        self._made: dict[tuple[int | None, int], tuple[Tensor, Tensor]] = {}

    def waves(self, head_dim: int, device: torch.device) -> Tensor:
        """(cos, sin) of time [2, S, n] float32."""
        if head_dim not in self._waves:
            # The times of one streamed frame never come again: no use keeping their table.
            arguments = self.times, axes(head_dim)[0]
            once = isinstance(self.times, Tensor) or self.count == 1
            made = _time_waves(*arguments).to(device) if once else table(_time_waves, arguments, device)
            self._waves[head_dim] = made
        return self._waves[head_dim]

    def table(self, layout: TokenLayout, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two tensors [S * T, D / 2] float32."""
        key = layout.window, head_dim
        if key not in self._made:
            time = self.waves(head_dim, device)
            space = table(_space_waves, (layout.special, layout.rows, layout.cols, layout.window, head_dim), device)
            lead = self.count, layout.tokens
            parts = [time[:, :, None].expand(2, *lead, -1), space[:, None].expand(2, *lead, -1)]
            cos, sin = torch.cat(parts, -1).flatten(1, 2).unbind(0)
            self._made[key] = cos, sin
        return self._made[key]


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channels (2i, 2i + 1) of x [..., N, D] by angle i, given as cos and sin [N, D / 2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def _angles(positions: Tensor, channels: int) -> Tensor:
    """positions [n] -> [n, channels / 2] float64."""
    frequency = BASE ** (-torch.arange(0, channels, 2, dtype=torch.float64) / max(channels, 1))
    return positions[:, None] * frequency


def _space(special: int, rows: int, cols: int, window: int | None, head_dim: int) -> Tensor:
    """Angles of row and column [T, ...] float64 of the tokens of one frame."""
    row = torch.arange(rows, dtype=torch.float64)[:, None].expand(rows, cols).flatten()
    col = torch.arange(cols, dtype=torch.float64).expand(rows, cols).flatten()
    patches = torch.stack([row, col]) + special
    order = TokenLayout(1, special, rows, cols, window=window).order()
    patches = patches if order is None else patches[:, order]
    diagonal = torch.arange(special, dtype=torch.float64).expand(2, -1)
    positions = torch.cat([diagonal, patches], -1)
    return torch.cat([_angles(p, size) for p, size in zip(positions, axes(head_dim)[1:], strict=True)], -1)


def _space_waves(special: int, rows: int, cols: int, window: int | None, head_dim: int) -> Tensor:
    return _waves(_space(special, rows, cols, window, head_dim))


def _time_waves(times: tuple[int, ...] | Tensor, channels: int) -> Tensor:
    return _waves(_angles(torch.as_tensor(times, dtype=torch.float64), channels))


def _waves(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()]).float()
