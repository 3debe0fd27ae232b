"""How far the views of a scene agree: what they see in common, how often, and what confidence says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lean3r.geometry.consistency import Scene
from lean3r.geometry.lens import Optics
from lean3r.parallel import by_threads
from lean3r.types import Reconstruction

MOST_VIEWS = 48  # that are compared with each other: evenly spaced ones of more
PIXELS = 700  # of each view, on a regular grid
SAME = np.log(1.1)  # views whose depths differ by less see the same surface
CONFIRMED = np.log(1.05)
BINS = 10


@dataclass(frozen=True, eq=False)
class Agreement:
    """Comparisons of V of the views, by the depth of some pixels of each.

    views [V]: their indices. overlap [V, V]: the share of the pixels of a view (row) whose surface another view
    (column) sees too, NaN for a view without depth. Of each of N pixels: xyz [N, 3] in world units, conf [N], seen_by
    [N], the number of other views that confirm it within 5 %, and difference [N], the median relative difference from
    the views that see about the same surface, NaN if none does.
    """

    views: np.ndarray
    overlap: np.ndarray
    xyz: np.ndarray
    conf: np.ndarray
    seen_by: np.ndarray
    difference: np.ndarray

    @property
    def shares(self) -> list[float]:
        """The shares of the pixels that 0, 1, 2, 3, and 4 or more other views confirm."""
        counts = np.bincount(np.minimum(self.seen_by, 4), minlength=5)
        return (counts / max(len(self.seen_by), 1)).tolist()


@dataclass(frozen=True)
class Bin:
    """A tenth of the pixels by confidence: its range, the median difference (None: nothing to compare with), the share
    of its pixels that at least one other view confirms, and the share that other views see at all."""

    low: float
    high: float
    difference: float | None
    confirmed: float
    compared: float


def agreement_of(scene: Reconstruction) -> Agreement | None:
    """Compare the views of a scene; None if none has depth."""
    found = np.where(np.isfinite(scene.certain_depth), scene.certain_depth, 0)
    if not (found > 0).any():
        return None
    count = len(scene.sources)
    views = np.unique(np.linspace(0, count - 1, min(count, MOST_VIEWS)).round().astype(int))
    depth = Scene(found, scene.cam_from_world, Optics.of(scene))
    height, width = scene.depth.shape[1:]
    step = max(1, round((height * width / PIXELS) ** 0.5))
    grid = np.stack(np.meshgrid(np.arange(step // 2, height, step), np.arange(step // 2, width, step), indexing="ij"))
    rows, cols = grid.reshape(2, -1)

    def compare(view: int) -> tuple[np.ndarray, ...]:
        known = depth.depth[view][rows, cols] > 0
        world = depth.world_points(view, rows[known], cols[known])
        differences = np.full((len(views), len(world)), np.nan)
        for number, other in enumerate(views):
            if other != view and len(world):
                z, seen = depth.seen(int(other), world)
                with np.errstate(divide="ignore", invalid="ignore"):
                    differences[number] = np.abs(np.log(np.where(z > 0, z, np.nan) / seen))
        same = differences < SAME
        compared = np.sort(np.where(same | ~same.any(axis=0), differences, np.nan), axis=0)  # NaN last
        middle = np.maximum(np.isfinite(compared).sum(axis=0) - 1, 0) // 2
        usual = np.take_along_axis(compared, middle[None], axis=0)[0]
        overlap = same.mean(axis=1) if len(world) else np.full(len(views), np.nan)
        conf = scene.conf[view][rows[known], cols[known]]
        return overlap, world, conf, (differences < CONFIRMED).sum(axis=0), np.expm1(usual)

    parts = by_threads(compare, views.tolist())
    overlap, xyz, conf, seen_by, difference = zip(*parts, strict=True)
    return Agreement(views, np.stack(overlap), *map(np.concatenate, (xyz, conf, seen_by, difference)))


def calibration(agreement: Agreement) -> list[Bin]:
    """Tenths of the pixels with confidence, the least confident first, and how far other views differ from each; empty
    if there are too few pixels, or all are equally confident."""
    usable = np.flatnonzero(agreement.conf > 0)
    if len(usable) < 20 * BINS or np.ptp(agreement.conf[usable]) <= 0:
        return []
    order = usable[np.argsort(agreement.conf[usable], kind="stable")]
    bins = []
    for part in np.array_split(order, BINS):
        difference = agreement.difference[part]
        known = np.isfinite(difference)
        median = float(np.median(difference[known])) if known.sum() >= 5 else None
        low, high = float(agreement.conf[part[0]]), float(agreement.conf[part[-1]])
        bins.append(Bin(low, high, median, float((agreement.seen_by[part] > 0).mean()), float(known.mean())))
    return bins


def common_points(scene: Reconstruction) -> np.ndarray | None:
    """How many triangulated points each pair of views has in common, [S, S], and each view has, on the diagonal; None
    if there are none."""
    sparse, views = scene.sparse, len(scene.sources)
    if sparse is None or not len(sparse.point):
        return None
    keys = np.sort(sparse.point.astype(np.int64) * views + sparse.view)  # np.unique takes ten times as long
    point, view = np.divmod(keys[np.diff(keys, prepend=-1) > 0], views)
    common, apart = np.zeros(views * views, int), 0
    # Pairs of each point's views, by how far apart these are in its list: few, where a table of all would be gigabytes.
    while len(first := np.flatnonzero(point[apart:] == point[: len(point) - apart])):
        np.add.at(common, view[first] * views + view[first + apart], 1)
        apart += 1
    common = common.reshape(views, views)
    return common + np.triu(common, 1).T
