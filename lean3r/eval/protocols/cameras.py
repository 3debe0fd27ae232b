"""Measures of cameras: relative poses, two views, trajectories, focal lengths; degrees and per cent."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from lean3r.data.sets.scenes import RawView
from lean3r.errors import InputError
from lean3r.eval.pose_errors import pair_indices, relative_pose_errors
from lean3r.eval.predicted.base import Predicted
from lean3r.eval.protocols.base import AbsentPart, Measure, Score, curve_of
from lean3r.eval.protocols.items import Item
from lean3r.eval.protocols.pooling import curve_figures
from lean3r.eval.trajectory import trajectory_errors
from lean3r.geometry.pose import camera_centers

CONVENTIONS = {"": "vggt", "_pi3": "pi3", "_da3": "da3"}
SMALL_BASELINE = 0.05


def poses_of(predicted: Predicted, views: tuple[RawView, ...]) -> tuple[Tensor, Tensor]:
    """Predicted and true cam_from_world [S, 4, 4] float64; InputError with fewer than two finite predictions."""
    poses = predicted.cam_from_world
    if poses is None:
        raise AbsentPart("no cameras, which this benchmark scores")
    finite = int(np.isfinite(poses).all((1, 2)).sum())
    if finite < 2:
        raise InputError(f"{predicted.path} has {finite} finite poses of {len(poses)}; a score needs at least two")
    truth = np.stack([view.cam_from_world for view in views])
    return torch.from_numpy(np.asarray(poses, np.float64)), torch.from_numpy(truth)


def _relative_poses(predicted: Predicted, item: Item, views: tuple[RawView, ...], small: bool) -> Score:
    ours, truth = poses_of(predicted, views)
    curves = {}
    for suffix, convention in CONVENTIONS.items():
        errors = relative_pose_errors(ours, truth, convention)
        pose = errors.pose_deg
        if small:
            near = _near_pairs(truth, views)
            pose, curves[f"allpairs_deg{suffix}"] = np.where(near, errors.rotation_deg, pose), curve_of(pose)
        curves[f"pose_deg{suffix}"] = curve_of(pose)
        if suffix == "":
            curves |= {
                "rotation_deg": curve_of(errors.rotation_deg),
                "translation_deg": curve_of(errors.translation_deg),
            }
            medians = {
                "rotation_deg": float(np.median(np.nan_to_num(errors.rotation_deg, nan=180.0))),
                "translation_deg": float(np.median(errors.translation_deg.clip(max=90.0))),
            }
    return Score(curve_figures(curves) | medians, curves)


def relative_poses(*, small_baselines: bool = False) -> Measure:
    """All pairs of views in the conventions of VGGT (no suffix), Pi3 and Depth Anything 3's benchmark. With
    `small_baselines`, pairs nearer than 5 % of the mean depth are scored by rotation only."""
    return partial(_relative_poses, small=small_baselines)


def _near_pairs(truth: Tensor, views: tuple[RawView, ...]) -> np.ndarray:
    known = np.concatenate([view.depth[np.isfinite(view.depth) & (view.depth > 0)] for view in views])
    i, j = pair_indices(len(views)).T
    centers = camera_centers(truth).numpy()
    mean = float(known.mean()) if known.size else 0.0
    return np.linalg.norm(centers[i] - centers[j], axis=-1) < SMALL_BASELINE * mean


def two_views(predicted: Predicted, item: Item, views: tuple[RawView, ...]) -> Score:
    """Pose error of a pair, the larger of both angles; `auc5_exact` and so on are areas by trapezoids (SuperGlue)."""
    errors = relative_pose_errors(*poses_of(predicted, views))
    figures = {"rotation_deg": float(errors.rotation_deg[0]), "translation_deg": float(errors.translation_deg[0])}
    return Score(figures, errors={"pose_deg": [float(np.nan_to_num(errors.pose_deg[0], nan=180.0, posinf=180.0))]})


def trajectory(predicted: Predicted, item: Item, views: tuple[RawView, ...]) -> Score:
    """ATE and RPE (RMSE) after a similarity, as evo computes them; `ate_origin` is FastVGGT's. Frames without a
    finite pose are left out, and counted as `lost_frames`."""
    ours, truth = poses_of(predicted, views)
    finite = ours.isfinite().all(-1).all(-1)
    figures = {"lost_frames": 100 * float((~finite).double().mean())}
    errors = trajectory_errors(ours[finite], truth[finite])
    figures |= {
        "ate": _rmse(errors.ate),
        "rpe_trans": _rmse(errors.rpe_trans),
        "rpe_rot_deg": _rmse(errors.rpe_rot_deg),
        "ate_origin": _rmse(trajectory_errors(ours[finite], truth[finite], "sim3_origin").ate),
    }
    return Score(figures)


def _rmse(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2))) if errors.size else float("nan")


def focal_length(predicted: Predicted, item: Item, views: tuple[RawView, ...]) -> Score:
    """`focal`: median error of the horizontal focal length in per cent, of the pictures that have one."""
    if predicted.intrinsics is None:
        raise AbsentPart("no intrinsics, whose focal length this benchmark scores")
    truth = np.array([view.intrinsics[0, 0] for view in views])
    error = np.abs(predicted.intrinsics[:, 0, 0] / truth - 1)
    if not (is_there := np.isfinite(error)).any():
        raise AbsentPart("no intrinsics of any of its pictures, whose focal length this benchmark scores")
    return Score({"focal": 100 * float(np.median(error[is_there]))})
