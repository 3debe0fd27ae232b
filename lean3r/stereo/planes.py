"""Large planes of a scene: surely measured pixels show them, and they go on where little can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lean3r.geometry.consistency import Scene
from lean3r.geometry.normals import smooth_normals
from lean3r.stereo.posed import Depths, Posed

SURE = 0.06  # expected relative error below which pixels show planes
STRIDE, POINTS = 4, 8_000  # of every view one pixel in so many along either side, and of those at most so many in all
NEAR, COSINE = 0.01, 0.9  # of the points of a plane: distance from it over their depth, and of their normals with its
LEAST = 0.01  # share of all points, that a plane has
TRIES, FITS, MOST = 256, 3, 12  # points whose planes are tried, fits of the best one, and planes
OFF = 0.03  # relative error to expect of a plane where depth is not sure
AROUND = 0.1  # of the depth: distance from measured points of a plane up to which it goes on
AT_ONCE = 1_000  # pixels
REACH, SAME = 0.5, 3.0  # most log depth by which it differs; and how many times what both are expected to be off by


class Plane(NamedTuple):
    """The plane n x = d of the world: its normal n [3], its distance d from the origin, and `points` [N, 3] of it that
    were surely measured."""

    normal: np.ndarray
    distance: float
    points: np.ndarray


def planes_of(scene: Posed, measured: Scene, found: Depths) -> list[Plane]:
    """Planes of the world, the largest first. `measured` are the surfaces of what was `found`."""
    shown = [_sure(scene, measured, found, view) for view in np.flatnonzero(found.measured).tolist()]
    x, n, z = (np.concatenate(parts) for parts in zip(*shown, strict=True))
    rng, planes = np.random.default_rng(0), list[Plane]()
    some = rng.permutation(len(x))[:POINTS]
    x, n, z = x[some], n[some], z[some]
    least = max(LEAST * len(x), 3)
    while len(planes) < MOST and len(x) >= least:
        tried = rng.permutation(len(x))[:TRIES]
        distances = np.einsum("ij,ij->i", x[tried], n[tried])
        fits = _on(x, n, z, n[tried].T, distances)
        mine = fits[:, fits.sum(axis=0).argmax()]
        normal, distance = np.zeros(3), 0.0
        for _ in range(FITS):
            if mine.sum() < least:
                return planes
            centre = np.average(x[mine], axis=0, weights=z[mine] ** -2)
            off = (x[mine] - centre) / z[mine, None]
            normal = np.linalg.eigh(off.T @ off)[1][:, 0]
            normal *= np.copysign(1.0, normal @ n[mine].mean(axis=0))
            distance = centre @ normal
            mine = _on(x, n, z, normal, distance)
        planes.append(Plane(normal, float(distance), x[mine]))
        left = np.abs(x @ normal - distance) > 2 * NEAR * z  # edges of other things on it show none of their own
        x, n, z = x[left], n[left], z[left]
    return planes


def _sure(scene: Posed, measured: Scene, found: Depths, view: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World points [N, 3] of pixels of a view that are sure of their depth, with normals [N, 3] and depth [N]."""
    depth = measured.depth[view]
    facing = smooth_normals(depth, scene.optics.slopes(view, *depth.shape))
    is_sure = (depth > 0) & (found.log_b[view].exp().numpy() < SURE) & facing.any(axis=-1)
    rows, cols = STRIDE // 2 + STRIDE * np.stack(np.nonzero(is_sure[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]))
    normals = facing[rows, cols] @ scene.cam_from_world[view, :3, :3]
    return measured.world_points(view, rows, cols), normals, depth[rows, cols]


def _on(x: np.ndarray, n: np.ndarray, z: np.ndarray, normals: np.ndarray, distances: np.ndarray | float) -> np.ndarray:
    """Which points [N] lie on planes: [N], or [N, K] for normals [3, K]."""
    limit = NEAR * z if normals.ndim == 1 else NEAR * z[:, None]
    return (np.abs(x @ normals - distances) < limit) & (n @ normals > COSINE)


def drawn(scene: Posed, planes: Sequence[Plane], log_depth: Tensor, log_b: Tensor, view: int) -> Tensor:
    """Log depth [H, W] of a view with an expected error, drawn to the nearest plane by the precision of both: what is
    sure stays. A plane goes on only where it does not differ by too much, and around where it was measured."""
    own, b = (each.double().numpy() for each in (log_depth, log_b.exp()))
    pose = scene.cam_from_world[view]
    slopes = scene.optics.slopes(view, *own.shape)
    rays = np.concatenate([slopes, np.ones_like(slopes[..., :1])], axis=-1) @ pose[:3, :3]
    centre = -pose[:3, 3] @ pose[:3, :3]
    change, least = np.zeros(own.shape), np.minimum(REACH, SAME * (b + OFF))
    for plane in planes:
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = np.maximum((plane.distance - centre @ plane.normal) / (rays @ plane.normal), 0)
            off = np.log(depth) - own
        nearer = np.abs(off) < least
        nearer &= _around(plane.points - centre, rays, depth, nearer)
        change, least = np.where(nearer, off, change), np.where(nearer, np.abs(off), least)
    return torch.from_numpy(own + b**2 / (b**2 + OFF**2) * change).float()


def _around(points: np.ndarray, rays: np.ndarray, depth: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether places along rays [H, W, 3] at a depth [H, W] are near to one of the points [N, 3]; as the middle one of
    STRIDE by STRIDE pixels, and False for those that are not `wanted` [H, W]."""
    middle = (slice(STRIDE // 2, None, STRIDE),) * 2
    near = np.zeros(wanted[middle].shape, bool)
    rows, cols = np.nonzero(wanted[middle])
    places, z = rays[middle][rows, cols], depth[middle][rows, cols]
    of_plane = torch.from_numpy(points.astype(np.float32))
    for some in np.array_split(np.arange(len(z)), 1 + len(z) // AT_ONCE):
        apart = torch.cdist(torch.from_numpy((places[some] * z[some, None]).astype(np.float32)), of_plane)
        near[rows[some], cols[some]] = apart.amin(1).numpy() < AROUND * z[some]
    whole = near.repeat(STRIDE, 0).repeat(STRIDE, 1)
    return np.pad(whole, [(0, STRIDE)] * 2, mode="edge")[: wanted.shape[0], : wanted.shape[1]]
