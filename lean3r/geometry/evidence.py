"""Evidence for predicted depth: agreement with other views, and triangulated points near by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from lean3r.geometry.consistency import Scene, neighbours, unit
from lean3r.parallel import by_threads

CHECKED, CHECKED_OF_MANY, MANY = 6, 4, 60  # other views that each is compared with, fewer from MANY views on
CHECKED_PIXELS = 15_000  # of a view, on a regular grid; pixels in between take their neighbours' votes
TOLERANCE = 0.05  # relative depth error at which a vote counts six tenths
PARALLAX_RAD = np.deg2rad(2.0)  # parallax for a full vote; smaller angles count less
CLOSE = 0.01  # log depth: views that measure the same place
HIDDEN = 0.25  # weight of a vote against a point behind another view's surface, relative to one in front of it
ALONE = 0.3  # share of the network's confidence that is left where no other view votes
WELL, BADLY = 0.02, 0.05  # disagreement of views (log depth) at which votes count fully, and at which not at all
BORDER = 0.06  # of the shorter side of a picture: its border, where networks guess
CONFIRMED = 0.5  # votes that a pixel at the border needs
REACH_PX, NEAR = 6.0, 0.05  # how far a sparse point supports pixels, and up to which relative depth error


class Votes(NamedTuple):
    """Votes of other views for and against each pixel [S, H, W] float32; whether a view [S] bool overlaps with others;
    the median disagreement of the views (log depth), and the share of comparisons that differ by less than CLOSE (both
    NaN without overlap)."""

    agree: np.ndarray
    against: np.ndarray
    has_others: np.ndarray
    disagreement: float
    close: float


class Sightings(NamedTuple):
    """Points that one view observed: pixels [N, 2] of the network image, log of the true depth, weight up to 1."""

    xy: np.ndarray
    log_depth: np.ndarray
    weight: np.ndarray


def weigh(
    conf: np.ndarray, mask: np.ndarray, scene: Scene, sparse: Sequence[Sightings] | None = None
) -> tuple[np.ndarray, Votes]:
    """Confidence [S, H, W] weighted by evidence, and the votes of the views.

    conf [S, H, W] is the network's; mask [S, H, W] bool is False on padding; `sparse` are the triangulated points that
    each view observed, for cameras adjusted to them: empty where there are none, None for unverified cameras. Votes of
    other views and nearby sparse points scale the confidence if the cameras were adjusted, or if unverified cameras
    agree with the depth. Border pixels that no other view confirms get 0, so they give no points, unless no other view
    overlaps.
    """
    votes = cast(scene)
    share = (ALONE + votes.agree) / (1 + votes.agree + votes.against)
    if sparse is None:
        # If camera errors exceed depth errors, votes carry no information about depth.
        share **= float(np.clip((BADLY - np.nan_to_num(votes.disagreement)) / (BADLY - WELL), 0, 1))
    elif sparse:
        share *= 0.5 + np.stack(by_threads(lambda of_view: support(*of_view), zip(scene.depth, sparse, strict=True)))
    unconfirmed = border(mask) & (votes.agree < CONFIRMED) & votes.has_others[:, None, None]
    return np.where(unconfirmed, 0, conf * share).astype(np.float32), votes


def cast(scene: Scene) -> Votes:
    """The votes of the other views on each pixel, on a regular grid of pixels where there are very many."""
    views, height, width = scene.depth.shape
    step = max(1, round((height * width / CHECKED_PIXELS) ** 0.5))
    rows, cols = np.arange(step // 2, height, step), np.arange(step // 2, width, step)
    grid = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    centres = scene.centres
    agree, against = (np.zeros((views, len(rows), len(cols)), np.float32) for _ in range(2))
    others_of = neighbours(scene, CHECKED if views < MANY else CHECKED_OF_MANY)

    def vote(view: int) -> list[np.ndarray]:
        differences = []
        known = np.flatnonzero(scene.depth[view][rows[:, None], cols].ravel() > 0)
        # Seen from this view, single precision is exact enough wherever the world's origin lies, and faster.
        points = (scene.world_points(view, *grid[known].T) - centres[view]).astype(np.float32)
        own = unit(points)
        for other in others_of[view]:
            rays = points - (centres[other] - centres[view]).astype(np.float32)
            z, depth = scene.seen_along(other, rays)
            speaks = np.flatnonzero((z > 0) & (depth > 0))
            ratio, at = np.log(z[speaks] / depth[speaks]), known[speaks]
            chord = own[speaks] - unit(rays[speaks])
            angle = np.sqrt(np.einsum("pc,pc->p", chord, chord))  # where it is small; large ones count alike
            weight = (angle / np.float32(PARALLAX_RAD)).clip(0.1, 1)
            same = np.exp(-0.5 * (ratio / np.float32(TOLERANCE)) ** 2)
            agree[view].flat[at] += weight * same
            against[view].flat[at] += weight * (1 - same) * np.where(ratio < 0, np.float32(1), np.float32(HIDDEN))
            differences.append(np.abs(ratio[:: 1 + len(ratio) // 1000]))
        return differences

    differences = np.concatenate([np.zeros(0), *(part for parts in by_threads(vote, range(views)) for part in parts)])
    nearest = np.ix_(*(np.minimum(np.arange(n) // step, len(of) - 1) for n, of in ((height, rows), (width, cols))))
    agree, against = (np.stack([of_view[nearest] for of_view in votes]) for votes in (agree, against))
    has_others = np.array([len(others) > 0 for others in others_of])
    if not len(differences):
        return Votes(agree, against, has_others, float("nan"), float("nan"))
    return Votes(agree, against, has_others, float(np.median(differences)), float((differences < CLOSE).mean()))


def support(depth: np.ndarray, seen: Sightings) -> np.ndarray:
    """Support of nearby sparse points for the depth [H, W] of a view, [H, W] in 0..1."""
    height, width = depth.shape
    cols, rows = np.floor(seen.xy).astype(int).T
    inside = (cols >= 0) & (rows >= 0) & (cols < width) & (rows < height)
    cols, rows, weight, log_depth = cols[inside], rows[inside], seen.weight[inside], seen.log_depth[inside]
    difference = np.log(np.maximum(depth[rows, cols], 1e-9)) - log_depth
    points = np.zeros((height, width), np.float32)
    np.add.at(points, (rows, cols), weight * np.exp(-0.5 * (difference / NEAR) ** 2))
    spread = (_bell(height) @ torch.from_numpy(points) @ _bell(width)).numpy()
    return spread / (1 + spread)


@lru_cache(maxsize=8)
def _bell(size: int) -> torch.Tensor:
    """Weights [size, size] by which places along a side support one another. A product with them takes a twentieth of
    the time of a convolution."""
    apart = torch.arange(size)[:, None] - torch.arange(size)
    return torch.exp(-0.5 * (apart / REACH_PX) ** 2) * (apart.abs() <= 3 * REACH_PX)


def border(mask: np.ndarray) -> np.ndarray:
    """The border of each picture, [S, H, W] bool; mask [S, H, W] is False on padding."""
    at_border = mask.copy()
    for view, inside in enumerate(mask):
        rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows):
            side = max(1, round(BORDER * min(len(rows), len(cols))))
            at_border[view, rows[0] + side : rows[-1] + 1 - side, cols[0] + side : cols[-1] + 1 - side] = False
    return at_border
