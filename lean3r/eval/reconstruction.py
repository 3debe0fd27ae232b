"""Errors of a reconstruction relative to the true scene."""

from __future__ import annotations

import numpy as np
import torch

from lean3r.data.base import SceneBatch
from lean3r.eval.depth_errors import abs_rel
from lean3r.eval.pose_errors import pose_auc, relative_pose_errors
from lean3r.eval.synthetic import SMALL_BASELINE
from lean3r.types import Reconstruction


def compare(scene: Reconstruction, truth: SceneBatch) -> dict[str, str]:
    """Errors of a reconstruction from all views of one true scene, as text by name.

    Cameras are compared pair by pair (VGGT convention), depth after one scale for the scene.
    """
    cameras, true_cameras = torch.from_numpy(scene.cam_from_world), truth.cam_from_world[0].double()
    true_depth = network_depth(scene, truth.depth[0].numpy())
    known = torch.from_numpy(true_depth > 0)
    small = SMALL_BASELINE * float(true_depth[true_depth > 0].mean())
    errors = relative_pose_errors(cameras, true_cameras)
    auc = pose_auc(cameras, true_cameras, (5, 15, 30), small)
    error = abs_rel(torch.from_numpy(scene.depth), torch.from_numpy(true_depth), known)
    focal = scene.original_intrinsics[:, 0, 0] / truth.intrinsics[0, :, 0, 0].numpy() - 1
    return {
        "rotation": f"{np.median(errors.rotation_deg):.1f} degrees off (median over {len(errors.rotation_deg)} pairs)",
        "direction of motion": f"{np.median(errors.translation_deg):.1f} degrees off",
        "pose AUC at 5, 15, 30": ", ".join(f"{100 * auc[t]:.0f}" for t in (5, 15, 30)) + " of 100",
        "depth": f"{100 * error:.1f} % off (AbsRel after one scale)",
        "focal length": f"{100 * np.median(np.abs(focal)):.1f} % off",
    }


def network_depth(scene: Reconstruction, depth: np.ndarray) -> np.ndarray:
    """True depth [S, h, w] of the original pictures at the network's pixels [S, H, W]; 0 on padding."""
    height, width = scene.depth.shape[1:]
    result = np.zeros_like(scene.depth)
    for view, source in enumerate(scene.sources):
        sx, sy, ox, oy = source.original_from_network
        rows = np.floor((np.arange(height) + 0.5) * sy + oy).astype(int).clip(0, source.height - 1)
        cols = np.floor((np.arange(width) + 0.5) * sx + ox).astype(int).clip(0, source.width - 1)
        result[view] = depth[view][np.ix_(rows, cols)] * scene.mask[view]
    return result
