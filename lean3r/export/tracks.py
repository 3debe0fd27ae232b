"""Points with the places where views see them: triangulated ones of a refinement, and fused ones by the depth maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lean3r.export.frusta import camera_centres
from lean3r.geometry.lens import Optics
from lean3r.geometry.points import edge_mask
from lean3r.parallel import by_threads
from lean3r.types import Reconstruction

# A view sees a point if by its own depth the point lies elsewhere by less than this share of its distance.
PREDICTED, REFINED = 0.02, 0.01
LONGEST = 12  # observations of one point: more make files of gigabytes and no better geometry


@dataclass(frozen=True)
class Tracked:
    """Points and where they were seen: xyz [P, 3], rgb [P, 3]; observation o is of point `point` [O], ascending, in
    view `view` [O] at `xy` [O, 2], pixels of the original picture."""

    xyz: np.ndarray
    rgb: np.ndarray
    point: np.ndarray
    view: np.ndarray
    xy: np.ndarray

    def and_then(self, other: Tracked) -> Tracked:
        """These points, then those of another."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("xyz", "rgb", "point", "view", "xy"))
        xyz, rgb, point, view, xy = pairs
        later = (point[0], point[1] + len(self.xyz))
        return Tracked(*(np.concatenate(pair) for pair in (xyz, rgb, later, view, xy)))


@dataclass(frozen=True)
class Sightings:
    """Where views see points of the cloud: point [O], ascending; view [O]; xy [O, 2] in pixels of the network image;
    along [O], how far along its own ray the point would be by that view's depth, as a share of where it is."""

    point: np.ndarray
    view: np.ndarray
    xy: np.ndarray
    along: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Sightings:
        return Sightings(self.point[index], self.view[index], self.xy[index], self.along[index])


def tracked_points(reconstruction: Reconstruction, limit: int) -> Tracked:
    """The triangulated points of a refinement as they are, then at most `limit` of the depth maps that two views or
    more agree on; without a refinement the latter alone, also those that one view sees."""
    measured = triangulated_points(reconstruction)
    if measured is None:
        return of_depth(reconstruction, limit, fewest=1, agreement=PREDICTED)
    return measured.and_then(of_depth(reconstruction, limit, fewest=2, agreement=REFINED))


def triangulated_points(reconstruction: Reconstruction) -> Tracked | None:
    """The points of a refinement with their measurements; None where there are none."""
    sparse = reconstruction.sparse
    if sparse is None or not len(sparse.xyz):
        return None
    # One measurement a view and point, as COLMAP wants it; points without any are left out.
    order = np.lexsort((sparse.view, sparse.point))
    point, view = sparse.point[order], sparse.view[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(point) != 0) | (np.diff(view) != 0)
    used, index = np.unique(point[first], return_inverse=True)
    return Tracked(sparse.xyz[used], sparse.rgb[used], index, view[first], sparse.xy[order][first])


def of_depth(reconstruction: Reconstruction, limit: int, fewest: int, agreement: float) -> Tracked:
    """At most `limit` fused points that `fewest` views or more see, each with at most LONGEST observations.

    A regular sample of the cloud; where there are more candidates than `limit`, those that three views see come first,
    then those that two do. A point that several views see lies where the middle one of them has it on its ray.
    """
    cloud = reconstruction.points
    total = len(cloud.xyz)
    # More candidates than needed leave room to prefer points that several views see.
    candidates = np.unique(np.linspace(0, total - 1, min(total, 2 * limit)).astype(np.int64))
    seen = sightings(reconstruction, candidates, agreement)
    views_each = np.bincount(seen.point, minlength=len(candidates))
    # A fixed permutation keeps the choice even over the scene.
    spread = np.random.default_rng(0).permutation(len(candidates))
    spread = spread[np.argsort(-views_each[spread].clip(max=3), kind="stable")][:limit]
    kept = np.zeros(len(candidates), dtype=bool)
    kept[spread[views_each[spread] >= fewest]] = True
    own = cloud.view[candidates][seen.point] == seen.view
    seen = seen[kept[seen.point] & (own | _evenly(views_each, seen.point, LONGEST - 1))]
    chosen, point = candidates[kept], (np.cumsum(kept) - 1)[seen.point]
    centres = -np.einsum(
        "sji,sj->si", reconstruction.cam_from_world[:, :3, :3], reconstruction.cam_from_world[:, :3, 3]
    )
    eye = centres[cloud.view[chosen]]
    xyz = eye + _medians(seen.along, point, len(chosen))[:, None] * (cloud.xyz[chosen] - eye)
    scales = np.array([source.original_from_network for source in reconstruction.sources]).reshape(-1, 2, 2)
    xy = seen.xy.astype(np.float64) * scales[seen.view, 0] + scales[seen.view, 1]
    return Tracked(xyz, cloud.rgb[chosen], point, seen.view, xy)


