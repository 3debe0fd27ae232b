"""Points with observations: triangulated points of a refinement, and fused points observed through the depth maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lean3r.export.frusta import camera_centres
from lean3r.geometry.lens import Optics
from lean3r.geometry.points import edge_mask
from lean3r.parallel import by_threads
from lean3r.types import Reconstruction

# A view observes a point if the view's own depth agrees with it within this share of the point's distance.
PREDICTED, REFINED = 0.02, 0.01
LONGEST = 12  # observations of one point: more make files of gigabytes and do not improve geometry


@dataclass(frozen=True)
class Tracked:
    """Points with their observations.

    xyz [P, 3] in world units and rgb [P, 3]; observation o is of point `point[o]` (point [O], ascending) in view
    `view[o]` (view [O]) at `xy[o]` (xy [O, 2], pixels of the original picture).
    """

    xyz: np.ndarray
    rgb: np.ndarray
    point: np.ndarray
    view: np.ndarray
    xy: np.ndarray

    def concatenate(self, other: Tracked) -> Tracked:
        """These points, followed by those of `other`."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("xyz", "rgb", "point", "view", "xy"))
        xyz, rgb, point, view, xy = pairs
        shifted = (point[0], point[1] + len(self.xyz))
        return Tracked(*(np.concatenate(pair) for pair in (xyz, rgb, shifted, view, xy)))


@dataclass(frozen=True)
class Sightings:
    """Observations of cloud points: point [O], ascending; view [O]; xy [O, 2] in pixels of the network image.

    along [O] is the distance of the point along its own ray according to that view's depth, as a share of the point's
    distance: 1 if both depths agree.
    """

    point: np.ndarray
    view: np.ndarray
    xy: np.ndarray
    along: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Sightings:
        return Sightings(self.point[index], self.view[index], self.xy[index], self.along[index])


def tracked_points(reconstruction: Reconstruction, limit: int) -> Tracked:
    """The triangulated points of a refinement, then at most `limit` points of the depth maps.

    Points of the depth maps must then be observed by two views or more. Without a refinement they are all there is, and
    one view is enough.
    """
    measured = triangulated_points(reconstruction)
    if measured is None:
        return depth_points(reconstruction, limit, fewest=1, agreement=PREDICTED)
    return measured.concatenate(depth_points(reconstruction, limit, fewest=2, agreement=REFINED))


def triangulated_points(reconstruction: Reconstruction) -> Tracked | None:
    """The points of a refinement with their measurements; None if there are none."""
    sparse = reconstruction.sparse
    if sparse is None or not len(sparse.xyz):
        return None
    # One measurement per view and point, as COLMAP requires; points without measurements are left out.
    order = np.lexsort((sparse.view, sparse.point))
    point, view = sparse.point[order], sparse.view[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(point) != 0) | (np.diff(view) != 0)
    used, index = np.unique(point[first], return_inverse=True)
    return Tracked(sparse.xyz[used], sparse.rgb[used], index, view[first], sparse.xy[order][first])


def depth_points(reconstruction: Reconstruction, limit: int, fewest: int, agreement: float) -> Tracked:
    """At most `limit` fused points that `fewest` views or more observe, each with at most LONGEST observations.

    The points are a regular sample of the cloud. If there are more candidates than `limit`, points in three or more
    views come first, then points in two. A point moves along its own ray to the median of its observations.
    """
    cloud = reconstruction.points
    total = len(cloud.xyz)
    # More candidates than needed leave room to prefer points in several views.
    candidates = np.unique(np.linspace(0, total - 1, min(total, 2 * limit)).astype(np.int64))
    seen = sightings(reconstruction, candidates, agreement)
    views_each = np.bincount(seen.point, minlength=len(candidates))
    # A fixed permutation spreads the choice evenly over the scene.
    spread = np.random.default_rng(0).permutation(len(candidates))
    spread = spread[np.argsort(-views_each[spread].clip(max=3), kind="stable")][:limit]
    is_chosen = np.zeros(len(candidates), dtype=bool)
    is_chosen[spread[views_each[spread] >= fewest]] = True
    own = cloud.view[candidates][seen.point] == seen.view
    seen = seen[is_chosen[seen.point] & (own | _thin(views_each, seen.point, LONGEST - 1))]
    chosen, point = candidates[is_chosen], (np.cumsum(is_chosen) - 1)[seen.point]
    centres = -np.einsum(
        "sji,sj->si", reconstruction.cam_from_world[:, :3, :3], reconstruction.cam_from_world[:, :3, 3]
    )
    eye = centres[cloud.view[chosen]]
    xyz = eye + _medians(seen.along, point, len(chosen))[:, None] * (cloud.xyz[chosen] - eye)
    scales = np.array([source.original_from_network for source in reconstruction.sources]).reshape(-1, 2, 2)
    xy = seen.xy.astype(np.float64) * scales[seen.view, 0] + scales[seen.view, 1]
    return Tracked(xyz, cloud.rgb[chosen], point, seen.view, xy)


