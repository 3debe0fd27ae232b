"""An elevation model and an orthophoto from depth maps: heights on a level grid, coloured from the steepest views."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lean3r.geometry.consistency import Scene, unit
from lean3r.geometry.fusion import trusted_pixels
from lean3r.geometry.lens import Optics
from lean3r.geometry.overhead import Grid
from lean3r.types import Reconstruction

PIXELS = 1.5  # width of a cell in pixels of the depth maps, on the ground
MOST_CELLS, LONGEST = 16_000_000, 30_000  # cells in all, and along a side
MOST_A_POINT = 20  # cells for each point: more would be empty
SAMPLE = 20_000  # points of a view that tell the extent
LAYER = 3.0  # cells: points so far below the highest of a cell still are of its surface
CLOSE = 3  # cells that a gap may measure across to be filled from its borders
HIDDEN = 0.03  # of a view's depth by which a cell may lie behind its surface and still be seen

OfWorld = Callable[[np.ndarray], np.ndarray]


class Terrain(NamedTuple):
    """height [rows, cols] float64 and rgb [rows, cols, 3] uint8 on a grid, NaN and 0 where nothing was seen from
    above; seen [rows, cols] bool, whether the colour is known."""

    grid: Grid
    height: np.ndarray
    rgb: np.ndarray
    seen: np.ndarray


def terrain(scene: Reconstruction, of_world: OfWorld, to_world: OfWorld, cell: float | None = None) -> Terrain:
    """The surface of a scene from above, in coordinates east, north and height that `of_world` gives ([P, 3] of [P, 3])
    and `to_world` leads back from.

    `cell` is the side of the cells (None: 1.5 pixels of the depth maps on the ground); it grows if there were too many.
    """
    depth = Scene(scene.certain_depth, scene.cam_from_world, Optics.of(scene))
    keep = trusted_pixels(depth.depth, scene.conf, scene.mask, scene.point_options.conf_percentile)

    def places(view: int) -> np.ndarray:
        world = depth.world_points(view, *np.nonzero(keep[view]))
        return of_world(world[np.isfinite(world).all(axis=1)])

    parts, footprints, points = [], [], 0
    for view in range(len(keep)):
        if keep[view].any():
            at = places(view)
            parts.append(at[:: 1 + len(at) // SAMPLE])
            points += len(at)
            footprints.append(depth.optics.footprint(view) * float(np.median(depth.depth[view][keep[view]])))
    if not points:
        grid = Grid(0.0, 1.0, cell or 1.0, 1, 1)
        return Terrain(grid, np.full((1, 1), np.nan), np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), bool))
    low, high = _extent(np.concatenate(parts)[:, :2])
    size = cell or _round(PIXELS * float(np.median(footprints)))
    most = min(MOST_CELLS, MOST_A_POINT * points)
    size = max(size, float((high - low).max()) / LONGEST, float(np.sqrt(np.prod(high - low) / most)))
    grid = Grid.around(np.array([low[0], high[0]]), np.array([low[1], high[1]]), size)
    height = _heights(grid, places, len(keep))
    return Terrain(grid, height, *_colours(scene, depth, grid, height, to_world))


def _extent(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners [2] of the rectangle around points [P, 2]; without those that are far outside."""
    low, high = np.percentile(places, [1, 99], axis=0)
    beyond = 0.5 * (high - low)
    return np.maximum(places.min(axis=0), low - beyond), np.minimum(places.max(axis=0), high + beyond)


def _round(value: float) -> float:
    """Two digits, rounded up."""
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(np.ceil(value / step) * step)


