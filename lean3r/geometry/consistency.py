"""Consistency of depth maps across views. Arrays on the CPU, one view at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lean3r.geometry.lens import Optics
from lean3r.parallel import by_threads

if TYPE_CHECKING:
    from lean3r.types import Reconstruction

PROBES = 16  # along each side of a picture, to find out which views overlap
PARALLAX_RAD = np.deg2rad(3.0)  # parallax angle that reveals wrong depth well
EDGE = 1.2  # ratio of depths from which neighbouring pixels are not of one surface


class Scene(NamedTuple):
    """depth [S, H, W] with 0 where unknown, cam_from_world [S, 4, 4] float64, and the cameras."""

    depth: np.ndarray
    cam_from_world: np.ndarray
    optics: Optics

    @classmethod
    def of(cls, reconstruction: Reconstruction) -> Scene:
        """The depth and cameras of a reconstruction; uncertain views have no depth."""
        return cls(reconstruction.certain_depth, reconstruction.cam_from_world, Optics.of(reconstruction))

    @property
    def centres(self) -> np.ndarray:
        """Camera centres [S, 3] in the world."""
        return -np.einsum("sij,si->sj", self.cam_from_world[:, :3, :3], self.cam_from_world[:, :3, 3])

    def world_points(self, view: int, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """World points [P, 3] of pixels of a view, NaN where there is no depth."""
        z = self.depth[view][rows, cols].astype(np.float64)
        slopes = self.optics.slopes(view, *self.depth.shape[1:])[rows, cols]
        cam = np.concatenate([slopes, np.ones((len(z), 1))], axis=1) * np.where(z > 0, z, np.nan)[:, None]
        pose = self.cam_from_world[view]
        return (cam - pose[:3, 3]) @ pose[:3, :3]

    def seen(self, view: int, world: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth [P] of world points [P, 3] in a view, and the view's own depth at their projections; NaN outside the
        picture and where the view's depth is unknown."""
        pose = self.cam_from_world[view]
        return self._seen(view, world @ pose[:3, :3].T + pose[:3, 3])

    def seen_along(self, view: int, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`seen` of points that are `rays` [P, 3] away from the view's centre, in their precision."""
        return self._seen(view, rays @ self.cam_from_world[view, :3, :3].T.astype(rays.dtype))

    def _seen(self, view: int, cam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        xy = self.optics.project(view, cam).astype(cam.dtype, copy=False)
        return cam[:, 2], sample_depth(self.depth[view], xy)


def neighbours(scene: Scene, count: int) -> list[np.ndarray]:
    """For each view, up to `count` other views with the largest overlap and enough parallax."""
    views, height, width = scene.depth.shape
    grid = (np.arange(PROBES) + 0.5) / PROBES
    rows, cols = (a.ravel().astype(int) for a in np.meshgrid(grid * height, grid * width, indexing="ij"))
    centres = scene.centres

    def of_view(view: int) -> np.ndarray:
        world = scene.world_points(view, rows, cols)
        world = world[np.isfinite(world).all(axis=1)]
        own = unit(world - centres[view])
        cam = np.einsum("sij,pj->spi", scene.cam_from_world[:, :3, :3], world) + scene.cam_from_world[:, None, :3, 3]
        depth = sample_depth(scene.depth, scene.optics.project_all(cam))
        visible = np.isfinite(depth) & (np.abs(np.log(np.where(depth > 0, cam[..., 2], 1) / depth)) < 0.5)
        visible[view] = False
        merit = np.zeros(views)
        for other in np.flatnonzero(visible.any(axis=1)):
            seen = visible[other]
            cosine = np.einsum("pc,pc->p", own[seen], unit(world[seen] - centres[other]))
            parallax = float(np.median(np.arccos(cosine.clip(-1, 1))))
            merit[other] = seen.mean() * min(1.0, 0.1 + parallax / PARALLAX_RAD)
        order = np.argsort(-merit, kind="stable")[:count]
        return order[merit[order] > 0.02]

    return by_threads(of_view, range(views))


def sample_depth(depth: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Depth [P] at pixels xy [P, 2], or [S, P] of S depth maps at [S, P, 2], linear in inverse depth between the four
    nearest pixel centres, in the precision of xy; NaN outside, where xy is NaN, and where one of the four is unknown or
    they span a depth edge."""
    height, width = depth.shape[-2:]
    x, y = xy[..., 0], xy[..., 1]
    inside = (x >= 0) & (y >= 0) & (x <= width) & (y <= height)
    at = np.nonzero(inside)  # of many maps, most points are in few
    # The outer half of a border pixel is in the picture but has no further pixel centre to interpolate with.
    x, y = (np.clip(along[at] - 0.5, 0, size - 1) for along, size in ((x, width), (y, height)))
    left, top = np.minimum(x.astype(np.int64), max(width - 2, 0)), np.minimum(y.astype(np.int64), max(height - 2, 0))
    first = top * width + left if depth.ndim == 2 else (at[0] * height + top) * width + left
    right, low = min(1, width - 1), width * min(1, height - 1)
    corners = np.stack([depth.reshape(-1)[first + step] for step in (0, right, low, low + right)]).astype(xy.dtype)
    known = (corners > 0).all(axis=0) & (corners.max(axis=0) < EDGE * corners.min(axis=0))
    fx, fy = (x - left).astype(xy.dtype), (y - top).astype(xy.dtype)
    weights = np.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy])
    inverse = (weights / np.where(known, corners, 1)).sum(axis=0)
    depths = np.full(inside.shape, np.nan, xy.dtype)
    depths[at] = np.where(known, 1 / inverse, np.nan)
    return depths


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] at length 1; zero stays zero."""
    return vectors / np.maximum(np.sqrt(np.einsum("...i,...i->...", vectors, vectors)), 1e-30)[..., None]
