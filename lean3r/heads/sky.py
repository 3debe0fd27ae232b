"""Depth of the sky, and metric scale where the sky is known (Depth Anything 3, mono and nested)."""

from __future__ import annotations

import torch
from torch import Tensor

SKY_FROM = 0.3  # sky score at and above which a pixel is sky
FEW_PIXELS = 10
FAR_QUANTILE = 0.99
CANONICAL_FOCAL_PX = 300.0


def is_sky(score: Tensor) -> Tensor:
    """Bool of the shape of the sky score."""
    return score >= SKY_FROM


def fill_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """Depth [B, S, H, W] whose sky pixels take the 0.99 quantile of all other pixels of their scene.

    Left alone where either class has ten pixels or fewer. The official code draws a random subset above 100,000
    pixels; this one does not.
    """
    scenes = [
        one.where(~mask, far(one[~mask])) if min(int(mask.sum()), int((~mask).sum())) > FEW_PIXELS else one
        for one, mask in zip(depth, sky, strict=True)
    ]
    return torch.stack(scenes)


def far(depth: Tensor) -> Tensor:
    """The 0.99 quantile of values [P]."""
    return quantile(depth, FAR_QUANTILE)


def quantile(values: Tensor, share: float) -> Tensor:
    """Linearly interpolated quantile of values [P], of any number of them (torch.quantile stops at 16 million)."""
    place = share * (values.numel() - 1)
    low = int(place)
    first = values.kthvalue(low + 1).values
    second = values.kthvalue(min(low + 2, values.numel())).values
    return torch.lerp(first, second, place - low)


def metric_scale(depth: Tensor, conf: Tensor, metric_depth: Tensor, sky: Tensor) -> Tensor | None:
    """Least-squares factor from depth to metric depth over the confident, non-sky pixels of one scene [S, H, W].

    None when no more than ten pixels qualify.
    """
    clear = ~sky
    if int(clear.sum()) <= FEW_PIXELS:
        return None
    use = clear & (conf >= quantile(conf[clear], 0.5)) & (metric_depth > 1e-2) & (depth > 1e-3)
    if int(use.sum()) <= FEW_PIXELS:
        return None
    ours, metres = depth[use], metric_depth[use]
    return (metres @ ours) / (ours @ ours)
