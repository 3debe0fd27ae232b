"""From the world frame of a refined model to the network's, or to that of known cameras."""

from __future__ import annotations

import numpy as np
import torch

from lean3r.geometry.align import Similarity, align_cameras, umeyama_robust
from lean3r.geometry.pose import camera_centers
from lean3r.geometry.rotation import nearest_rotation
from lean3r.refine.job import Answer
from lean3r.types import Reconstruction


def into_known(poses: np.ndarray, known: np.ndarray) -> Similarity | None:
    """The similarity from cameras [N, 4, 4] to known ones; None if these do not determine the scale."""
    if not are_apart(known):
        return None
    source, target = torch.from_numpy(poses), torch.from_numpy(known)
    spread = camera_centers(target) - camera_centers(target).mean(0)
    sizes = torch.linalg.svdvals(spread)
    if len(known) > 3 and float(sizes[1]) > 0.05 * float(sizes[0]):
        return umeyama_robust(camera_centers(source), camera_centers(target))
    return align_cameras(source, target)[1]


def are_apart(poses: np.ndarray) -> bool:
    """Whether cameras [N, 4, 4] are in at least two places, which determines scale."""
    if len(poses) < 2:
        return False
    centres = camera_centers(torch.from_numpy(poses))
    away = (centres - centres.mean(0)).norm(dim=-1).max()
    return float(away) > 1e-9 * max(1.0, float(centres.abs().max()))


def into_predicted(poses: np.ndarray, predicted: np.ndarray, scale: float) -> Similarity:
    """The similarity of a given scale from cameras [N, 4, 4] to predicted ones, by medians, so robust to
    outliers."""
    source, target = torch.from_numpy(poses), torch.from_numpy(predicted)
    turns = target[:, :3, :3].mT @ source[:, :3, :3]
    rotation = nearest_rotation(turns.mean(0))
    for _ in range(20):  # minimises the sum of angles
        away = (turns - rotation).flatten(1).norm(dim=-1).clamp_min(1e-6)
        rotation = nearest_rotation((turns / away[:, None, None]).mean(0))
    size = torch.tensor(scale, dtype=source.dtype)
    shifts = camera_centers(target) - size * (camera_centers(source) @ rotation.mT)
    return Similarity(size, rotation, shifts.median(0).values)


def origin_view(poses: np.ndarray) -> int | None:
    """The first view of poses [S, 4, 4] whose camera is the world frame; None if there is none."""
    at = np.flatnonzero(np.isclose(poses, np.eye(4), atol=1e-5).all(axis=(1, 2)))
    return int(at[0]) if len(at) else None


def depth_ratios(reconstruction: Reconstruction, answer: Answer, xy: np.ndarray) -> np.ndarray:
    """Predicted depth over the depth of the point, for each measurement [O] of an answer (`xy` in pixels of the
    originals); NaN where there is none."""
    height, width = reconstruction.depth.shape[1:]
    maps = np.array([source.original_from_network for source in reconstruction.sources]).reshape(-1, 2, 2)
    col, row = np.floor((xy - maps[answer.view, 1]) / maps[answer.view, 0]).astype(int).T
    inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)
    depth = np.where(inside, reconstruction.depth[answer.view, row.clip(0, height - 1), col.clip(0, width - 1)], 0)
    third = answer.cam_from_world[answer.view, 2]
    z = (answer.xyz[answer.point] * third[:, :3]).sum(1) + third[:, 3]
    known = (depth > 0) & (z > 0)
    return np.where(known, depth / np.where(known, z, 1), np.nan)


def depth_scale(reconstruction: Reconstruction, answer: Answer, xy: np.ndarray) -> float | None:
    """The median of `depth_ratios`; None where there are none."""
    ratios = depth_ratios(reconstruction, answer, xy)
    return float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else None
