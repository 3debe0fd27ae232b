"""Pinhole cameras: intrinsics [..., 3, 3] in pixels without skew, OpenCV axes, z-depth.

The centre of the top-left pixel is at (0.5, 0.5), so an image of width W spans x in [0, W].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lean3r.geometry.pose import invert_pose, transform_points


def size_of(width: int, height: int, like: Tensor) -> Tensor:
    """(width, height) [2] as a tensor of the kind of `like`; the sizes may be symbols of a traced model."""
    return torch.stack([torch.full((), side, dtype=like.dtype, device=like.device) for side in (width, height)])


def intrinsics_from_focal(focal_px: Tensor, height: int, width: int) -> Tensor:
    """Intrinsics [..., 3, 3] from (focal_x, focal_y) [..., 2] in pixels, principal point in the middle."""
    k = torch.zeros(*focal_px.shape[:-1], 3, 3, dtype=focal_px.dtype, device=focal_px.device)
    middle = size_of(width, height, k) / 2
    for axis in (0, 1):  # a list of both would have to be copied to a GPU, and waited for
        k[..., axis, axis] = focal_px[..., axis]
    k[..., :2, 2] = middle
    k[..., 2, 2].fill_(1)
    return k


def intrinsics_from_fov(fov_rad: Tensor, height: int, width: int) -> Tensor:
    """Intrinsics [..., 3, 3] from full angles of view (horizontal, vertical) [..., 2] in radians."""
    size = size_of(width, height, fov_rad)
    return intrinsics_from_focal(size / (2 * torch.tan(fov_rad / 2)), height, width)


def fov_from_intrinsics(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Full angles of view (horizontal, vertical) [..., 2] in radians, for any principal point."""
    size = size_of(width, height, intrinsics)
    focal, principal = intrinsics[..., [0, 1], [0, 1]], intrinsics[..., :2, 2]
    return torch.atan2(principal, focal) + torch.atan2(size - principal, focal)


def transform_intrinsics(
    intrinsics: Tensor, scale: Tensor | Sequence[float], offset: Tensor | Sequence[float]
) -> Tensor:
    """Intrinsics [..., 3, 3] after every pixel (x, y) moves to scale * (x, y) + offset (each [..., 2])."""
    scale = torch.as_tensor(scale, dtype=intrinsics.dtype, device=intrinsics.device)
    offset = torch.as_tensor(offset, dtype=intrinsics.dtype, device=intrinsics.device)
    top = intrinsics[..., :2, :] * scale[..., None] + offset[..., None] * intrinsics[..., 2:, :]
    return torch.cat([top, intrinsics[..., 2:, :].expand(*top.shape[:-2], 1, 3)], -2)


def intrinsics_from_slopes(slopes: Tensor, weight: Tensor | None = None) -> Tensor:
    """Intrinsics [..., 3, 3] whose rays come closest, in least squares, to slopes (x / z, y / z) [..., H, W, 2] of
    all pixels, weighted by weight [..., H, W]. Focal lengths stay positive, at most 100 picture sides."""
    height, width = slopes.shape[-3:-1]
    pixels = pixel_grid(height, width, slopes.dtype, slopes.device)
    share = torch.ones_like(slopes[..., 0]) if weight is None else weight.to(slopes.dtype)
    share = (share / share.sum((-2, -1), keepdim=True).clamp_min(1e-12))[..., None]
    mean_pixel, mean_slope = (share * pixels).sum((-3, -2)), (share * slopes).sum((-3, -2))
    offset = pixels - mean_pixel[..., None, None, :]
    step = (share * offset * slopes).sum((-3, -2)) / (share * offset.square()).sum((-3, -2)).clamp_min(1e-12)
    size = size_of(width, height, slopes)
    focal = 1 / torch.maximum(step, 0.01 / size)
    k = torch.zeros(*focal.shape[:-1], 3, 3, dtype=focal.dtype, device=focal.device)
    for axis in (0, 1):
        k[..., axis, axis] = focal[..., axis]
    k[..., :2, 2] = mean_pixel - focal * mean_slope
    k[..., 2, 2].fill_(1)
    return k


def pixel_grid(
    height: int, width: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Pixel centres (x, y) [H, W, 2], from (0.5, 0.5) to (W - 0.5, H - 0.5)."""
    y = torch.arange(height, dtype=dtype, device=device) + 0.5
    x = torch.arange(width, dtype=dtype, device=device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def ray_directions(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Directions [..., H, W, 3] with z = 1 in the camera frame through all pixel centres."""
    grid = pixel_grid(height, width, intrinsics.dtype, intrinsics.device)
    focal, principal = intrinsics[..., [0, 1], [0, 1]], intrinsics[..., :2, 2]
    xy = (grid - principal[..., None, None, :]) / focal[..., None, None, :]
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)


def project(points_cam: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels (x, y) [*lead, ..., 2] of camera points [*lead, ..., 3] under intrinsics [*lead, 3, 3].

    Points with z <= 0 are behind the camera: their pixels are finite but meaningless; mask them by z.
    """
    extra = points_cam.dim() - 1 - (intrinsics.dim() - 2)
    k = intrinsics.reshape(*intrinsics.shape[:-2], *[1] * extra, 3, 3)
    z = points_cam[..., 2:]
    z = torch.where(z.abs() < 1e-12, torch.full_like(z, 1e-12), z)
    return points_cam[..., :2] / z * k[..., [0, 1], [0, 1]] + k[..., :2, 2]


def unproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Camera points [..., H, W, 3] of z-depth [..., H, W] under intrinsics [..., 3, 3]."""
    return ray_directions(intrinsics, depth.shape[-2], depth.shape[-1]) * depth[..., None]


def world_points(depth: Tensor, intrinsics: Tensor, cam_from_world: Tensor) -> Tensor:
    """World points [..., H, W, 3] of z-depth [..., H, W], intrinsics [..., 3, 3], cameras [..., 4, 4]."""
    return transform_points(invert_pose(cam_from_world), unproject(depth, intrinsics))
