"""The scale of depth maps for known camera positions, from photometric consistency."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.lens import Optics

SIDE = 24  # samples along each side of a picture
VIEWS, OTHERS = 24, 4  # sampled views, and views that each is compared with
STEPS = (0.08, 0.03)  # of the log scale, first over the whole span and then around the best
REACH = 0.5  # difference of log depth up to which two views may see the same surface
SPACING = 72  # a patch is 3 x 3 samples, this part of the longer side apart
PLAIN = 8.0  # contrast of a patch, in grey levels, at noise level
LEAST = 50  # samples that must be seen twice


class Shown(NamedTuple):
    """images [S, H, W, 3] uint8 and mask [S, H, W] bool, with depth [S, H, W] up to one scale, 0 where unknown."""

    images: np.ndarray
    mask: np.ndarray
    depth: np.ndarray


def photo_scale(pictures: Shown, cam_from_world: np.ndarray, optics: Optics, guess: float, span: float) -> float | None:
    """The factor on all depth that gives the best photometric consistency between the views.

    cam_from_world [S, 4, 4] are exact; scales from guess / e^span to guess * e^span are tried. The score is the mean
    correlation of patches, whatever the number of points seen twice. None if these are too few.
    """
    depth = np.where(pictures.mask & np.isfinite(pictures.depth), pictures.depth, 0).clip(0)
    grey = pictures.images.astype(np.float32).mean(-1)
    views = np.unique(np.linspace(0, len(depth) - 1, VIEWS).round().astype(int))
    near = neighbours(Scene((guess * depth).astype(np.float32), cam_from_world, optics), OTHERS)

    def agreement(factor: float) -> tuple[float, int]:
        total, count = 0.0, 0
        scene = Scene((factor * depth).astype(np.float32), cam_from_world, optics)
        for view in views:
            world, own = _samples(scene, grey, view)
            for other in near[view]:
                z, seen = scene.seen(other, world)
                same = np.isfinite(seen) & (np.abs(np.log(np.where(z > 0, z, np.nan) / seen)) < REACH)
                pose = cam_from_world[other]
                xy = optics.project(int(other), world[same] @ pose[:3, :3].T + pose[:3, 3])
                total += float((own[same] * _patches(grey[other], xy)).sum(axis=1).clip(0).sum())
                count += int(same.sum())
        return total, count

    best = guess
    for reach, step in zip((span, STEPS[0]), STEPS, strict=True):
        factors = best * np.exp(np.arange(-reach, reach + step / 2, step))
        total, count = np.array([agreement(float(factor)) for factor in factors]).T
        enough = count >= max(LEAST, 0.1 * count.max())
        if not enough.any():
            return None
        mean = np.where(enough, total / np.maximum(count, 1), 0)
        padded = np.pad(mean, 1, mode="edge")  # a single scale may score high by chance
        best = float(factors[(padded[:-2] + 2 * mean + padded[2:]).argmax()])
    return best


def _samples(scene: Scene, grey: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
    """World points [P, 3] of a grid of pixels, and their patches."""
    height, width = scene.depth.shape[1:]
    grid = (np.arange(SIDE) + 0.5) / SIDE
    rows, cols = (a.ravel().astype(int) for a in np.meshgrid(grid * height, grid * width, indexing="ij"))
    world = scene.world_points(view, rows, cols)
    known = np.isfinite(world).all(axis=1)
    return world[known], _patches(grey[view], np.stack([cols, rows], axis=1)[known] + 0.5)


def _patches(grey: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Grey values [P, 9] around pixels [P, 2], without their mean and of length up to 1: less where all is noise."""
    height, width = grey.shape
    step = max(height, width) / SPACING
    offsets = np.array([[x, y] for y in (-step, 0, step) for x in (-step, 0, step)])
    col, row = np.moveaxis((xy[:, None] + offsets).astype(int), -1, 0)
    values = grey[row.clip(0, height - 1), col.clip(0, width - 1)]
    values = values - values.mean(axis=1, keepdims=True)
    return values / (np.linalg.norm(values, axis=1, keepdims=True) + PLAIN)
