"""Plane sweep and semi-global matching: the inverse depth of a view at which its sources look most alike.

Scores are normalised cross-correlations of small windows, as in most sweeps; costs are made smooth along eight paths
(Hirschmüller, "Stereo Processing by Semiglobal Matching and Mutual Information", 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.stereo.rays import Rays

PLANES = 64
WINDOW = 5  # pixels, of the sums in `_window`
FLOOR = 4e-4  # variance that counts as no texture, of pictures with variance 1
SMALL, LARGE = 0.3, 2.4  # penalties for one plane and for more between neighbours
EDGE = 0.05  # difference of grey (0..1) at which a penalty has fallen to 1 / e


class Match(NamedTuple):
    """Of each pixel [H, W]: inverse depth, the score of its plane (0..1), and how vague it is: the relative distance of
    planes there over the root of the cost's curvature, infinite where no plane is better than both its neighbours."""

    near: Tensor
    score: Tensor
    vague: Tensor


def match(own: Tensor, grey: Tensor, sources: Tensor, rays: Rays, near: Tensor) -> Match:
    """Match one view.

    own [H, W] and sources [N, H, W]: pictures without brightness and contrast, NaN where there is no picture; grey
    [H, W] in 0..1: where edges are; rays: from the view's pixels into N sources; near [D]: inverse depths to try, equal
    steps apart.
    """
    costs = sweep(own, sources, rays, near)
    total = smooth(costs, grey)
    top = total.argmin(1, keepdim=True)
    inner = top.clamp(1, len(near) - 2)
    before, at, after = (total.gather(1, inner + step)[:, 0] for step in (-1, 0, 1))
    curvature = before - 2 * at + after
    offset = (0.5 * (before - after) / curvature.clamp(min=1e-6)).clamp(-0.5, 0.5)
    at_end = (top != inner)[:, 0]
    step = near[1] - near[0]
    found = near[0] + step * (top[:, 0] + torch.where(at_end, 0.0, offset))
    score = 1 - costs.gather(1, top)[:, 0]
    return Match(found, score, step / found / torch.where(at_end, 0.0, curvature.clamp(min=0)).sqrt())


