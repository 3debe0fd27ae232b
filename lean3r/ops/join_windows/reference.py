"""Gated sum and order of tokens in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    selected: Tensor, compressed: Tensor, gates: Tensor | None, special: Tensor | None, tokens: int, size: int
) -> Tensor:
    """See `join_windows`."""
    _, heads, places, _ = selected.shape
    views = (places + (0 if special is None else special.shape[2])) // tokens
    out = selected.unflatten(2, (views, -1))
    if gates is not None:
        behind = gates.unflatten(1, (views, tokens))[:, :, tokens - places // views :]
        weights = behind.float().sigmoid().unflatten(-1, (heads, -1)).permute(0, 3, 1, 2, 4)  # [B, H, views, P, G]
        first = weights[..., :1]
        last = weights[..., 1:] if weights.shape[-1] == 2 else 1 - first
        spread = compressed.repeat_interleave(size, 2).unflatten(2, (views, -1))
        out = (first * spread.float() + last * out.float()).to(selected.dtype)
    if special is not None:
        out = torch.cat([special.unflatten(2, (views, -1)).to(out.dtype), out], 3)
    return out.flatten(2, 3).transpose(1, 2).contiguous()
