"""Published point cloud protocols, step by step as in their references; built from `point_errors`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lean3r.eval.point_errors import (
    Fscore,
    SurfaceScore,
    estimate_normals,
    fscore,
    icp,
    move,
    nearest,
    radius_thin,
    rigid_fit,
    surface_score,
    voxel_means,
)


def mv_recon_score(
    pred_points: np.ndarray, gt_points: np.ndarray, mask: np.ndarray, icp_max_distance: float = 0.1
) -> SurfaceScore:
    """Pi3's "mv_recon": a similarity from corresponding pixels, ICP, then accuracy, completeness and normals.

    Point maps [..., 3], mask [...] bool; the ICP distance is in true units (0.1 m; 100 for DTU in mm).
    """
    pred, gt = pred_points[mask].astype(np.float64), gt_points[mask].astype(np.float64)
    pred = move(pred, rigid_fit(pred, gt, with_scale=True))
    pred = move(pred, icp(pred, gt, icp_max_distance).transform)
    return surface_score(pred, gt, estimate_normals(pred), estimate_normals(gt))


class PointmapAlignment(NamedTuple):
    """Aligned prediction [S, H, W, 3], and the measured depth shifts and scales."""

    pred: Tensor
    shift_gt: float
    shift_pred: float
    scale_gt: float
    scale_pred: float


def align_pointmaps_median(pred: Tensor, gt: Tensor, mask: Tensor) -> PointmapAlignment:
    """CUT3R's alignment of point maps [S, H, W, 3] in the first camera's frame, by medians under mask [S, H, W].

    Shifts match the median depths; one scale matches the sizes (median distance to the median point), where the
    predicted size is clamped to [1e-3, 1e3]. Rotation and lateral shift are not fitted.
    """

    def center(points: Tensor) -> tuple[Tensor, float, float]:
        shift = points[mask][:, 2].median()
        moved = points - torch.stack([torch.zeros_like(shift), torch.zeros_like(shift), shift])
        valid = moved[mask]
        size = torch.linalg.vector_norm(valid - valid.median(dim=0).values, dim=-1).median()
        return moved, shift.item(), size.item()

    moved, shift_pred, scale_pred = center(pred)
    _, shift_gt, scale_gt = center(gt)
    aligned = moved * (scale_gt / min(max(scale_pred, 1e-3), 1e3))
    aligned[..., 2] += shift_gt
    return PointmapAlignment(aligned, shift_gt, shift_pred, scale_gt, scale_pred)


class CloudScore(NamedTuple):
    """Mean distances of two clouds, and shares of near points; `overall` is the mean of acc and comp."""

    acc: float
    comp: float
    overall: float
    precision: float
    recall: float
    fscore: float


def da3_cloud_score(pred: np.ndarray, gt: np.ndarray, threshold: float, voxel: float = 0.0) -> CloudScore:
    """Depth Anything 3's benchmark: optional voxel means, then distances and F-score; an empty cloud gives inf and 0.

    Threshold and voxel size in its tables: ETH3D 0.25 / 0.0390625; 7Scenes and HiRoom 0.05 / 0.0078125; ScanNet++
    0.05 / 0.02 (metres).
    """
    if len(pred) == 0 or len(gt) == 0:
        return CloudScore(math.inf, math.inf, math.inf, 0.0, 0.0, 0.0)
    if voxel > 0:
        pred, gt = voxel_means(pred, voxel), voxel_means(gt, voxel)
    forward, backward = nearest(pred, gt)[0], nearest(gt, pred)[0]
    acc, comp = float(forward.mean()), float(backward.mean())
    return CloudScore(acc, comp, (acc + comp) / 2, *fscore(forward, backward, threshold))


def tanks_and_temples_score(pred: np.ndarray, gt: np.ndarray, threshold: float) -> Fscore:
    """Tanks and Temples: voxel means of half the threshold, then F-score. The caller crops and registers.

    If precision and recall are both 0, the reference fails with a division by zero; this returns F = 0.
    """
    if len(pred) == 0 or len(gt) == 0:
        return Fscore(0.0, 0.0, 0.0)
    pred, gt = voxel_means(pred, threshold / 2), voxel_means(gt, threshold / 2)
    return fscore(nearest(pred, gt)[0], nearest(gt, pred)[0], threshold)


class DtuScene(NamedTuple):
    """Truth of one DTU scan in mm: points [N, 3], observed volume, its box [2, 3] and cell size, table plane [4]."""

    points: np.ndarray
    observed: np.ndarray
    box: np.ndarray
    resolution: float
    plane: np.ndarray


def dtu_score(
    pred: np.ndarray, scene: DtuScene, density: float = 0.2, margin: float = 60.0, max_distance: float = 20.0
) -> tuple[float, float, float]:
    """DTU accuracy, completeness and their mean, in mm; distances of at least `max_distance` are ignored.

    The prediction is thinned to `density`. Accuracy is over points in the observed volume, completeness over true
    points above the plane of the table.
    """
    low, high = scene.box
    thin = radius_thin(pred, density)
    inside = thin[((thin >= low - margin) & (thin < high + 2 * margin)).all(axis=1)]
    cell = np.around((inside - low) / scene.resolution).astype(np.int64)
    in_volume = ((cell >= 0) & (cell < scene.observed.shape)).all(axis=1)
    seen = scene.observed[tuple(cell[in_volume].T)].astype(bool)
    above = scene.points @ scene.plane.reshape(-1)[:3] + scene.plane.reshape(-1)[3] > 0
    forward = nearest(inside[in_volume][seen], scene.points)[0]
    backward = nearest(scene.points[above], inside)[0]
    accuracy, completeness = (float(d[d < max_distance].mean()) for d in (forward, backward))
    return accuracy, completeness, (accuracy + completeness) / 2


def chamfer_capped(pred: np.ndarray, gt: np.ndarray, max_distance: float = 0.5, voxel: float = 0.05) -> float:
    """FastVGGT's Chamfer distance: voxel means, capped distances, sum of the means of both directions."""
    if voxel > 0:
        pred, gt = voxel_means(pred, voxel), voxel_means(gt, voxel)
    return sum(float(np.minimum(nearest(a, b)[0], max_distance).mean()) for a, b in ((pred, gt), (gt, pred)))


def match_bounding_box(pred: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, float]:
    """FastVGGT's alignment: the prediction with the diagonal and the centre of the true box, and the scale."""
    (low, high), (low_gt, high_gt) = ((x.min(axis=0), x.max(axis=0)) for x in (pred, gt))
    scale = float(np.linalg.norm(high_gt - low_gt) / np.linalg.norm(high - low))
    return (pred - (low + high) / 2) * scale + (low_gt + high_gt) / 2, scale


def chamfer_squared(pred: np.ndarray, gt: np.ndarray) -> float:
    """Lite3R's Chamfer distance: half the sum of the mean squared distances of both directions, in squared units."""
    return (float((nearest(pred, gt)[0] ** 2).mean()) + float((nearest(gt, pred)[0] ** 2).mean())) / 2
