"""What other views measured at the pixels of a view, joined with its own depth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lean3r.geometry.consistency import Scene, sample_depth
from lean3r.parallel import by_threads
from lean3r.stereo.posed import Depths, Posed

SAME = 3.0  # times the expected errors of two views together: depth that differs more is of another surface
APART = 0.05  # log depth from which, after the last look, others tell of another surface, however unsure a view is
PIXELS = 30_000  # joined at once: what is made of them stays in the caches


def surfaces(scene: Posed, found: Depths) -> Scene:
    """The measured depth of all views, 0 where there is none."""
    is_measured = scene.mask & found.measured[:, None, None]
    depth = np.where(is_measured, found.log_depth.exp().numpy(), 0).astype(np.float32)
    return Scene(depth, scene.cam_from_world, scene.optics)


def agree(scene: Posed, found: Depths) -> None:
    """Give every measured view the mean of all depth at its places, in `found` itself: the last step."""
    measured = surfaces(scene, found)

    def settle(view: int) -> None:
        if found.measured[view]:
            found.log_depth[view] = joined(scene, measured, found, view, APART)

    by_threads(settle, range(len(found.measured)))


def joined(scene: Posed, measured: Scene, found: Depths, view: int, apart: float = np.inf) -> Tensor:
    """Log depth [H, W] of a view: the mean of its own and of what its sources measured at the same place, weighted by
    the expected precision. `measured` are the surfaces of what was `found`.

    Some see a place nearer, or from a better side. Depth that differs by more than SAME, or than `apart`, is not theirs
    to tell.
    """
    height, width = found.log_depth.shape[1:]
    log_depth, log_b = (each.flatten(1).numpy() for each in (found.log_depth, found.log_b))
    world = measured.world_points(view, *np.indices((height, width)).reshape(2, -1))
    result = np.empty_like(log_depth[view])
    for at in range(0, len(result), PIXELS):
        some = slice(at, at + PIXELS)
        own, own_b = log_depth[view, some].astype(np.float64), np.exp(log_b[view, some].astype(np.float64))
        weights = own_b**-2
        total = weights * own
        for other in scene.sources[view]:
            pose = scene.cam_from_world[other]
            cam = world[some] @ pose[:3, :3].T + pose[:3, 3]
            xy = scene.optics.project(other, cam)
            change = np.log(sample_depth(measured.depth[other], xy) / np.where(cam[:, 2] > 0, cam[:, 2], np.nan))
            cols, rows = np.nan_to_num(xy).clip(0, [width - 1, height - 1]).astype(np.int64).T
            b = np.exp(log_b[other, rows * width + cols].astype(np.float64))
            is_same = np.abs(change) < np.minimum(SAME * (own_b + b), apart)  # False where it is unknown
            weight = np.where(is_same, b**-2, 0)
            weights += weight
            total += weight * (own + np.where(is_same, change, 0))
        result[some] = total / weights
    return torch.from_numpy(result).view(height, width)
