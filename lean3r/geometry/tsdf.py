"""A surface from depth maps: truncated signed distances on a grid, cut into blocks that are made one at a time.

Only blocks near a surface are made, and none is kept, so memory stays small for any scene size. The caller extracts
the triangles of each block; neighbouring blocks share their border samples exactly, and where a surface leaves a block
its neighbour is made too, so that there are no cracks.

Source: Curless and Levoy 1996.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import grid_sample

from lean3r.geometry.consistency import Scene

SIDE = 16  # cells along each side of a block
FREE_WEIGHT = 0.3  # of a view that sees through a point, relative to one that sees a surface there
STRIDE = 3  # pixel stride when finding the blocks that are needed: smaller than most blocks
GROWTH = 0.5  # most work added where surfaces go on between such pixels; without end, a plain would reach the horizon


class Block(NamedTuple):
    """Samples at the corners of SIDE^3 cells, [SIDE + 1] * 3 each: `distance` in truncations (negative behind the
    surface, NaN where no view observes it) and rgb [..., 3] (NaN where no surface is near). `start` [3] is the
    grid index of the first sample: world = voxel * (start + index)."""

    start: np.ndarray
    distance: np.ndarray
    rgb: np.ndarray


class Grid(NamedTuple):
    """voxel: size of a cell; truncation: largest distance; blocks [B, 3]: those needed, in blocks from the world's
    origin; `sees` [S, B]: whether a view sees a block; spare: most pairs of a view and a block that it sees which may
    be added where surfaces go on."""

    voxel: float
    truncation: float
    blocks: np.ndarray
    sees: np.ndarray
    spare: int


def plan_grid(scene: Scene, voxel: float, truncation: float, most: int) -> Grid:
    """The blocks that depth maps need; voxels grow where views times blocks exceed `most`.

    `scene` has depth where it is trusted, 0 elsewhere; `truncation` is at least three voxels.
    """
    while True:
        reach = max(truncation, 3 * voxel)
        blocks = _needed_blocks(scene, SIDE * voxel, reach)
        sees = _sees(scene, blocks, SIDE * voxel)
        pairs = int(sees.sum())
        if pairs <= most:
            return Grid(voxel, reach, blocks, sees, int(GROWTH * pairs))
        # The number of surface blocks grows with the square of the resolution.
        voxel *= max(1.1, min(np.sqrt(pairs / most), 4.0))


def integrate(scene: Scene, weight: np.ndarray, images: np.ndarray, grid: Grid) -> Iterator[Block]:
    """The blocks of a grid one after the other, then those into which their surfaces go on; weight [S, H, W] of each
    pixel, images [S, H, W, 3] uint8."""
    # Inverse depth is linear in the pixel on planes; NaN propagates through the interpolation.
    inverse = [np.where(d > 0, 1 / np.where(d > 0, d, 1), np.nan).astype(np.float32) for d in scene.depth]
    blocks, sees, spare = grid.blocks, grid.sees, grid.spare
    known = set(map(tuple, blocks.tolist()))
    while len(blocks):
        ahead: dict[tuple[int, ...], None] = {}
        for block, views in zip(blocks, sees.T, strict=True):
            made = _sample(block * SIDE, np.flatnonzero(views).tolist(), scene, inverse, weight, images, grid)
            yield made
            ahead |= dict.fromkeys(_goes_on(block, made.distance))
        added = [block for block in ahead if block not in known]
        known.update(added)
        blocks = np.array(added, dtype=np.int64).reshape(-1, 3)
        sees = _sees(scene, blocks, SIDE * grid.voxel)
        affordable = np.cumsum(sees.sum(axis=0)) <= spare
        blocks, sees = blocks[affordable], sees[:, affordable]
        spare -= int(sees.sum())


def _goes_on(block: np.ndarray, distance: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The neighbours of a block into which its surface goes on: some cell of the border between them has both signs."""
    for axis in range(3):
        for end, step in ((0, -1), (SIDE, 1)):
            border = distance.take(end, axis)
            corners = np.stack([border[:-1, :-1], border[1:, :-1], border[:-1, 1:], border[1:, 1:]])
            if ((corners.min(axis=0) <= 0) & (corners.max(axis=0) > 0)).any():  # false where any is NaN
                beside = block.copy()
                beside[axis] += step
                yield tuple(beside.tolist())


