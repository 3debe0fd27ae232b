"""Two-axis rotary position embedding of a token layout (as in VGGT, Pi3 and DA3).

The first half of the head dimension turns with the row, the second with the column; patches sit at rows and
columns counted from 1, special tokens at (0, 0), so that they are not turned. Positions repeat in every view.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lean3r.types import TokenLayout

BASE = 100.0


@lru_cache(maxsize=64)
def _table(special: int, rows: int, cols: int, head_dim: int, device: torch.device, dtype: torch.dtype, flat: bool):
    # Cached: a table made under inference mode would be refused by a later training step.
    with torch.inference_mode(False):
        half = head_dim // 2
        frequency = BASE ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
        row = torch.arange(1, rows + 1, dtype=torch.float32).repeat_interleave(cols)
        col = torch.arange(1, cols + 1, dtype=torch.float32).repeat(rows)
        if flat:
            row, col = torch.ones_like(row), torch.ones_like(col)
        positions = torch.cat([torch.zeros(special, 2), torch.stack([row, col], -1)])
        angle = positions[:, :, None] * frequency
        angle = torch.cat([angle, angle], -1).flatten(1)
        return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def rope_table(
    layout: TokenLayout, head_dim: int, device: torch.device, dtype: torch.dtype, *, flat: bool = False
) -> tuple[Tensor, Tensor]:
    """(cos, sin) [T, D] for the tokens of one view, cached per layout. head_dim must be a multiple of 4.

    `flat` places every patch at row 1, column 1.
    """
    return _table(layout.special, layout.rows, layout.cols, head_dim, device, dtype, flat)


def forget_tables() -> None:
    """Empty the cache of tables, for code that runs on tensors without values."""
    _table.cache_clear()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn x [..., N, D] by a table [T, D]; N is a multiple of T, views following one another."""
    cos, sin = table
    *lead, tokens, dim = x.shape
    x = x.reshape(*lead, tokens // cos.shape[0], cos.shape[0], dim)
    a, b, c, d = x.chunk(4, dim=-1)
    turned = torch.cat([-b, a, -d, c], dim=-1)
    return (x * cos + turned * sin).reshape(*lead, tokens, dim)
