"""Errors of relative camera poses, and the areas under their recall curves.

Cameras are cam_from_world [S, 4, 4]; angles are in degrees; AUC and recall are fractions in [0, 1]. All
angles are computed in float64 by atan2 formulas, which agree with the published arccos formulas within
1e-5 degrees and are also accurate for the smallest angles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.eval import POSE_CONVENTIONS
from lean3r.geometry.pose import camera_centers, invert_pose, relative_pose
from lean3r.geometry.rotation import geodesic_angle

DEFAULT_THRESHOLDS_DEG = (5, 15, 30)


class PairErrors(NamedTuple):
    """Errors of P pairs of views: rotation_deg [P] in [0, 180], translation_deg [P] in [0, 90] or inf."""

    rotation_deg: np.ndarray
    translation_deg: np.ndarray

    @property
    def pose_deg(self) -> np.ndarray:
        """The larger of both errors [P]; NaN if either is NaN."""
        return np.maximum(self.rotation_deg, self.translation_deg)


def pair_indices(views: int) -> np.ndarray:
    """All pairs i < j [P, 2] of views, in lexicographic order."""
    return np.stack(np.triu_indices(views, 1), -1)


def pairs_vggt(cam_from_world: Tensor) -> Tensor:
    """cam_i_from_cam_j [P, 4, 4] for all pairs i < j (VGGT)."""
    i, j = pair_indices(cam_from_world.shape[0]).T
    return relative_pose(cam_from_world)[i, j]


def pairs_pi3(cam_from_world: Tensor) -> Tensor:
    """cam_j_from_cam_i [P, 4, 4] for all pairs i < j (Pi3)."""
    i, j = pair_indices(cam_from_world.shape[0]).T
    return relative_pose(cam_from_world)[j, i]


def pairs_da3(cam_from_world: Tensor) -> Tensor:
    """inverse(V_i) V_j with V = W inverse(W_0) [P, 4, 4], as in the Depth Anything 3 benchmark.

    This is not the relative pose of two cameras; use it only to compare with that benchmark's tables.
    """
    i, j = pair_indices(cam_from_world.shape[0]).T
    anchored = cam_from_world @ invert_pose(cam_from_world[:1])
    return invert_pose(anchored)[i] @ anchored[j]


def rotation_error_deg(pred: Tensor, gt: Tensor) -> Tensor:
    """Angle [...] in degrees between rotations [..., 3, 3]; NaN for NaN."""
    return torch.rad2deg(geodesic_angle(pred.double(), gt.double()))


def translation_error_deg(
    pred: Tensor,
    gt: Tensor,
    zero_baseline_deg: float = 90.0,
    ignore_gt_below: float = 0.0,
    length_floor: float = 0.0,
) -> Tensor:
    """Angle [...] in [0, 90] degrees between translations [..., 3] of either sign.

    If either vector is exactly zero, the angle is `zero_baseline_deg`: 90 in VGGT, Pi3, DA3 and glue-factory,
    NaN in SuperGlue and LoFTR. If the true length is under `ignore_gt_below`, the angle is 0 (LoFTR).
    `length_floor` is added to both lengths in the normalisation, which moves the angles of vanishing baselines
    towards 90 degrees: 1e-15 in VGGT, Pi3 and DA3, at a cost of 3e-6 degrees elsewhere.
    """
    pred, gt = pred.double(), gt.double()
    size_pred, size_gt = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (pred, gt))
    a, b = pred / (size_pred + length_floor), gt / (size_gt + length_floor)
    # sin^2 = 1 - (a.b)^2 = |a x b|^2 + 1 - |a|^2 |b|^2, where the last two terms cancel if the floor is 0.
    short_a, short_b = (length_floor * (2 * s + length_floor) / (s + length_floor) ** 2 for s in (size_pred, size_gt))
    missing = (short_a + short_b - short_a * short_b).squeeze(-1)
    sine = (torch.linalg.cross(a, b, dim=-1).square().sum(-1) + missing).sqrt()
    angle = torch.rad2deg(torch.atan2(sine, (a * b).sum(-1).abs()))
    angle = angle.masked_fill(((size_pred == 0) | (size_gt == 0)).squeeze(-1), zero_baseline_deg)
    return angle.masked_fill(size_gt.squeeze(-1) < ignore_gt_below, 0.0)


def relative_pose_errors(
    pred_cam_from_world: Tensor, gt_cam_from_world: Tensor, convention: str = "vggt"
) -> PairErrors:
    """Errors of all pairs i < j of cameras [S, 4, 4]; `convention` is a name in POSE_CONVENTIONS.

    If a predicted pose is not finite, the rotation error is NaN and the translation error infinite: a miss at every
    threshold. The error of a zero baseline is 90 degrees, that of a perfect prediction about 3e-6 degrees. Raises
    UsageError if the shapes differ.
    """
    if pred_cam_from_world.shape != gt_cam_from_world.shape:
        got, expected = tuple(pred_cam_from_world.shape), tuple(gt_cam_from_world.shape)
        raise UsageError(f"predicted cameras have shape {got}, true cameras {expected}: give one of each per view")
    pairs = POSE_CONVENTIONS.get(convention)
    pred, gt = pairs(pred_cam_from_world.double()), pairs(gt_cam_from_world.double())
    rotation = rotation_error_deg(pred[:, :3, :3], gt[:, :3, :3])
    translation = translation_error_deg(pred[:, :3, 3], gt[:, :3, 3], length_floor=1e-15)
    translation = torch.where(translation.isfinite(), translation, torch.full_like(translation, math.inf))
    return PairErrors(rotation.cpu().numpy(), translation.cpu().numpy())


def recall(errors_deg: np.ndarray, threshold_deg: float) -> float:
    """Share of errors strictly under the threshold (RRA, RTA); NaN is a miss; no errors give NaN."""
    errors = np.asarray(errors_deg, dtype=np.float64)
    return float(np.mean(errors < threshold_deg)) if errors.size else math.nan


def auc_histogram(errors_deg: np.ndarray, threshold_deg: int) -> float:
    """Area under the recall curve with bins of one degree, the last bin closed (VGGT, Pi3, DA3).

    It is the mean over k = 1 .. threshold of the share of errors under k. It is optimistic: an error of 0.2 degrees
    is as good as none. NaN and inf are misses; no errors give NaN.
    """
    errors = np.asarray(errors_deg, dtype=np.float64)
    if errors.size == 0:
        return math.nan
    counts, _ = np.histogram(errors[np.isfinite(errors)], bins=np.arange(threshold_deg + 1))
    return float(np.cumsum(counts / errors.size).mean())


def auc_histogram_wide(errors_deg: np.ndarray, threshold_deg: int) -> float:
    """The torch variant in Pi3: mean of the cumulative shares over threshold + 1 equal bins of [0, threshold]."""
    errors = np.asarray(errors_deg, dtype=np.float64)
    if errors.size == 0:
        return math.nan
    counts, _ = np.histogram(errors[np.isfinite(errors)], bins=threshold_deg + 1, range=(0, threshold_deg))
    return float(np.cumsum(counts / errors.size).mean())


def auc_trapezoid(errors_deg: np.ndarray, threshold_deg: float) -> float:
    """Exact area under the recall curve, interpolated linearly between errors (SuperGlue, LoFTR, glue-factory).

    An error of exactly the threshold is a miss, and so are NaN and inf; no errors give 0.
    """
    errors = np.sort(np.nan_to_num(np.asarray(errors_deg, dtype=np.float64), nan=math.inf, posinf=math.inf))
    if errors.size == 0:
        return 0.0
    last = int(np.searchsorted(errors, threshold_deg))
    share = np.arange(last + 1) / errors.size
    curve = np.concatenate([[0.0], errors[:last], [threshold_deg]])
    return float(np.trapezoid(np.append(share, share[-1]), curve) / threshold_deg)


def pose_pair_errors(
    pred_cam_from_world: Tensor, gt_cam_from_world: Tensor, small_baseline: float | None = None
) -> np.ndarray:
    """Pose error [P] in degrees of all pairs i < j of one scene (VGGT): the larger of both angles.

    Pairs whose true centres are nearer than `small_baseline` (a length in true units, for example 5 % of the
    mean depth) have no reliable direction and are scored by rotation only. Concatenate the arrays of several
    scenes to pool their errors.
    """
    errors = relative_pose_errors(pred_cam_from_world, gt_cam_from_world)
    if small_baseline is None:
        return errors.pose_deg
    centers = camera_centers(gt_cam_from_world.double())
    i, j = pair_indices(centers.shape[0]).T
    baseline = torch.linalg.vector_norm(centers[i] - centers[j], dim=-1).cpu().numpy()
    return np.where(baseline < small_baseline, errors.rotation_deg, errors.pose_deg)


def pose_auc(
    pred_cam_from_world: Tensor,
    gt_cam_from_world: Tensor,
    thresholds_deg: Iterable[int] = DEFAULT_THRESHOLDS_DEG,
    small_baseline: float | None = None,
) -> dict[int, float]:
    """AUC of one scene at each threshold, VGGT convention; see `pose_pair_errors`. One view gives NaN."""
    errors = pose_pair_errors(pred_cam_from_world, gt_cam_from_world, small_baseline)
    return {t: auc_histogram(errors, t) for t in thresholds_deg}


def lite3r_pose_errors(
    pred_cam_from_world: Tensor, gt_cam_from_world: Tensor, with_scale: bool = True
) -> tuple[float, float]:
    """Mean rotation error in degrees and mean distance between translation columns, as in Lite3R.

    The means include the first view. The predicted columns are scaled by one least-squares factor, without centring;
    it may be negative. Make the cameras relative to the first view before, as Lite3R's scripts do.
    """
    pred, gt = pred_cam_from_world.double(), gt_cam_from_world.double()
    t_pred, t_gt = pred[:, :3, 3], gt[:, :3, 3]
    # Without motion the predicted columns are rounding noise; the floor avoids a huge scale.
    scale = (t_pred * t_gt).sum() / (t_pred * t_pred).sum().clamp_min(1e-12) if with_scale else 1.0
    rotation = rotation_error_deg(pred[:, :3, :3], gt[:, :3, :3]).mean()
    return rotation.item(), torch.linalg.vector_norm(scale * t_pred - t_gt, dim=-1).mean().item()