def sweep(own: Tensor, sources: Tensor, rays: Rays, near: Tensor) -> Tensor:
    """Costs [H, D, W] of every plane, 0 (alike) to 1 (not alike, or not seen); see `match`."""
    height, width = own.shape
    mean = _window(own)
    norm = (_window(own.square()) - mean.square()).clamp(min=0).add_(FLOOR).rsqrt_()
    framed = F.pad(sources, (1, 1, 1, 1), value=torch.nan)[:, None]  # what is seen outside is NaN
    direction, offset = _in_frame(rays, framed.shape[-2:])
    costs = own.new_empty(len(near), height, width)
    place = torch.empty_like(direction)
    at = own.new_empty(*direction.shape[1:], 2)
    seen = own.new_empty(3, *direction.shape[1:])  # grey, its square, its product with the view's
    for plane, inverse_depth in enumerate(near):
        x, y, z = torch.add(direction, (offset * inverse_depth)[..., None, None], out=place)
        z.clamp_(min=1e-6)
        torch.div(x, z, out=at[..., 0])
        torch.div(y, z, out=at[..., 1])
        seen[0] = F.grid_sample(framed, at, "bilinear", "border", False)[:, 0]
        torch.square(seen[0], out=seen[1])
        torch.mul(seen[0], own, out=seen[2])
        theirs, squares, products = _window(seen)
        variance = squares.addcmul_(theirs, theirs, value=-1).clamp_(min=0).add_(FLOOR)
        scores = products.addcmul_(theirs, mean, value=-1).mul_(variance.rsqrt_()).mul_(norm)
        best = F.pad(_better_half(scores)[None], (WINDOW // 2,) * 4, mode="replicate")[0]
        torch.sub(1, best.clamp_(0, 1), out=costs[plane])
    return costs.transpose(0, 1).contiguous()


def _in_frame(rays: Rays, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Direction [3, N, H, W] and offset [3, N] of the rays of one view, in places for grid_sample of pictures with a
    frame of one pixel, whose size is given."""
    framed = []
    for part in (rays.direction[0], rays.offset[0]):
        x, y, z = part.unbind(1)
        framed.append(torch.stack([2 * (side + z) / pixels - z for side, pixels in ((x, size[1]), (y, size[0]))] + [z]))
    return framed[0], framed[1]


def _window(x: Tensor) -> Tensor:
    """Means over windows of 5 x 5 pixels that lie inside [..., H, W], [..., H - 4, W - 4]; NaN if one of them is."""
    for dim in (-2, -1):
        size = x.shape[dim]
        pairs = x.narrow(dim, 0, size - 1) + x.narrow(dim, 1, size - 1)
        fours = pairs.narrow(dim, 0, size - 4) + pairs.narrow(dim, 2, size - 4)
        x = fours.add_(x.narrow(dim, 4, size - 4))
    return x.mul_(1 / WINDOW**2)


def _better_half(scores: Tensor) -> Tensor:
    """Mean over the better half of up to four scores [N, ...] that are not NaN, rounded up; -2 where there are none.
    The scores change."""
    scores.nan_to_num_(-2.0)
    several = (scores > -1.5).sum(0) > 2
    first = second = torch.full_like(scores[0], -2.0)
    for score in scores:
        second = torch.maximum(second, torch.minimum(first, score))
        first = torch.maximum(first, score)
    return torch.where(several, 0.5 * (first + second), first)


def smooth(costs: Tensor, grey: Tensor) -> Tensor:
    """Costs [H, D, W] summed along eight paths, with penalties that fall with the edges of a picture [H, W]."""
    total = torch.zeros_like(costs)
    _paths(costs, grey, (0, 1, -1), total)
    turned = costs.permute(2, 1, 0).contiguous()
    across = torch.zeros_like(turned)
    _paths(turned, grey.T.contiguous(), (0,), across)
    return total.add_(across.permute(2, 1, 0))


def _paths(costs: Tensor, grey: Tensor, shifts: Sequence[int], total: Tensor) -> None:
    """Add to `total` the paths that step from row to row of costs [R, D, C], both ways; each shifts by a column or not.

    All paths of a row are one step: [P, D, C]. What comes from outside the picture costs nothing, so a path starts
    with the costs of its first pixel.
    """
    rows, planes, cols = costs.shape
    for order in (range(rows), range(rows - 1, -1, -1)):
        state = costs.new_zeros(len(shifts), planes, cols)
        last = grey[order[0]]
        for row in order:
            came, edge = (
                _shifted(state, shifts),
                (grey[row] - _shifted(last.expand(len(shifts), 1, cols), shifts)).abs(),
            )
            weight = torch.exp(edge.mul_(-1 / EDGE))
            least = came.amin(1, keepdim=True)
            state = torch.minimum(came, least + LARGE * weight)
            came = came.add_(SMALL * weight)
            torch.minimum(state[:, 1:], came[:, :-1], out=state[:, 1:])
            torch.minimum(state[:, :-1], came[:, 1:], out=state[:, :-1])
            state.sub_(least).add_(costs[row])
            total[row].add_(state.sum(0))
            last = grey[row]


def _shifted(state: Tensor, shifts: Sequence[int]) -> Tensor:
    """State [P, D, C] with each path moved to the right by its shift; 0 comes in."""
    moved = torch.zeros_like(state, memory_format=torch.contiguous_format)
    cols = state.shape[-1]
    for into, of, shift in zip(moved, state, shifts, strict=True):
        size = cols - abs(shift)
        into.narrow(-1, max(shift, 0), size).copy_(of.narrow(-1, max(-shift, 0), size))
    return moved