def _thin(count: np.ndarray, point: np.ndarray, limit: int) -> np.ndarray:
    """True [O] for at most `limit` observations of each point, spread evenly over its `count` [P] (point ascending)."""
    place = np.arange(len(point)) - (np.cumsum(count) - count)[point]
    length = count[point]
    return (length <= limit) | ((place + 1) * limit // length > place * limit // length)


def _medians(values: np.ndarray, point: np.ndarray, points: int) -> np.ndarray:
    """The median [P] of each point's values [O]: the mean of the middle two if their number is even.

    `point` [O] is ascending and has each point at least once.
    """
    ranked = values[np.lexsort((values, point))]
    starts = np.searchsorted(point, np.arange(points + 1))
    middle = starts[:-1] + starts[1:] - 1
    return (ranked[middle // 2] + ranked[(middle + 1) // 2]) / 2


def sightings(reconstruction: Reconstruction, chosen: np.ndarray, agreement: float) -> Sightings:
    """All observations of the chosen points of the cloud.

    A point's own view observes it at its own pixel. Another view observes it if its projection falls on a picture pixel
    whose depth agrees within the share `agreement`. The observation is then the intersection of the point's own ray
    with that view's surface, approximated by the plane through the pixel. So the reprojection error is the disagreement
    of two depth maps seen as parallax, and zero for exact depth of planes.
    """
    cloud = reconstruction.points
    xyz = cloud.xyz[chosen].astype(np.float64)
    own_view, own_xy = cloud.view[chosen], cloud.xy[chosen].astype(np.float32)
    eyes = camera_centres(reconstruction.cam_from_world)[own_view]
    optics = Optics.of(reconstruction)
    # Small types, because hundreds of views make millions of sightings. float32 is exact to 1e-5 pixels here.
    parts = [Sightings(*(np.zeros(s, t) for s, t in ((0, np.int32), (0, np.int32), ((0, 2), np.float32), (0, float))))]

    def observe(view: int) -> Sightings:
        mine, others = np.flatnonzero(own_view == view), np.flatnonzero(own_view != view)
        index, xy, along = _observe(reconstruction, optics, view, xyz[others], eyes[others], agreement)
        point = np.concatenate([mine, others[index]]).astype(np.int32)
        pixels = np.concatenate([own_xy[mine], xy.astype(np.float32)])
        return Sightings(
            point, np.full(len(point), view, np.int32), pixels, np.concatenate([np.ones(len(mine)), along])
        )

    parts += by_threads(observe, range(len(reconstruction.sources)))
    names = ("point", "view", "xy", "along")
    joined = Sightings(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return joined[np.argsort(joined.point, kind="stable")]


def _observe(
    reconstruction: Reconstruction, optics: Optics, view: int, xyz: np.ndarray, eyes: np.ndarray, agreement: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The observations of points xyz [P, 3], whose own rays start at eyes [P, 3], in one view.

    Returns the indices [O] of the observed points, their positions [O, 2] in network pixels, and the distances [O] of
    the view's surface along their rays, where 1 is the point.
    """
    mask, pose = reconstruction.mask[view], reconstruction.cam_from_world[view]
    size = mask.shape[::-1]
    cam = xyz @ pose[:3, :3].T + pose[:3, 3]
    xy = optics.project(view, cam)
    index = np.flatnonzero((xy >= 0).all(axis=1) & (xy < size).all(axis=1))
    cam, (col, row) = cam[index], xy[index].astype(np.int64).T
    ray = cam - (eyes[index] @ pose[:3, :3].T + pose[:3, 3])
    plane = _planes(reconstruction.depth[view], mask, optics.slopes(view, *mask.shape))[row, col]
    along = 1 - (np.einsum("pc,pc->p", plane, cam) - 1) / np.einsum("pc,pc->p", plane, ray)
    agree = np.abs(along - 1) < agreement  # False for NaN, which means unknown depth
    index, along = index[agree], along[agree]
    xy = optics.project(view, cam[agree] + (along - 1)[:, None] * ray[agree])
    # Beside an edge the plane can be so steep that the ray meets it outside the picture: drop such sightings.
    sane = (xy >= 0).all(axis=1) & (xy < size).all(axis=1)
    col, row = xy[sane].astype(np.int64).T
    sane[sane] = mask[row, col]
    return index[sane], xy[sane], along[sane]


def _planes(depth: np.ndarray, mask: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The tangent plane [H, W, 3] of the surface at each pixel: plane . X = 1 for its points in the camera's frame.

    NaN where depth is unknown or has an edge. slopes [H, W, 2] are those of the rays.
    """
    known = np.where(mask & (depth > 0) & np.isfinite(depth), depth, 0)
    inverse = np.divide(1.0, known, out=np.full(depth.shape, np.nan), where=known > 0)
    centre = np.where(edge_mask(torch.from_numpy(known)).numpy(), np.nan, inverse)
    # On a plane, inverse depth is an affine function of the ray's slopes: its value and gradient give the plane.
    across = _slope(inverse, 1) / np.gradient(slopes[..., 0], axis=1)
    down = _slope(inverse, 0) / np.gradient(slopes[..., 1], axis=0)
    return np.stack([across, down, centre - across * slopes[..., 0] - down * slopes[..., 1]], axis=-1)


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """Change per pixel along an axis; 0 where neither neighbour is known.

    It is the smaller of the two one-sided differences, which ignores an edge on one side.
    """
    step = np.diff(values, axis=axis)
    edge = np.full_like(np.take(values, [0], axis=axis), np.nan)
    before, after = np.concatenate([edge, step], axis=axis), np.concatenate([step, edge], axis=axis)
    flatter = np.where(np.isnan(after) | (np.abs(before) <= np.abs(after)), before, after)
    return np.nan_to_num(flatter)
