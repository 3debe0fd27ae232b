"""Which views see a fused point, and where: honest 2-D observations from the depth maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lean3r.geometry.points import edge_mask
from lean3r.types import Reconstruction

AGREEMENT = 0.02  # a view sees a point if its own depth there is the same to this fraction
LONGEST = 12  # observations of one point: more make files of gigabytes and no better geometry


@dataclass(frozen=True)
class Observations:
    """point [O] index into the chosen points, ascending; view [O]; xy [O, 2] in pixels of the network image."""

    point: np.ndarray
    view: np.ndarray
    xy: np.ndarray


def choose_and_observe(reconstruction: Reconstruction, limit: int) -> tuple[np.ndarray, Observations]:
    """At most `limit` fused points (their indices, ascending) and at most LONGEST observations of each.

    A regular sample of the cloud; where there are more candidates than `limit`, points that only their own
    view sees are left out first.
    """
    total = len(reconstruction.points.xyz)
    # A quarter more candidates than needed leaves room to prefer points that several views see.
    candidates = np.unique(np.linspace(0, total - 1, min(total, limit + limit // 4)).astype(np.int64))
    seen = observe(reconstruction, candidates)
    views_each = np.bincount(seen.point, minlength=len(candidates))
    # A fixed permutation keeps the choice even over the scene.
    spread = np.random.default_rng(0).permutation(len(candidates))
    kept = np.zeros(len(candidates), dtype=bool)
    kept[spread[np.argsort(views_each[spread] < 2, kind="stable")][:limit]] = True
    own = reconstruction.points.view[candidates][seen.point] == seen.view
    of_kept = kept[seen.point] & (own | _evenly(views_each, seen.point, LONGEST - 1))
    rank = np.cumsum(kept) - 1
    return candidates[kept], Observations(rank[seen.point[of_kept]], seen.view[of_kept], seen.xy[of_kept])


def _evenly(count: np.ndarray, point: np.ndarray, limit: int) -> np.ndarray:
    """True on at most `limit` observations [O] of each point, evenly spread over its `count` [P] (point ascending)."""
    place = np.arange(len(point)) - (np.cumsum(count) - count)[point]
    length = count[point]
    return (length <= limit) | ((place + 1) * limit // length > place * limit // length)


def observe(reconstruction: Reconstruction, chosen: np.ndarray) -> Observations:
    """Every view's observations of the chosen points.

    A point's own view sees it at its own pixel. Another view sees it if its projection falls on a picture
    pixel whose depth agrees; the observation is then the point of that view's surface, taken as the plane
    through the pixel, that is nearest in space. So a reprojection error is the disagreement of two depth maps,
    and zero for exact depth of planes.
    """
    cloud = reconstruction.points
    xyz = cloud.xyz[chosen].astype(np.float64)
    own_view, own_xy = cloud.view[chosen], cloud.xy[chosen].astype(np.float32)
    # Small types: hundreds of views make millions of sightings. float32 is exact to 1e-5 pixels here.
    points, views, pixels = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], [np.zeros((0, 2), np.float32)]
    for view in range(len(reconstruction.sources)):
        mine = np.flatnonzero(own_view == view)
        others, xy = _seen_by(reconstruction, view, xyz)
        others, xy = others[own_view[others] != view], xy[own_view[others] != view]
        points.append(np.concatenate([mine, others]).astype(np.int32))
        views.append(np.full(len(points[-1]), view, np.int32))
        pixels.append(np.concatenate([own_xy[mine], xy.astype(np.float32)]))
    point = np.concatenate(points)
    order = np.argsort(point, kind="stable")
    return Observations(point[order], np.concatenate(views)[order], np.concatenate(pixels)[order])


def _seen_by(reconstruction: Reconstruction, view: int, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the points xyz [P, 3] that the view sees, and their observations in network pixels."""
    depth, mask = reconstruction.depth[view], reconstruction.mask[view]
    height, width = depth.shape
    fx, fy, cx, cy = reconstruction.intrinsics[view][[0, 1, 0, 1], [0, 1, 2, 2]]
    pose = reconstruction.cam_from_world[view]
    cam = xyz @ pose[:3, :3].T + pose[:3, 3]
    index = np.flatnonzero(cam[:, 2] > 0)
    cam = cam[index]
    u, v = cam[:, 0] / cam[:, 2] * fx + cx, cam[:, 1] / cam[:, 2] * fy + cy
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    index, cam, col, row = index[inside], cam[inside], u[inside].astype(np.int64), v[inside].astype(np.int64)

    known = np.where(mask & (depth > 0) & np.isfinite(depth), depth, 0)
    inverse = np.divide(1.0, known, out=np.full((height, width), np.nan), where=known > 0)
    w = np.where(edge_mask(torch.from_numpy(known)).numpy(), np.nan, inverse)[row, col]
    # Inverse depth is affine in the pixel on a plane: plane . X = 1 with `plane` from its value and slopes.
    plane_x, plane_y = _slope(inverse, 1)[row, col] * fx, _slope(inverse, 0)[row, col] * fy
    plane_z = w - plane_x * (col + 0.5 - cx) / fx - plane_y * (row + 0.5 - cy) / fy
    plane = np.stack([plane_x, plane_y, plane_z], axis=1)
    excess = np.einsum("pc,pc->p", plane, cam) - 1.0
    agree = np.abs(excess) < AGREEMENT  # False for NaN: no depth there
    cam, plane, excess = cam[agree], plane[agree], excess[agree]
    foot = cam - plane * (excess / np.einsum("pc,pc->p", plane, plane))[:, None]
    xy = foot[:, :2] / foot[:, 2:] * [fx, fy] + [cx, cy]
    # Beside an edge the plane can be so steep that its foot point is elsewhere; such a sighting says nothing.
    sane = (foot[:, 2] > 0) & (xy >= 0).all(axis=1) & (xy < [width, height]).all(axis=1)
    col, row = xy[sane].astype(np.int64).T
    sane[sane] = mask[row, col]
    return index[agree][sane], xy[sane]


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """Change per pixel along an axis: the flatter of the two one-sided differences, so that an edge on one side
    does not count; 0 where neither neighbour is known."""
    step = np.diff(values, axis=axis)
    edge = np.full_like(np.take(values, [0], axis=axis), np.nan)
    before, after = np.concatenate([edge, step], axis=axis), np.concatenate([step, edge], axis=axis)
    flatter = np.where(np.isnan(after) | (np.abs(before) <= np.abs(after)), before, after)
    return np.nan_to_num(flatter)
