"""How far the pixels of one camera's picture move when the scene is seen by another camera."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.geometry.pose import invert_pose, transform_points

NEAR = 1e-6  # least depth that counts, in world units


def mean_motion_px(
    depth: Tensor,
    intrinsics: Tensor,
    cam_from_world: Tensor,
    other_intrinsics: Tensor,
    other_from_world: Tensor,
    stride: int = 8,
) -> float:
    """Mean distance in pixels between where a camera and another one see the points of its depth [H, W].

    Every `stride`-th pixel counts if it lies in front of both. 0 if none does. Pixels are taken at integer coordinates,
    as LingBot-Map's authors do.
    """
    height, width = depth.shape
    z = depth[::stride, ::stride]
    y = torch.arange(0, height, stride, dtype=z.dtype, device=z.device)
    x = torch.arange(0, width, stride, dtype=z.dtype, device=z.device)
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    here = torch.cat([(pixels - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]] * z[..., None], z[..., None]], -1)
    there = transform_points(other_from_world @ invert_pose(cam_from_world), here)
    moved = there[..., :2] / there[..., 2:].clamp_min(NEAR) * other_intrinsics[[0, 1], [0, 1]] + other_intrinsics[:2, 2]
    distance = torch.linalg.vector_norm(moved - pixels, dim=-1)
    counts = (z > NEAR) & (there[..., 2] > NEAR) & distance.isfinite()
    return float(distance[counts].mean()) if bool(counts.any()) else 0.0
