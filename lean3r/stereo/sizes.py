"""Scenes in two sizes: what is far from the guess is looked for in smaller pictures, details in the larger ones.

The network sees as many pixels around each, whatever the size, and takes as long for each: in small pictures it sees
more of the scene, for less (as coarse-to-fine stereo does, CasMVSNet, arXiv 1912.06378).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.geometry.consistency import EDGE
from lean3r.parallel import by_threads
from lean3r.stereo.posed import Posed

STEP = 1.4  # times smaller sides of pictures for the first look: less than half the pixels show what larger ones do
LEAST = 240  # side of pictures (of a square with their area) that are not looked at in a smaller size
WORTHWHILE = 1.2  # times the side, from which a smaller size saves time
Size = tuple[int, int]


def first_size(height: int, width: int) -> Size:
    """The size (H, W) in which pictures are looked at first."""
    side = math.sqrt(height * width)
    times = min(STEP, side / LEAST)
    return (round(height / times), round(width / times)) if times > WORTHWHILE else (height, width)


def smaller(scene: Posed, size: Size) -> Posed:
    """The scene with pictures of a smaller size, without stored depth; itself if it has that size."""
    height, width = scene.mask.shape[1:]
    if size == (height, width):
        return scene
    images = np.empty((len(scene.images), *size, 3), np.uint8)
    mask = np.empty((len(scene.images), *size), bool)

    def shrink(view: int) -> None:
        picture = torch.from_numpy(np.ascontiguousarray(scene.images[view])).permute(2, 0, 1)[None].float()
        shrunk = F.interpolate(picture, size, mode="bilinear", align_corners=False, antialias=True)
        images[view] = shrunk[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
        inside = F.interpolate(torch.from_numpy(scene.mask[view])[None, None].float(), size, mode="area")
        mask[view] = (inside[0, 0] > 0.99).numpy()

    by_threads(shrink, range(len(images)))
    x, y = width / size[1], height / size[0]
    intrinsics = np.diag([1 / x, 1 / y, 1.0]) @ scene.intrinsics
    optics = scene.optics.resized(x, y)
    return replace(scene, images=images, mask=mask, intrinsics=intrinsics, optics=optics, stored=np.zeros(0))


def smaller_depth(log_depth: Tensor, size: Size) -> Tensor:
    """Log depth [S, H, W] of a smaller size."""
    if size == log_depth.shape[1:]:
        return log_depth
    return F.interpolate(log_depth[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def smaller_points(points: tuple[Tensor, Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """Log depth [S, H, W] of points, and where they are [S, H, W] bool, in a smaller size; of several the nearest."""
    log_depth, has = points
    if size == has.shape[1:]:
        return points
    view, rows, cols = has.nonzero(as_tuple=True)
    # The small pixel that a point's own centre lies in.
    row, col = ((2 * at + 1) * new // (2 * old) for at, new, old in zip((rows, cols), size, has.shape[1:], strict=True))
    at = (view * size[0] + row) * size[1] + col
    nearest = torch.full((len(has) * size[0] * size[1],), torch.inf)
    nearest = nearest.scatter_reduce(0, at, log_depth[view, rows, cols], "amin").view(len(has), *size)
    return torch.where(nearest.isfinite(), nearest, 0.0), nearest.isfinite()


def larger(log_depth: Tensor, size: Size) -> Tensor:
    """Log depth [H, W] of a larger size: linear in inverse depth inside surfaces, the nearest pixel's at edges, so that
    none lies between two surfaces."""
    if size == log_depth.shape:
        return log_depth
    high, low = (F.max_pool2d(sign * log_depth[None], 2, 1)[0] for sign in (1, -1))
    rows, cols = (
        ((torch.arange(new) + 0.5) * (old / new) - 0.5).floor().long().clamp(0, old - 2)
        for new, old in zip(size, log_depth.shape, strict=True)
    )
    is_surface = (high + low)[rows[:, None], cols] < math.log(EDGE)
    inverse = F.interpolate((-log_depth)[None, None].exp(), size, mode="bilinear", align_corners=False)[0, 0]
    return torch.where(
        is_surface, -inverse.log(), F.interpolate(log_depth[None, None], size, mode="nearest-exact")[0, 0]
    )
