"""Depth of the sky, and metric scale from pixels outside it (Depth Anything 3, mono and nested)."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.group import Share
from lean3r.tracing import is_traced, without_autocast

SKY_FROM = 0.3  # a pixel is sky if its score is at least this
FEW_PIXELS = 10
FAR_QUANTILE = 0.99
CANONICAL_FOCAL_PX = 300.0


def is_sky(score: Tensor) -> Tensor:
    """Whether each pixel is sky: bool in the shape of `score`."""
    return score >= SKY_FROM


def fill_sky(depth: Tensor, sky: Tensor, share: Share | None = None) -> Tensor:
    """Depth [B, S, H, W] with sky pixels set to the 0.99 quantile of the other pixels of their scene.

    With a `share`, here and below, the views are those of one process, and the scene is that of all.

    A scene with ten or fewer pixels of either class is unchanged. The official code samples pixels at random if there
    are more than 100,000; this code uses all.
    """
    if is_traced():
        return torch.stack([_traced_fill(one, mask) for one, mask in zip(depth, sky, strict=True)])
    scenes = [
        one.where(~mask, far(one[~mask], share)) if min(count(mask, share), count(~mask, share)) > FEW_PIXELS else one
        for one, mask in zip(depth, sky, strict=True)
    ]
    return torch.stack(scenes)


def sky_depth(depth: Tensor, sky: Tensor, largest: float, share: Share | None = None) -> Tensor:
    """The depth that the sky of a scene [S, H, W] gets: the 0.99 quantile of the other pixels, at most `largest`; the
    largest depth if all is sky."""
    if is_traced():
        return torch.where(sky.all(), depth.max(), masked_quantile(depth, ~sky, FAR_QUANTILE).clamp_max(largest))
    return far(depth[~sky], share).clamp_max(largest) if has_some(~sky, share) else most(depth, share)


def _traced_fill(depth: Tensor, sky: Tensor) -> Tensor:
    """`fill_sky` of one scene in a traced model, where no value decides what runs."""
    enough = torch.minimum(sky.sum(), (~sky).sum()) > FEW_PIXELS
    return torch.where(sky & enough, masked_quantile(depth, ~sky, FAR_QUANTILE), depth)


def masked_quantile(values: Tensor, mask: Tensor, at: float) -> Tensor:
    """`quantile` of the values in a mask of the same shape, by sorting all; without any, the number means nothing."""
    ordered = values.flatten().masked_fill(~mask.flatten(), float("inf")).sort().values
    place = at * (mask.sum() - 1).clamp_min(0).double()
    low = place.floor().long()
    high = torch.minimum(low + 1, (mask.sum() - 1).clamp_min(0))
    first, second = (ordered.gather(0, number[None])[0] for number in (low, high))
    return torch.lerp(first, second, (place - low).to(values.dtype))


def count(mask: Tensor, share: Share | None) -> int:
    """Number of True in a mask."""
    return int(whole(mask.sum(), share))


def has_some(mask: Tensor, share: Share | None) -> bool:
    """Whether a mask has a True."""
    return bool(mask.any()) if share is None else count(mask, share) > 0


def whole(part: Tensor, share: Share | None) -> Tensor:
    """The sum of a number over all processes."""
    return part if share is None else share.parts(part).sum(0)


def most(depth: Tensor, share: Share | None) -> Tensor:
    """The largest value."""
    return depth.max() if share is None else share.parts(depth.max()).max()


def far(depth: Tensor, share: Share | None = None) -> Tensor:
    """The 0.99 quantile of values [P]."""
    return quantile(depth, FAR_QUANTILE, share)


def quantile(values: Tensor, at: float, share: Share | None = None) -> Tensor:
    """Linearly interpolated quantile of values [P], for any P (torch.quantile has a limit of 16 million)."""
    total = count(torch.ones_like(values, dtype=torch.bool), share)
    place = at * (total - 1)
    low = int(place)
    first, second = (kth(values, number, share) for number in (low + 1, min(low + 2, total)))
    return torch.lerp(first, second, place - low)


def kth(values: Tensor, number: int, share: Share | None) -> Tensor:
    """The value with this number, from 1 on, among finite values [P] in ascending order.

    Among values of all processes it is found byte by byte, by counting each time what begins with the bytes before.
    """
    if share is None:
        return values.kthvalue(number).values
    bits = values.float().contiguous().view(torch.int32).long()
    order = torch.where(bits < 0, -1 - bits, bits + (1 << 31))  # in the order of the numbers
    found = 0
    for shift in (24, 16, 8, 0):
        left = whole(torch.bincount(order >> shift & 0xFF, minlength=256), share).cumsum(0)
        byte = int((left < number).sum())
        number -= int(left[byte - 1]) if byte else 0
        found = found << 8 | byte
        order = order[order >> shift & 0xFF == byte]
    code = found - (1 << 31) if found >= 1 << 31 else -1 - found
    return torch.tensor(code, dtype=torch.int32, device=values.device).view(torch.float32).to(values.dtype)


def metric_scale(
    depth: Tensor, conf: Tensor, metric_depth: Tensor, sky: Tensor, share: Share | None = None
) -> Tensor | None:
    """Least-squares factor from depth to metric depth over the confident, non-sky pixels of one scene [S, H, W].

    None if ten or fewer pixels qualify; of a traced model, 1.
    """
    if is_traced():
        return _traced_scale(depth, conf, metric_depth, sky)
    clear = ~sky
    if count(clear, share) <= FEW_PIXELS:
        return None
    use = clear & (conf >= quantile(conf[clear], 0.5, share)) & (metric_depth > 1e-2) & (depth > 1e-3)
    if count(use, share) <= FEW_PIXELS:
        return None
    ours, metres = depth[use], metric_depth[use]
    with without_autocast(depth.device.type):  # sums over all pixels, too large for float16
        return whole(metres @ ours, share) / whole(ours @ ours, share)


def _traced_scale(depth: Tensor, conf: Tensor, metric_depth: Tensor, sky: Tensor) -> Tensor:
    clear = ~sky
    use = clear & (conf >= masked_quantile(conf, clear, 0.5)) & (metric_depth > 1e-2) & (depth > 1e-3)
    ours, metres = (torch.where(use, values, 0.0) for values in (depth, metric_depth))
    enough = (clear.sum() > FEW_PIXELS) & (use.sum() > FEW_PIXELS)
    factor = (metres * ours).sum() / torch.where(enough, (ours * ours).sum(), 1.0)
    return torch.where(enough, factor, 1.0)
