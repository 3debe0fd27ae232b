"""Point cloud errors: nearest distances, F-score, normals, ICP. Arrays are float [N, 3], lengths in their unit.

scipy (the extra "eval") is imported when a nearest neighbour is asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lean3r.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from scipy.spatial import KDTree


def kd_tree(points: np.ndarray) -> KDTree:
    """Search tree over points [N, 3]. Raises MissingExtraError without scipy, InputError on NaN or no points."""
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise MissingExtraError.of("scoring point clouds", "eval") from error
    return KDTree(_check_points(points))


def _check_points(points: np.ndarray) -> np.ndarray:
    if len(points) == 0:
        raise InputError("an empty point cloud cannot be scored: got 0 points, expected at least 1")
    if not np.isfinite(points).all():
        raise InputError("a point cloud to be scored holds NaN or inf: mask those points out first")
    return np.asarray(points, dtype=np.float64)


def nearest(query: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] from each query point to its nearest target point, and that point's index [N]."""
    distance, index = kd_tree(target).query(_check_points(query))
    return np.asarray(distance), np.asarray(index)


class Fscore(NamedTuple):
    """Shares in [0, 1]: predicted points near the truth, true points near the prediction, harmonic mean."""

    precision: float
    recall: float
    fscore: float


def fscore(pred_to_gt: np.ndarray, gt_to_pred: np.ndarray, threshold: float) -> Fscore:
    """Precision, recall and F from nearest distances, strictly under the threshold; no distances count as 0."""
    precision, recall = (float(np.mean(d < threshold)) if d.size else 0.0 for d in (pred_to_gt, gt_to_pred))
    total = precision + recall
    return Fscore(precision, recall, 2 * precision * recall / total if total > 0 else 0.0)


def voxel_means(points: np.ndarray, voxel: float) -> np.ndarray:
    """Mean point of each occupied cell [Q, 3]; the grid starts half a voxel below the minimum corner."""
    points = np.asarray(points, dtype=np.float64)
    cell = np.floor((points - (points.min(axis=0) - voxel / 2)) / voxel).astype(np.int64)
    _, inverse, counts = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(inverse.reshape(-1), weights=points[:, axis]) for axis in range(3)], -1)
    return sums / counts[:, None]


def radius_thin(points: np.ndarray, radius: float, seed: int = 42) -> np.ndarray:
    """Points of which no two are within `radius`: greedy in an order shuffled by numpy's default generator."""
    shuffled = np.array(points)
    np.random.default_rng(seed).shuffle(shuffled, axis=0)
    neighbours = kd_tree(shuffled).query_ball_point(shuffled, radius)
    keep = np.ones(len(shuffled), dtype=bool)
    for current, near in enumerate(neighbours):
        if keep[current]:
            keep[near] = False
            keep[current] = True
    return shuffled[keep]


def estimate_normals(points: np.ndarray, neighbours: int = 30) -> np.ndarray:
    """Unit normals [N, 3] of arbitrary sign: least axis of the `neighbours` nearest points, itself included."""
    points = np.asarray(points, dtype=np.float64)
    count = min(neighbours, len(points))
    _, index = kd_tree(points).query(points, k=count)
    local = points[index.reshape(len(points), count)]
    local = local - local.mean(axis=1, keepdims=True)
    return np.linalg.eigh(local.transpose(0, 2, 1) @ local)[1][..., 0]


def rigid_fit(src: np.ndarray, dst: np.ndarray, with_scale: bool = False) -> np.ndarray:
    """Least-squares 4x4 map of src [N, 3] onto dst [N, 3], without reflection; `with_scale` for a similarity.

    Raises InputError if a coordinate is not finite or there is no point.
    """
    src, dst = np.asarray(src, dtype=np.float64), np.asarray(dst, dtype=np.float64)
    if len(src) == 0 or not (np.isfinite(src).all() and np.isfinite(dst).all()):
        raise InputError(f"cannot align {len(src)} points: expected at least 1, all finite under the mask")
    mean_src, mean_dst = src.mean(axis=0), dst.mean(axis=0)
    covariance = (dst - mean_dst).T @ (src - mean_src) / len(src)
    u, s, vh = np.linalg.svd(covariance)
    flip = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vh))])
    rotation = (u * flip) @ vh
    variance = ((src - mean_src) ** 2).sum() / len(src)
    scale = (s * flip).sum() / variance if with_scale and variance > 0 else 1.0
    fit = np.eye(4)
    fit[:3, :3] = scale * rotation
    fit[:3, 3] = mean_dst - fit[:3, :3] @ mean_src
    return fit


def move(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Points [N, 3] under a 4x4 affine map."""
    return np.asarray(points, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3]


class IcpResult(NamedTuple):
    """transform [4, 4] from source to target; share of source points with a partner; rms of their distances."""

    transform: np.ndarray
    fitness: float
    rmse: float


def icp(
    src: np.ndarray, dst: np.ndarray, max_distance: float, iterations: int = 30, tolerance: float = 1e-6
) -> IcpResult:
    """Point-to-point ICP from the identity, without scale, partners within `max_distance`.

    Stops when both share and rms change by less than `tolerance` (Open3D's rule and defaults).
    """
    tree, transform = kd_tree(dst), np.eye(4)

    def match() -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
        moved = move(src, transform)
        distance, index = tree.query(moved, distance_upper_bound=max_distance)
        found = np.isfinite(distance)
        rmse = math.sqrt(np.mean(distance[found] ** 2)) if found.any() else 0.0
        return moved, found, np.asarray(index), float(np.mean(found)), rmse

    moved, found, index, fitness, rmse = match()
    for _ in range(iterations):
        if not found.any():
            break
        transform = rigid_fit(moved[found], dst[index[found]]) @ transform
        before = fitness, rmse
        moved, found, index, fitness, rmse = match()
        if abs(before[0] - fitness) < tolerance and abs(before[1] - rmse) < tolerance:
            break
    return IcpResult(transform, fitness, rmse)


class SurfaceScore(NamedTuple):
    """Means and medians: acc (prediction to truth), comp (truth to prediction), nc1 / nc2 (|cosine| of normals)."""

    acc: float
    acc_med: float
    comp: float
    comp_med: float
    nc1: float
    nc1_med: float
    nc2: float
    nc2_med: float


def surface_score(pred: np.ndarray, gt: np.ndarray, pred_normals: np.ndarray, gt_normals: np.ndarray) -> SurfaceScore:
    """Accuracy, completeness and normal consistency of two oriented clouds as they lie."""
    accuracy, to_gt = nearest(pred, gt)
    completeness, to_pred = nearest(gt, pred)
    nc1 = np.abs((pred_normals * gt_normals[to_gt]).sum(-1))
    nc2 = np.abs((gt_normals * pred_normals[to_pred]).sum(-1))
    columns = (accuracy, completeness, nc1, nc2)
    return SurfaceScore._make([float(f(c)) for c in columns for f in (np.mean, np.median)])


def completion_ratio(pred: np.ndarray, gt: np.ndarray, threshold: float = 0.05) -> float:
    """Share of true points with a prediction strictly nearer than the threshold."""
    return float(np.mean(nearest(gt, pred)[0] < threshold))
