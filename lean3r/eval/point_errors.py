"""Point cloud errors: nearest distances, F-score, normals, ICP. Arrays are float [N, 3]; lengths are in their unit.

scipy (the extra "eval") is imported by the first search for nearest neighbours.
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
        raise InputError("cannot score an empty point cloud: got 0 points, expected at least 1")
    if not np.isfinite(points).all():
        raise InputError("cannot score a point cloud with NaN or inf: mask these points out first")
    return np.asarray(points, dtype=np.float64)


def nearest(query: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance [N] from each query point to the nearest target point, and the index [N] of that target point."""
    distance, index = kd_tree(target).query(_check_points(query))
    return np.asarray(distance), np.asarray(index)


class Fscore(NamedTuple):
    """Shares in [0, 1]: predicted points near the truth, true points near the prediction, harmonic mean."""

    precision: float
    recall: float
    fscore: float


def fscore(pred_to_gt: np.ndarray, gt_to_pred: np.ndarray, threshold: float) -> Fscore:
    """Precision, recall and F from nearest distances, strictly under the threshold; without distances a share is 0."""
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
    """A subset with no two points within `radius`, greedy in an order shuffled by numpy's default generator."""
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
    """Unit normals [N, 3] of arbitrary sign: least principal axis of the `neighbours` nearest points, with itself."""
    points = np.asarray(points, dtype=np.float64)
    count = min(neighbours, len(points))
    _, index = kd_tree(points).query(points, k=count)
    local = points[index.reshape(len(points), count)]
    local = local - local.mean(axis=1, keepdims=True)
    return np.linalg.eigh(local.transpose(0, 2, 1) @ local)[1][..., 0]


def rigid_fit(src: np.ndarray, dst: np.ndarray, with_scale: bool = False) -> np.ndarray:
    """Least-squares 4x4 map of src [N, 3] onto dst [N, 3], without reflection; a similarity if `with_scale`.

    Raises InputError if there is no point or a coordinate is not finite.
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
    """transform [4, 4] from source to target; fitness: share of source points with a partner; rmse of distances."""

    transform: np.ndarray
    fitness: float
    rmse: float


def icp(
    src: np.ndarray, dst: np.ndarray, max_distance: float, iterations: int = 30, tolerance: float = 1e-6
) -> IcpResult:
    """Point-to-point ICP from the identity, without scale; partners are within `max_distance`.

    Stops when both fitness and rmse change by less than `tolerance` (Open3D's rule and defaults).
    """
    tree, transform = kd_tree(dst), np.eye(4)

    def match() -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
        moved = move(src, transform)
        distance, index = tree.query(moved, distance_upper_bound=max_distance)
        paired = np.isfinite(distance)
        rmse = math.sqrt(np.mean(distance[paired] ** 2)) if paired.any() else 0.0
        return moved, paired, np.asarray(index), float(np.mean(paired)), rmse

    moved, paired, index, fitness, rmse = match()
    for _ in range(iterations):
        if not paired.any():
            break
        transform = rigid_fit(moved[paired], dst[index[paired]]) @ transform
        before = fitness, rmse
        moved, paired, index, fitness, rmse = match()
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
    """Accuracy, completeness and normal consistency of two oriented clouds, without alignment."""
    accuracy, to_gt = nearest(pred, gt)
    completeness, to_pred = nearest(gt, pred)
    nc1 = np.abs((pred_normals * gt_normals[to_gt]).sum(-1))
    nc2 = np.abs((gt_normals * pred_normals[to_pred]).sum(-1))
    columns = (accuracy, completeness, nc1, nc2)
    return SurfaceScore._make([float(f(c)) for c in columns for f in (np.mean, np.median)])


def completion_ratio(pred: np.ndarray, gt: np.ndarray, threshold: float = 0.05) -> float:
    """Share of true points with a predicted point strictly nearer than the threshold."""
    return float(np.mean(nearest(gt, pred)[0] < threshold))
