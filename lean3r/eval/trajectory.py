"""Trajectory errors: absolute (ATE) and relative (RPE) after alignment, in the conventions of evo.

Cameras are cam_from_world [N, 4, 4] in time order. Lengths are in units of the true trajectory.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import InputError
from lean3r.geometry.align import Similarity, umeyama
from lean3r.geometry.pose import camera_centers, invert_pose
from lean3r.geometry.rotation import rotation_angle

Alignment = Literal["sim3", "se3", "none", "sim3_origin"]


class TrajectoryErrors(NamedTuple):
    """Errors of one trajectory: ate [N] and rpe_trans [N - 1] lengths, rotation_deg [N], rpe_rot_deg [N - 1].

    `similarity` maps the predicted world to the true world.
    """

    ate: np.ndarray
    rotation_deg: np.ndarray
    rpe_trans: np.ndarray
    rpe_rot_deg: np.ndarray
    similarity: Similarity


def associate(times_pred: np.ndarray, times_gt: np.ndarray, max_gap_s: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Indices (into pred, into gt) of frames that match within `max_gap_s`: each frame of the shorter list with
    the nearest frame of the other list, of equally near ones the first. Neither list need be sorted."""
    times_pred, times_gt = np.asarray(times_pred), np.asarray(times_gt)
    swap = len(times_pred) > len(times_gt)
    short, long = (times_gt, times_pred) if swap else (times_pred, times_gt)
    values, places = np.unique(long, return_index=True)
    after = np.searchsorted(values, short).clip(max=len(values) - 1)
    before = (after - 1).clip(min=0)
    gap_before, gap_after = np.abs(values[before] - short), np.abs(values[after] - short)
    is_before = (gap_before < gap_after) | ((gap_before == gap_after) & (places[before] < places[after]))
    nearest = places[np.where(is_before, before, after)]
    first = np.flatnonzero(np.minimum(gap_before, gap_after) <= max_gap_s)
    return (nearest[first], first) if swap else (first, nearest[first])


def fit_trajectory(pred_cam_from_world: Tensor, gt_cam_from_world: Tensor, with_scale: bool = True) -> Similarity:
    """Similarity from predicted to true camera centres (Umeyama), with the checks of evo.

    Raises InputError if a centre is not finite or the centres do not determine it: fewer than two singular values of
    their covariance are above 2.2e-16 (one or two cameras, a straight line, no motion, or a unit that is far too
    large).
    """
    pred, gt = camera_centers(pred_cam_from_world.double()), camera_centers(gt_cam_from_world.double())
    if not (pred.isfinite().all() and gt.isfinite().all()):
        raise InputError("a camera of the trajectory is not finite: remove that frame from both trajectories")
    covariance = (gt - gt.mean(0)).T @ (pred - pred.mean(0)) / pred.shape[0]
    rank = int((torch.linalg.svdvals(covariance) > torch.finfo(torch.float64).eps).sum())
    if rank < 2:
        raise InputError(
            f"{pred.shape[0]} camera centres have a covariance of rank {rank}; an alignment needs 2. They lie "
            "on a line or at one point (or their unit is so large that they seem to); score them by pairs instead"
        )
    return umeyama(pred, gt, with_scale=with_scale)


def trajectory_errors(
    pred_cam_from_world: Tensor, gt_cam_from_world: Tensor, alignment: Alignment = "sim3"
) -> TrajectoryErrors:
    """Errors of N matched cameras after one alignment of the whole trajectory.

    "sim3" is the usual choice, "se3" preserves the predicted scale, "none" fits nothing; "sim3_origin" (FastVGGT) is
    "sim3" and then moves the whole estimate so that its first pose is the true one. RPE is over consecutive frames.
    """
    pred, gt = pred_cam_from_world.double().cpu(), gt_cam_from_world.double().cpu()
    one, zero = torch.ones((), dtype=pred.dtype), torch.zeros(3, dtype=pred.dtype)
    fit = Similarity(one, torch.eye(3, dtype=pred.dtype), zero)
    if alignment != "none":
        fit = fit_trajectory(pred, gt, with_scale=alignment != "se3")
    elif not (pred.isfinite().all() and gt.isfinite().all()):
        raise InputError("a camera of the trajectory is not finite: remove that frame from both trajectories")
    moved = fit.apply_to_poses(pred)
    if alignment == "sim3_origin":
        moved = moved @ (invert_pose(moved[:1]) @ gt[:1])
    distance = torch.linalg.vector_norm(camera_centers(moved) - camera_centers(gt), dim=-1)
    turn = rotation_angle(gt[:, :3, :3] @ moved[:, :3, :3].mT)
    step_gt = gt[:-1] @ invert_pose(gt[1:])
    step_pred = moved[:-1] @ invert_pose(moved[1:])
    step_error = invert_pose(step_gt) @ step_pred
    return TrajectoryErrors(
        distance.numpy(),
        torch.rad2deg(turn).numpy(),
        torch.linalg.vector_norm(step_error[:, :3, 3], dim=-1).numpy(),
        torch.rad2deg(rotation_angle(step_error[:, :3, :3])).numpy(),
        fit,
    )


def summary(errors: np.ndarray) -> dict[str, float]:
    """rmse, mean, median, std (of the population), min, max and sse of an error array."""
    return {
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "mean": float(np.mean(errors)),
        "median": float(np.median(errors)),
        "std": float(np.std(errors)),
        "min": float(np.min(errors)),
        "max": float(np.max(errors)),
        "sse": float(np.sum(errors**2)),
    }
