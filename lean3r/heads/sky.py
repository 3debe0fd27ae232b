"""Depth of the sky, and metric scale from pixels outside it (Depth Anything 3, mono and nested)."""

from __future__ import annotations

import torch
from torch import Tensor

SKY_FROM = 0.3  # a pixel is sky if its score is at least this
FEW_PIXELS = 10
FAR_QUANTILE = 0.99
CANONICAL_FOCAL_PX = 300.0


def is_sky(score: Tensor) -> Tensor:
    """Whether each pixel is sky: bool in the shape of `score`."""
    return score >= SKY_FROM


def fill_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """Depth [B, S, H, W] with sky pixels set to the 0.99 quantile of the other pixels of their scene.

    A scene with ten or fewer pixels of either class is unchanged. The official code samples pixels at random if there
    are more than 100,000; this code uses all.
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
    """Linearly interpolated quantile of values [P], for any P (torch.quantile has a limit of 16 million)."""
    place = share * (values.numel() - 1)
    low = int(place)
    first = values.kthvalue(low + 1).values
    second = values.kthvalue(min(low + 2, values.numel())).values
    return torch.lerp(first, second, place - low)


def metric_scale(depth: Tensor, conf: Tensor, metric_depth: Tensor, sky: Tensor) -> Tensor | None:
    """Least-squares factor from depth to metric depth over the confident, non-sky pixels of one scene [S, H, W].

    None if ten or fewer pixels qualify.
    """
    clear = ~sky
    if int(clear.sum()) <= FEW_PIXELS:
        return None
    use = clear & (conf >= quantile(conf[clear], 0.5)) & (metric_depth > 1e-2) & (depth > 1e-3)
    if int(use.sum()) <= FEW_PIXELS:
        return None
    ours, metres = depth[use], metric_depth[use]
    return (metres @ ours) / (ours @ ours)
