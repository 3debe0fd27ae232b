"""Values between known ones, such as depth between points, by ever larger neighbourhoods (push-pull)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(values: Tensor, weight: Tensor) -> Tensor:
    """Smooth values [B, H, W] everywhere from values at pixels with weight > 0 [B, H, W]; 0 where a map has none."""
    return _spread((values * weight)[:, None], weight[:, None])[:, 0]


def _spread(sums: Tensor, weight: Tensor) -> Tensor:
    size = sums.shape[-2:]
    if max(size) == 1:
        return sums / weight.clamp(min=1e-12)
    sums_above, weight_above = (4 * F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (sums, weight))
    # A cell counts as one sample on the levels above, however many it has.
    once = weight_above.clamp(max=1.0)
    above = _spread(sums_above / weight_above.clamp(min=1e-12) * once, once)
    above = F.interpolate(above, size, mode="bilinear", align_corners=False)
    share = weight.clamp(max=1.0)
    return above + share * (sums / weight.clamp(min=1e-12) - above)


def interpolate_points(log_depth: Tensor, has: Tensor) -> Tensor:
    """Log depth [B, H, W] between points: log_depth [B, H, W] where `has` [B, H, W]; linear in inverse depth."""
    near = spread(torch.where(has, (-log_depth).exp(), 0.0), has.to(log_depth.dtype))
    return -near.clamp(min=1e-12).log()
