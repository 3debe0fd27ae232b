"""Points from depth: normals, edges, confidence (torch tensors) and voxel thinning (numpy arrays).

Thinning is in numpy because fusion happens on the CPU, on plain arrays.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lean3r.geometry.camera import unproject


def normals_from_depth(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Unit normals [..., H, W, 3] in the camera frame, facing the camera, of depth [..., H, W] >= 0.

    Central differences of the camera points, one-sided at the border and beside invalid pixels (depth
    not above 0). Zero where a pixel is invalid or has no valid neighbour along a row or a column.
    """
    points = unproject(depth, intrinsics)
    valid = depth > 0
    normal = torch.linalg.cross(_slope(points, valid, -2), _slope(points, valid, -3), dim=-1)
    normal = torch.where((normal * points).sum(-1, keepdim=True) > 0, -normal, normal)
    return normalize(normal, dim=-1, eps=1e-20) * valid[..., None]


def _slope(points: Tensor, valid: Tensor, dim: int) -> Tensor:
    """Difference between the valid neighbours of each pixel (or itself) along an axis of [..., H, W, 3]."""
    size = points.shape[dim]
    index = torch.arange(size, device=points.device)
    total = torch.zeros_like(points)
    for step in (1, -1):
        neighbour = (index + step).clamp(0, size - 1)
        both = (valid & valid.index_select(dim + 1, neighbour))[..., None]
        change = step * (points.index_select(dim, neighbour) - points)
        total = total + torch.where(both, change, torch.zeros_like(change))
    return total


def edge_mask(depth: Tensor, rtol: float = 0.03) -> Tensor:
    """True on pixels [..., H, W] at a depth discontinuity, where networks leave flying pixels.

    A pixel is an edge where the second difference of inverse depth along a row or a column, times the
    depth, exceeds `rtol`. On a plane inverse depth is linear in the pixel, so slanted surfaces stay
    whatever their slope. Pixels with depth not above 0 are no edges and cause none.
    """
    valid = depth > 0
    inverse = torch.where(valid, 1 / torch.where(valid, depth, torch.ones_like(depth)), torch.zeros_like(depth))
    bend = torch.zeros_like(depth)
    for dim in (-1, -2):
        size = depth.shape[dim]
        if size < 3:
            continue
        a, b, c = (inverse.narrow(dim, i, size - 2) for i in range(3))
        known = valid.narrow(dim, 0, size - 2) & valid.narrow(dim, 1, size - 2) & valid.narrow(dim, 2, size - 2)
        inner = torch.where(known, (a - 2 * b + c).abs(), torch.zeros_like(b))
        # The border has no second difference of its own: it shares its neighbour's.
        padded = torch.cat([inner.narrow(dim, 0, 1), inner, inner.narrow(dim, size - 3, 1)], dim)
        bend = torch.maximum(bend, padded)
    return valid & (bend * depth > rtol)


def confidence_mask(conf: Tensor, percentile: float, mask: Tensor | None = None) -> Tensor:
    """True where `mask` holds and conf reaches the given percentile (0 to 100) of conf under `mask`.

    One threshold for the whole tensor; values equal to it stay, so constant confidence keeps everything.
    """
    mask = torch.ones_like(conf, dtype=torch.bool) if mask is None else mask
    values = conf[mask]
    if values.numel() == 0:
        return mask.clone()
    rank = min(int(percentile / 100 * values.numel()), values.numel() - 1)
    return mask & (conf >= values.kthvalue(rank + 1).values)


def _voxel_keys(xyz: np.ndarray, voxel: float) -> np.ndarray:
    """One int64 key [P] per point, equal exactly for points in the same cubic cell of side `voxel`."""
    # Anchored at the lowest corner, so that one cell holds any cloud if it is large enough. By columns, as numpy takes
    # five times as long to reduce rows of three.
    cells = []
    for axis in range(3):
        column = np.array(xyz[:, axis], dtype=np.float64)
        column -= column.min()
        column /= voxel
        cells.append(np.floor(column, out=column))
    size = [cell.max() + 1 for cell in cells]
    if np.prod(size) < 2.0**62:
        x, y, z = (cell.astype(np.int64) for cell in cells)
        return (x * int(size[1]) + y) * int(size[2]) + z
    # Far outliers make the grid too large for one integer: number the occupied cells instead.
    return np.unique(np.stack(cells, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _count_voxels(xyz: np.ndarray, voxel: float) -> int:
    """Number of cells of side `voxel` that hold a point."""
    keys = np.sort(_voxel_keys(xyz, voxel))
    return 1 + int(np.count_nonzero(keys[1:] != keys[:-1]))


def voxel_thin(xyz: np.ndarray, voxel: float, priority: np.ndarray) -> np.ndarray:
    """Ascending indices [Q] of the one point of highest `priority` [P] in each cell of side `voxel`.

    Ties go to the lower index, so the answer is the same on every machine. Points xyz [P, 3] that are not
    finite are never kept; voxel 0 keeps all others.
    """
    finite = np.flatnonzero(np.isfinite(xyz[:, 0]) & np.isfinite(xyz[:, 1]) & np.isfinite(xyz[:, 2]))
    if voxel <= 0 or finite.size == 0:
        return finite
    keys = _voxel_keys(xyz[finite], voxel)
    order = np.argsort(keys)
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] - 1))
    rank = np.asarray(priority)[finite][order]
    best = np.repeat(np.maximum.reduceat(rank, starts), np.diff(starts, append=order.size))
    candidates = np.where(rank == best, order, order.size)
    return np.sort(finite[np.minimum.reduceat(candidates, starts)])


def voxel_for_budget(xyz: np.ndarray, max_points: int, evaluations: int = 12) -> float:
    """Cell side for which `voxel_thin` keeps at most `max_points` of xyz [P, 3], and close to that number.

    0 when there are no more points than that already.
    """
    points = np.asarray(xyz, dtype=np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    if points.shape[0] <= max_points:
        return 0.0
    low_corner, high_corner = np.quantile(points[:: 1 + points.shape[0] // 10_000], [0.05, 0.95], axis=0)
    extent = float(np.linalg.norm(high_corner - low_corner))
    # Surfaces occupy about (extent / voxel)^2 cells; the search then brackets the budget on a log scale.
    voxel = max(extent / np.sqrt(max(max_points, 1)), 1e-12 * float(np.abs(points).max()) + 1e-30)
    low, high = 0.0, np.inf
    for _ in range(evaluations):
        count = _count_voxels(points, voxel)
        if count <= max_points:
            high = voxel
            if count >= 0.95 * max_points:
                return voxel
        else:
            low = voxel
        guess = voxel * np.sqrt(count / (0.975 * max_points))
        voxel = guess if low < guess < high else np.sqrt(low * high) if low and np.isfinite(high) else guess
    if np.isfinite(high):
        return high
    while _count_voxels(points, voxel) > max_points:
        voxel *= 2
    return voxel
