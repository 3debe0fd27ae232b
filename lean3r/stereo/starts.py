"""Where the network begins to look for depth: a prior drawn to sparse points, and what lies between the points."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.geometry.spread import interpolate_points
from lean3r.stereo.classical import distance
from lean3r.stereo.joining import join

LEAST_POINTS = 30  # of a view
HELD, FREE = 0.3, 0.002  # weight of a point while outliers are sought; pull of the prior between points
OUTLIER, TOLERANCE = 4.5, 0.02  # times the median deviation, and what is none in any case, in log depth
NEAR_PX = 30.0  # distance from points at which the prior counts more than what lies between them


def starts(prior: Tensor, points: Tensor, has: Tensor, grey: Tensor) -> tuple[Tensor, Tensor]:
    """Two guesses [H, W] of a view's log depth; both are the prior if it has too few points.

    prior [H, W]; points [H, W]: log depth of sparse points where `has` [H, W]; grey [H, W] in 0..1. The first has the
    prior's shape, drawn to the points without outliers. The second is linear in inverse depth between them, and becomes
    the first far from them. Where networks are wrong the second is better, where points are few the first.
    """
    if has.sum() < LEAST_POINTS:
        return prior, prior
    change, weight = torch.where(has, points - prior, 0.0), has.float()
    rest = (change - join(change, HELD * weight, grey)).abs()
    weight = weight * (rest < OUTLIER * rest[has].median() + TOLERANCE)
    through = prior + join(change, weight, grey, FREE)
    share = torch.exp(-distance(has) / NEAR_PX)
    return through, share * interpolate_points(points[None], has[None])[0] + (1 - share) * through