def _evenly(count: np.ndarray, point: np.ndarray, limit: int) -> np.ndarray:
    """True on at most `limit` observations [O] of each point, evenly spread over its `count` [P] (point ascending)."""
    place = np.arange(len(point)) - (np.cumsum(count) - count)[point]
    length = count[point]
    return (length <= limit) | ((place + 1) * limit // length > place * limit // length)


def _medians(values: np.ndarray, point: np.ndarray, points: int) -> np.ndarray:
    """The median [P] of each point's values [O] (point ascending, each at least once); the mean of the middle two."""
    ranked = values[np.lexsort((values, point))]
    starts = np.searchsorted(point, np.arange(points + 1))
    middle = starts[:-1] + starts[1:] - 1
    return (ranked[middle // 2] + ranked[(middle + 1) // 2]) / 2


def sightings(reconstruction: Reconstruction, chosen: np.ndarray, agreement: float) -> Sightings:
    """Every view's observations of the chosen points of the cloud.

    A point's own view sees it at its own pixel. Another view sees it if its projection falls on a picture pixel whose
    depth agrees within the share `agreement`; the observation is then where the point's own ray meets that view's
    surface, taken as the plane through the pixel. So a reprojection error is what two depth maps disagree by, as
    parallax shows it, and zero for exact depth of planes.
    """
    cloud = reconstruction.points
    xyz = cloud.xyz[chosen].astype(np.float64)
    own_view, own_xy = cloud.view[chosen], cloud.xy[chosen].astype(np.float32)
    eyes = camera_centres(reconstruction.cam_from_world)[own_view]
    optics = Optics.of(reconstruction)
    # Small types: hundreds of views make millions of sightings. float32 is exact to 1e-5 pixels here.
    parts = [Sightings(*(np.zeros(s, t) for s, t in ((0, np.int32), (0, np.int32), ((0, 2), np.float32), (0, float))))]

    def of_view(view: int) -> Sightings:
        mine, others = np.flatnonzero(own_view == view), np.flatnonzero(own_view != view)
        index, xy, along = _seen_by(reconstruction, optics, view, xyz[others], eyes[others], agreement)
        point = np.concatenate([mine, others[index]]).astype(np.int32)
        pixels = np.concatenate([own_xy[mine], xy.astype(np.float32)])
        return Sightings(
            point, np.full(len(point), view, np.int32), pixels, np.concatenate([np.ones(len(mine)), along])
        )

    parts += by_threads(of_view, range(len(reconstruction.sources)))
    names = ("point", "view", "xy", "along")
    found = Sightings(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return found[np.argsort(found.point, kind="stable")]


def _seen_by(
    reconstruction: Reconstruction, optics: Optics, view: int, xyz: np.ndarray, eyes: np.ndarray, agreement: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the points xyz [P, 3], looked at from eyes [P, 3], that the view sees; their observations in network
    pixels; and how far along their rays the view's surface is, 1 being the point."""
    mask, pose = reconstruction.mask[view], reconstruction.cam_from_world[view]
    size = mask.shape[::-1]
    cam = xyz @ pose[:3, :3].T + pose[:3, 3]
    xy = optics.project(view, cam)
    index = np.flatnonzero((xy >= 0).all(axis=1) & (xy < size).all(axis=1))
    cam, (col, row) = cam[index], xy[index].astype(np.int64).T
    ray = cam - (eyes[index] @ pose[:3, :3].T + pose[:3, 3])
    plane = _planes(reconstruction.depth[view], mask, optics.slopes(view, *mask.shape))[row, col]
    along = 1 - (np.einsum("pc,pc->p", plane, cam) - 1) / np.einsum("pc,pc->p", plane, ray)
    agree = np.abs(along - 1) < agreement  # False for NaN: no depth there
    index, along = index[agree], along[agree]
    xy = optics.project(view, cam[agree] + (along - 1)[:, None] * ray[agree])
    # Beside an edge the plane can be so steep that the ray meets it elsewhere; such a sighting says nothing.
    sane = (xy >= 0).all(axis=1) & (xy < size).all(axis=1)
    col, row = xy[sane].astype(np.int64).T
    sane[sane] = mask[row, col]
    return index[sane], xy[sane], along[sane]


def _planes(depth: np.ndarray, mask: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """The plane [H, W, 3] through each pixel's surface, plane . X = 1 for its points in the camera's frame; NaN where
    depth is unknown or has an edge. slopes [H, W, 2] are those of the rays."""
    known = np.where(mask & (depth > 0) & np.isfinite(depth), depth, 0)
    inverse = np.divide(1.0, known, out=np.full(depth.shape, np.nan), where=known > 0)
    centre = np.where(edge_mask(torch.from_numpy(known)).numpy(), np.nan, inverse)
    # Inverse depth is affine in the ray's slopes on a plane: its value and its changes give the plane.
    across = _slope(inverse, 1) / np.gradient(slopes[..., 0], axis=1)
    down = _slope(inverse, 0) / np.gradient(slopes[..., 1], axis=0)
    return np.stack([across, down, centre - across * slopes[..., 0] - down * slopes[..., 1]], axis=-1)


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """Change per pixel along an axis: the flatter of the two one-sided differences, so that an edge on one side
    does not count; 0 where neither neighbour is known."""
    step = np.diff(values, axis=axis)
    edge = np.full_like(np.take(values, [0], axis=axis), np.nan)
    before, after = np.concatenate([edge, step], axis=axis), np.concatenate([step, edge], axis=axis)
    flatter = np.where(np.isnan(after) | (np.abs(before) <= np.abs(after)), before, after)
    return np.nan_to_num(flatter)
