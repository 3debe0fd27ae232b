"""From the world of a refined model to the network's, or to that of known cameras."""

from __future__ import annotations

import numpy as np
import torch

from lean3r.geometry.align import Similarity, align_cameras, umeyama_robust
from lean3r.geometry.pose import camera_centers
from lean3r.geometry.rotation import nearest_rotation
from lean3r.types import Reconstruction


def into_known(poses: np.ndarray, known: np.ndarray) -> Similarity | None:
    """The similarity from cameras [N, 4, 4] to known ones; None where these leave the scale open."""
    source, target = torch.from_numpy(poses), torch.from_numpy(known)
    spread = camera_centers(target) - camera_centers(target).mean(0)
    if len(known) < 2 or float(spread.norm(dim=-1).max()) <= 1e-9 * max(1.0, float(camera_centers(target).abs().max())):
        return None
    sizes = torch.linalg.svdvals(spread)
    if len(known) > 3 and float(sizes[1]) > 0.05 * float(sizes[0]):
        return umeyama_robust(camera_centers(source), camera_centers(target))
    return align_cameras(source, target)[1]


def into_predicted(poses: np.ndarray, predicted: np.ndarray, scale: float) -> Similarity:
    """The similarity of a given scale from cameras [N, 4, 4] to predicted ones, by medians: rough ones may be among
    them."""
    source, target = torch.from_numpy(poses), torch.from_numpy(predicted)
    turns = target[:, :3, :3].mT @ source[:, :3, :3]
    rotation = nearest_rotation(turns.mean(0))
    for _ in range(20):  # towards the least sum of angles
        away = (turns - rotation).flatten(1).norm(dim=-1).clamp_min(1e-6)
        rotation = nearest_rotation((turns / away[:, None, None]).mean(0))
    size = torch.tensor(scale, dtype=source.dtype)
    shifts = camera_centers(target) - size * (camera_centers(source) @ rotation.mT)
    return Similarity(size, rotation, shifts.median(0).values)


def depth_scale(reconstruction: Reconstruction, poses: np.ndarray, xyz: np.ndarray, point, view, xy) -> float | None:
    """Predicted depth over the depth of points [P, 3] in cameras `poses` [S, 4, 4], the median over measurements
    (`xy` in pixels of the originals); None where there is no depth at any."""
    ratios = [np.zeros(0)]
    height, width = reconstruction.depth.shape[1:]
    for index, source in enumerate(reconstruction.sources):
        mine = np.flatnonzero(view == index)
        scale, offset = np.reshape(source.original_from_network, (2, 2))
        col, row = np.floor((xy[mine] - offset) / scale).astype(int).T
        inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)
        mine, row, col = mine[inside], row[inside], col[inside]
        z = xyz[point[mine]] @ poses[index, 2, :3] + poses[index, 2, 3]
        depth = reconstruction.depth[index, row, col]
        known = (depth > 0) & (z > 0)
        ratios.append(depth[known] / z[known])
    every = np.concatenate(ratios)
    return float(np.median(every)) if len(every) else None
