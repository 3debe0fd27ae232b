"""Large planes of a scene: surely measured pixels show them, and they go on where little can be measured."""

from __future__ import annotations

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
REACH, SAME = 0.25, 3.0  # most log depth by which it differs; and how many times what both are expected to be off by


def planes_of(scene: Posed, measured: Scene, found: Depths) -> np.ndarray:
    """Planes [P, 4] of the world, the largest first: the normal n and the distance d of n x = d. `measured` are the
    surfaces of what was `found`."""
    shown = [_sure(scene, measured, found, view) for view in np.flatnonzero(found.measured).tolist()]
    x, n, z = (np.concatenate(parts) for parts in zip(*shown, strict=True))
    rng, planes = np.random.default_rng(0), []
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
                return _stacked(planes)
            centre = np.average(x[mine], axis=0, weights=z[mine] ** -2)
            off = (x[mine] - centre) / z[mine, None]
            normal = np.linalg.eigh(off.T @ off)[1][:, 0]
            normal *= np.copysign(1.0, normal @ n[mine].mean(axis=0))
            distance = centre @ normal
            mine = _on(x, n, z, normal, distance)
        planes.append(np.append(normal, distance))
        left = np.abs(x @ normal - distance) > 2 * NEAR * z  # edges of other things on it show none of their own
        x, n, z = x[left], n[left], z[left]
    return _stacked(planes)


def _stacked(planes: list[np.ndarray]) -> np.ndarray:
    return np.array(planes).reshape(-1, 4)


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


def drawn(scene: Posed, planes: np.ndarray, log_depth: Tensor, log_b: Tensor, view: int) -> Tensor:
    """Log depth [H, W] of a view with an expected error, drawn to the nearest plane by the precision of both: what is
    sure stays. A plane that differs by too much does not go on there."""
    own, b = (each.double().numpy() for each in (log_depth, log_b.exp()))
    pose = scene.cam_from_world[view]
    slopes = scene.optics.slopes(view, *own.shape)
    rays = np.concatenate([slopes, np.ones_like(slopes[..., :1])], axis=-1) @ pose[:3, :3]
    centre = -pose[:3, 3] @ pose[:3, :3]
    change = np.full(own.shape, np.inf)
    for *normal, distance in planes:
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.log(np.maximum((distance - centre @ normal) / (rays @ normal), 0)) - own
        change = np.where(np.abs(off) < np.abs(change), off, change)
    is_near = np.abs(change) < np.minimum(REACH, SAME * (b + OFF))
    share = b**2 / (b**2 + OFF**2)
    return torch.from_numpy(own + np.where(is_near, share * change, 0)).float()