def _sample(
    start: np.ndarray,
    views: list[int],
    scene: Scene,
    inverse: list[np.ndarray],
    weight: np.ndarray,
    images: np.ndarray,
    grid: Grid,
) -> Block:
    """The block whose first sample is `start`, from views that see it."""
    corner = np.stack(np.meshgrid(*[np.arange(SIDE + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    height, width = scene.depth.shape[1:]
    world = (start + corner) * grid.voxel
    total, mean, ink = np.zeros((3, len(corner)))
    rgb = np.zeros((len(corner), 3))
    for view in views:
        pose = scene.cam_from_world[view]
        cam = world @ pose[:3, :3].T + pose[:3, 3]
        xy = scene.optics.project(view, cam)
        share = xy / [width, height]
        at = torch.from_numpy((2 * share - 1).astype(np.float32))[None, None]
        seen = grid_sample(torch.from_numpy(inverse[view])[None, None], at, padding_mode="border", align_corners=False)
        distance = (1 / seen.numpy().ravel() - cam[:, 2]) / grid.truncation
        # Unknown depth, points outside the picture and occluded points give no vote.
        told = np.flatnonzero((distance > -1) & (np.abs(share - 0.5) < 0.5).all(axis=1))
        cols, rows = xy[told].astype(np.int64).T
        near = distance[told] < 1
        w = weight[view, rows, cols] * np.where(near, 1.0, FREE_WEIGHT)
        total[told] += w
        mean[told] += w * np.minimum(distance[told], 1)
        painted = told[near]
        ink[painted] += w[near]
        rgb[painted] += w[near, None] * images[view, rows[near], cols[near]]
    shape = (SIDE + 1,) * 3
    distance = np.divide(mean, total, out=np.full(len(corner), np.nan), where=total > 0)
    rgb = np.divide(rgb, ink[:, None], out=np.full((len(corner), 3), np.nan), where=ink[:, None] > 0)
    # Where all views see through, there is no surface to close.
    distance[(ink == 0) & (total > 0)] = 1
    return Block(start, distance.reshape(shape), rgb.reshape(*shape, 3))


def _needed_blocks(scene: Scene, side: float, reach: float) -> np.ndarray:
    """Blocks [B, 3] within `reach` of the points of all depth maps, in order."""
    offsets = np.stack(np.meshgrid(*[[-reach, 0, reach]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    width = scene.depth.shape[2]
    voxels = [np.zeros((0, 3), np.int64)]
    for view in range(len(scene.depth)):
        flat = np.flatnonzero(scene.depth[view].ravel() > 0)
        flat = flat[(flat // width % STRIDE == 0) & (flat % width % STRIDE == 0)]
        world = scene.world_points(view, *np.divmod(flat, width))
        world = world[np.isfinite(world).all(axis=1)]
        thin = np.unique(np.floor(world / (reach / 2)).astype(np.int64), axis=0) * (reach / 2) + reach / 4
        for offset in offsets:
            voxels.append(np.unique(np.floor((thin + offset) / side).astype(np.int64), axis=0))
    return np.unique(np.concatenate(voxels), axis=0)


def _sees(scene: Scene, blocks: np.ndarray, side: float) -> np.ndarray:
    """[S, B]: whether any of a block can be in a view's picture; never false where it is, as neighbours would differ
    at their border."""
    height, width = scene.depth.shape[1:]
    middle, radius = (blocks + 0.5) * side, 0.87 * side
    result = np.zeros((len(scene.depth), len(blocks)), dtype=bool)
    for view, pose in enumerate(scene.cam_from_world):
        cam = middle @ pose[:3, :3].T + pose[:3, 3]
        slopes, pixel = scene.optics.slopes(view, height, width).reshape(-1, 2), scene.optics.footprint(view)
        inside = cam[:, 2] > -radius
        # The four planes through the camera and the sides of the picture, a pixel farther out.
        for axis in range(2):
            low, high = np.nanmin(slopes[:, axis]) - pixel, np.nanmax(slopes[:, axis]) + pixel
            inside &= cam[:, axis] - high * cam[:, 2] < radius * np.hypot(1, high)
            inside &= low * cam[:, 2] - cam[:, axis] < radius * np.hypot(1, low)
        result[view] = inside
    return result