def _heights(grid: Grid, places: Callable[[int], np.ndarray], views: int) -> np.ndarray:
    """The mean height [rows, cols] of the highest surface in each cell; small gaps are filled."""
    top = np.full(grid.rows * grid.cols, -np.inf)
    total, count = np.zeros(len(top)), np.zeros(len(top))
    for is_second in (False, True):
        for view in range(views):
            at = places(view)
            cells = grid.cells(at[:, 0], at[:, 1])
            at, cells = at[cells >= 0], cells[cells >= 0]
            if not is_second:
                np.maximum.at(top, cells, at[:, 2])
                continue
            near = at[:, 2] >= top[cells] - LAYER * grid.cell
            total += np.bincount(cells[near], at[near, 2], len(top))
            count += np.bincount(cells[near], None, len(top))
    height = np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(grid.rows, grid.cols)
    return _filled(height)


def _filled(height: np.ndarray) -> np.ndarray:
    """The same with narrow gaps filled by the means of their neighbours; borders do not grow."""
    grown = np.isfinite(height)
    for _ in range(CLOSE):
        grown = _around(grown) > 0
    for _ in range(CLOSE):
        grown = _around(grown, outside=1) == 9
    for _ in range(2 * CLOSE):
        known = np.isfinite(height)
        count = _around(known)
        wanted = grown & ~known & (count > 0)
        if not wanted.any():
            break
        height[wanted] = _around(np.nan_to_num(height))[wanted] / count[wanted]
    return height


def _around(values: np.ndarray, outside: int = 0) -> np.ndarray:
    """The sum [rows, cols] of each cell and its eight neighbours, float32."""
    padded = np.pad(values.astype(np.float32), 1, constant_values=outside)
    across = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return across[:-2] + across[1:-1] + across[2:]


def _colours(
    scene: Reconstruction, depth: Scene, grid: Grid, height: np.ndarray, to_world: OfWorld
) -> tuple[np.ndarray, np.ndarray]:
    """Colours [rows, cols, 3] from the view that sees each cell most from above, and whether any does [rows, cols]."""
    rows, cols = np.nonzero(np.isfinite(height))
    east, north = grid.centres()
    world = to_world(np.stack([east[cols], north[rows], height[rows, cols]], axis=1))
    above = to_world(np.stack([east[cols], north[rows], height[rows, cols] + grid.cell], axis=1)) - world
    above = unit(above)
    best, rgb = np.zeros(len(world)), np.zeros((len(world), 3))
    for view in range(len(scene.sources)):
        pose, mask = scene.cam_from_world[view], scene.mask[view]
        cam = world @ pose[:3, :3].T + pose[:3, 3]
        xy = depth.optics.project(view, cam)
        inside = np.flatnonzero(
            np.isfinite(xy).all(axis=1) & (xy >= 0.5).all(axis=1) & (xy < np.array(mask.shape[::-1]) - 0.5).all(axis=1)
        )
        if not len(inside):
            continue
        at = xy[inside] - 0.5
        left, top = np.floor(at).astype(int).T
        nearest = tuple(np.round(at).astype(int).T[::-1])
        own = depth.depth[view][nearest]
        centre = -pose[:3, :3].T @ pose[:3, 3]
        steep = np.einsum("pc,pc->p", unit(centre - world[inside]), above[inside])
        # Views without depth of their own there, behind sky or masks, show something else.
        better = (own > 0) & (cam[inside, 2] <= own * (1 + HIDDEN)) & mask[nearest] & (steep > best[inside])
        chosen, share = inside[better], (at - np.floor(at))[better]
        x, y = left[better], top[better]
        image = scene.images[view].astype(np.float64)
        right, below = np.minimum(x + 1, mask.shape[1] - 1), np.minimum(y + 1, mask.shape[0] - 1)
        across, down = share[:, :1], share[:, 1:]
        upper = image[y, x] * (1 - across) + image[y, right] * across
        lower = image[below, x] * (1 - across) + image[below, right] * across
        rgb[chosen] = upper * (1 - down) + lower * down
        best[chosen] = steep[better]
    whole, seen = np.zeros((grid.rows, grid.cols, 3), np.uint8), np.zeros((grid.rows, grid.cols), bool)
    whole[rows, cols] = rgb.round().clip(0, 255).astype(np.uint8)
    seen[rows, cols] = best > 0
    return whole, seen
