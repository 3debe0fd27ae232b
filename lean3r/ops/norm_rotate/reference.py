"""Norm, rotation and means of windows in plain torch, in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    tokens: int,
    special: int,
    window: int,
    eps: float,
    dtype: torch.dtype,
    patches_first: bool,
    pairs: bool,
) -> tuple[Tensor, Tensor]:
    """See `norm_rotate`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.to(wide)
    means = x.new_zeros(*x.shape[:2], 0, x.shape[3])
    if window:
        patches = out.unflatten(2, (-1, tokens))[:, :, :, special:]
        means = patches.unflatten(3, (-1, window)).mean(4).flatten(2, 3).to(x.dtype)
    if weight is not None:
        out = F.layer_norm(out, weight.shape, weight.to(wide), None if bias is None else bias.to(wide), eps)
    if cos is not None and sin is not None:
        halves, partners = ((2, -1, 2), -1) if pairs else ((2, 2, -1), -2)
        quarter = x.shape[3] // 4  # cos and sin [tokens, 2, D / 4] of either form:
        turn_cos, turn_sin = (t.to(wide).unflatten(-1, (2, -1))[..., :quarter] for t in (cos, sin))
        a, b = out.unflatten(2, (-1, tokens)).unflatten(-1, halves).unbind(partners)
        turned = torch.stack([a * turn_cos - b * turn_sin, b * turn_cos + a * turn_sin], partners)
        out = turned.flatten(-3).flatten(2, 3)
    if patches_first and special:
        views = out.unflatten(2, (-1, tokens))
        out = torch.cat([views[:, :, :, special:].flatten(2, 3), views[:, :, :, :special].flatten(2, 3)], 2)
    return out.to(dtype, copy=out is x), means
