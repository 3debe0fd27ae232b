"""What stereo measures and what it returns: pictures with cameras, and depth with its expected error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.geometry.lens import Optics


@dataclass(frozen=True)
class Posed:
    """Pictures with cameras: images [S, H, W, 3] uint8, mask [S, H, W] bool, cam_from_world [S, 4, 4], intrinsics
    [S, 3, 3] and optics; `sources`: for each view the others that it is compared with, the best first; `stored`
    [S, H, W]: depth of views that are known and only confirm others, 0 elsewhere (empty: there are none)."""

    images: np.ndarray
    mask: np.ndarray
    cam_from_world: np.ndarray
    intrinsics: np.ndarray
    optics: Optics
    sources: Sequence[np.ndarray]
    has_lenses: bool = False
    stored: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Depths:
    """Log depth [S, H, W] and the log of its expected error [S, H, W]; `measured` [S]: the views that were measured;
    `sure` [S, H, W] bool: pixels that other views confirm (empty if the measure does not say); `alone` [S, H, W]: log
    depth as every view measured it without the others' (empty: log_depth is)."""

    log_depth: Tensor
    log_b: Tensor
    measured: np.ndarray
    interrupted: bool = False
    sure: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    alone: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def independent(self) -> Tensor:
        """Log depth [S, H, W] of views that know nothing of each other: only that confirms, or says that cameras are
        wrong."""
        return self.alone if len(self.alone) else self.log_depth


def grey_of(scene: Posed, view: int) -> Tensor:
    """A picture [H, W] in 0..1; padding is black, whatever it holds."""
    grey = torch.from_numpy(np.ascontiguousarray(scene.images[view])).float().mean(-1) / 255
    return torch.where(torch.from_numpy(scene.mask[view]), grey, 0.0)


def nearest_inside(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Where each pixel of a padded picture finds its own: rows [H, 1] and columns [1, W] that continue the border of
    what is inside mask [H, W], of which some is."""
    inside = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return np.ix_(*(np.arange(size).clip(at[0], at[-1]) for size, at in zip(mask.shape, inside, strict=True)))


def undistorted(scene: Posed, view: int, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A view's picture and mask [1, C, H, W] as the pinhole of its intrinsics sees them; mask is 0 outside the view."""
    if not scene.has_lenses:
        return picture, mask
    places = _undistorting(scene.optics, view, scene.intrinsics[view], scene.images.shape[1:3])
    return F.grid_sample(picture, places, "bilinear", "border", False), F.grid_sample(
        mask, places, "bilinear", "zeros", False
    )


def _undistorting(optics: Optics, view: int, intrinsics: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Where the pixels of a pinhole [3, 3] lie in a view's distorted picture: places for grid_sample [1, H, W, 2]."""
    height, width = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    fx, fy, cx, cy = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    cam = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1).reshape(-1, 3)
    xy = optics.project(view, cam).reshape(height, width, 2)
    places = 2 * xy / [width, height] - 1
    return torch.from_numpy(np.nan_to_num(places, nan=9.0)).float()[None]


def slopes_of(
    optics: Optics, view: int, size: tuple[int, ...], pad: tuple[int, int, int, int] = (0, 0, 0, 0)
) -> Tensor:
    """(x / z, y / z) [H, W, 2] at the pixel centres of a view, padded like its picture; along the axis where the lens
    sees nothing."""
    slopes = np.nan_to_num(optics.slopes(view, *size))
    return F.pad(torch.from_numpy(slopes).float().permute(2, 0, 1)[None], pad, mode="replicate")[0].permute(1, 2, 0)
