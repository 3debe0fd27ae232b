"""How the pixels of a view project into other views, as tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.tracing import without_autocast


class Rays(NamedTuple):
    """How pixels of B views at some distance project into N sources each: a pixel at inverse depth w lies at
    direction + w * offset in a source, in homogeneous pixels of the full picture.

    direction [B, N, 3, h, w], for pixel centres of a grid at `step` pixels a cell; offset [B, N, 3].
    """

    direction: Tensor
    offset: Tensor


def rays_into(slopes: Tensor, cam_from_world: Tensor, others: Tensor, intrinsics: Tensor, step: int) -> Rays:
    """Rays of B views for a grid of cells of `step` pixels.

    slopes [B, H, W, 2]: (x / z, y / z) at pixel centres; cam_from_world [B, 4, 4]; others [B, N, 4, 4]: poses of the
    sources; intrinsics [B, N, 3, 3]: pinholes of the sources, in pixels.
    """
    moved = others.double() @ torch.linalg.inv(cam_from_world.double())[:, None]
    projection = (intrinsics.double() @ moved[..., :3, :]).to(slopes)
    grid = F.avg_pool2d(slopes.permute(0, 3, 1, 2), step)
    ray = torch.cat([grid, torch.ones_like(grid[:, :1])], 1)
    with without_autocast(slopes.device.type):  # rays are pixels, too large for bfloat16
        direction = torch.einsum("bnij,bjhw->bnihw", projection[..., :3], ray)
    return Rays(direction, projection[..., 3])


def grids(
    slopes: Tensor, cam_from_world: Tensor, others: Tensor, intrinsics: Tensor, times: int = 1
) -> tuple[Rays, Rays]:
    """`rays_into` for the network's coarse and fine grid, in pictures so many times smaller than the slopes."""
    intrinsics = intrinsics * intrinsics.new_tensor([1 / times, 1 / times, 1.0])[:, None]
    coarse, fine = (rays_into(slopes, cam_from_world, others, intrinsics, times * step) for step in (4, 2))
    return coarse, fine


def pinhole_slopes(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """(x / z, y / z) [B, H, W, 2] at the pixel centres of pinholes [B, 3, 3]."""
    fx, fy, cx, cy = intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]].T[..., None, None]
    x = (torch.arange(width, device=intrinsics.device) + 0.5 - cx) / fx
    y = (torch.arange(height, device=intrinsics.device)[:, None] + 0.5 - cy) / fy
    return torch.stack([x.expand(-1, height, -1), y.expand(-1, -1, width)], -1)


def project(rays: Rays, tried: Tensor, step: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where tried log depths [B, D, h, w] lie in the sources: places for grid_sample [B, N, D, h, w, 2], and whether
    they are in the picture [B, N, D, h, w]. `size` is that of the sources' features, at `step` pixels a cell."""
    near = (-tried).exp()[:, None, None]  # inverse depth
    place = rays.direction[:, :, :, None] + rays.offset[:, :, :, None, None, None] * near
    z = place[:, :, 2].clamp(min=1e-6)
    height, width = size
    x, y = (2 * place[:, :, i] / z / (side * step) - 1 for i, side in ((0, width), (1, height)))
    inside = (place[:, :, 2] > 1e-6) & (x.abs() < 1) & (y.abs() < 1)
    return torch.stack([x, y], -1).clamp(-3, 3), inside
