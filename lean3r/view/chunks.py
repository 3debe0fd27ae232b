"""Points as a page wants them: near ones together, each chunk in levels from coarse to fine, few bytes a point.

A chunk is a box of neighbouring points in 16-bit steps of its own sides, so that a speck of dust far away costs no
accuracy. Inside a chunk the points follow a curve that visits neighbours one after the other; every level takes
regular samples of that curve, so that each level alone covers the whole chunk evenly.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import numpy as np

from lean3r.view.content import Points

LEVELS = 7  # each has about as many points as all before it
MOST_IN_CHUNK = 40_000
FAR = 8.0  # times the middle extent: from there on points are far, by powers of this
STEPS = 65535
COARSE = np.uint16(3)  # a multiple of this: a point is still some 100 times nearer than its neighbours, in fewer bits
RANK, TURN = 3, 6  # the same for confidence and normals
COMPRESSION = 6


@dataclass(frozen=True)
class Packed:
    """`chunks`: low [3] and side [3] of each box, and how many points each level has; `levels` are the compressed
    bytes of each level; `spacing` is the smallest and the largest distance of neighbours (base-2 logarithms);
    `quantiles` are confidences at 0, 1/8, ... 1 of all points."""

    count: int
    chunks: list[dict]
    levels: list[bytes]
    spacing: tuple[float, float]
    quantiles: list[float]


def thinned(points: Points, most: int) -> Points:
    """At most so many of the points, evenly spread; all if there are no more."""
    if len(points) <= most:
        return points
    regular = ((np.arange(most) + 0.5) * (len(points) / max(most, 1))).astype(np.int64)
    return points[along_curve(points.xyz)[regular]]


def pack(points: Points, spacing: np.ndarray) -> Packed:
    """Points in the page's coordinates, with the distances [P] to their neighbours there (0 where unknown)."""
    ranks, quantiles = ranked(points.conf)
    boxes = split(points.xyz)
    spacing = spacing.astype(np.float32).copy()
    for box in boxes:
        unknown = box[spacing[box] <= 0]
        spacing[unknown] = guess_spacing(points.xyz[box]) if len(unknown) else 0
    logs = np.log2(np.maximum(spacing, 1e-12))
    low, high = (float(logs.min()), float(logs.max())) if len(logs) else (0.0, 0.0)
    sizes = np.round((logs - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    chunks, parts = [], [[] for _ in range(LEVELS)]
    for box in boxes:
        box = box[along_curve(points.xyz[box])]
        xyz = points.xyz[box].astype(np.float64)
        start, side = xyz.min(axis=0), np.ptp(xyz, axis=0)
        steps = np.round((xyz - start) / np.where(side > 0, side, 1) * (STEPS // COARSE)).astype(np.uint16) * COARSE
        level = level_of(len(box))
        view = np.where(points.view[box] < 0, STEPS, points.view[box]).clip(0, STEPS).astype(np.uint16)
        normals = octahedral(points.normals[box])
        counts = []
        for number in range(LEVELS):
            mine = np.flatnonzero(level == number)
            at = box[mine]
            parts[number].append((steps[mine], ranks[at], sizes[at], points.rgb[at], normals[mine], view[mine]))
            counts.append(len(mine))
        chunks.append({"low": start.tolist(), "side": side.tolist(), "counts": counts})
    levels = [_level_bytes(part) for part in parts]
    return Packed(len(points), chunks, levels, (low, high), quantiles)


def ranked(conf: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The share of less confident points in 255ths [P] uint8, equal confidences alike, and nine quantiles."""
    if not len(conf):
        return np.zeros(0, np.uint8), []
    values, inverse, counts = np.unique(conf, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    share = below[inverse] / max(len(conf) - 1, 1) if len(values) > 1 else np.ones(len(conf))
    quantiles = np.quantile(conf, np.linspace(0, 1, 9)).tolist()
    return (np.round(share * (255 // RANK)) * RANK).astype(np.uint8), [float(f"{value:.5g}") for value in quantiles]


def level_of(count: int) -> np.ndarray:
    """The level [P] of each of so many points in order: level 0 takes every 64th, the last one every other."""
    number = np.arange(count)
    trailing = np.zeros(count, np.int64)
    for bits in range(1, LEVELS):
        trailing += number % (1 << bits) == 0
    return LEVELS - 1 - trailing


def split(xyz: np.ndarray) -> list[np.ndarray]:
    """Indices of the points of each chunk: boxes of at most MOST_IN_CHUNK points; far points have their own."""
    if not len(xyz):
        return []
    values = xyz.astype(np.float64)
    distance = np.abs(values - np.median(values, axis=0)).max(axis=1)
    middle = max(float(np.median(distance)), 1e-300)
    shell = np.floor(np.log(np.maximum(distance / middle, 1.0)) / np.log(FAR)).astype(np.int64)
    waiting = [np.flatnonzero(shell == number) for number in np.unique(shell)]
    boxes = []
    while waiting:
        box = waiting.pop()
        if len(box) <= MOST_IN_CHUNK:
            boxes.append(box)
            continue
        axis = int(np.ptp(values[box], axis=0).argmax())
        order = np.argpartition(values[box, axis], len(box) // 2)
        waiting += [box[order[: len(box) // 2]], box[order[len(box) // 2 :]]]
    return boxes


def along_curve(xyz: np.ndarray) -> np.ndarray:
    """The order [P] of points along a curve that stays near (Morton's), in a grid of 2048 cells along each axis."""
    if not len(xyz):
        return np.zeros(0, np.int64)
    values = xyz.astype(np.float64)
    low, high = np.percentile(values[:: 1 + len(values) // 100_000], [0.5, 99.5], axis=0)
    cells = ((values - low) / np.where(high > low, high - low, 1) * 2047).clip(0, 2047).astype(np.uint64)
    keys = np.zeros(len(values), np.uint64)
    for axis in range(3):
        keys |= _spread(cells[:, axis]) << np.uint64(axis)
    return np.argsort(keys, kind="stable")


def _spread(value: np.ndarray) -> np.ndarray:
    """Two zero bits after each of eleven bits."""
    for shift, mask in ((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F),
                        (4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)):  # fmt: skip
        value = (value | (value << np.uint64(shift))) & np.uint64(mask)
    return value


def octahedral(normals: np.ndarray) -> np.ndarray:
    """Unit vectors [P, 3] as points of an unfolded octahedron [P, 2] uint8, 1 to 255; 0 where they are 0."""
    values = normals.astype(np.float64)
    reach = np.abs(values).sum(axis=1, keepdims=True)
    flat = values[:, :2] / np.where(reach > 0, reach, 1)
    sign = np.where(flat >= 0, 1.0, -1.0)
    folded = np.where(values[:, 2:] < 0, (1 - np.abs(flat[:, ::-1])) * sign, flat)
    return np.where(reach > 0, np.round(folded * (126 // TURN)) * TURN + 128, 0).astype(np.uint8)


def guess_spacing(xyz: np.ndarray) -> float:
    """The distance of neighbours on a surface that fills the two longer sides of a box."""
    sides = np.sort(np.ptp(xyz.astype(np.float64), axis=0))
    return float(np.sqrt(max(sides[1] * sides[2], 1e-24) / len(xyz)))


def calibration(xyz: np.ndarray, spacing: np.ndarray) -> float:
    """How many times farther than `spacing` [P] neighbours are, in the middle of a sample; 1 if that is unknown."""
    ratios = []
    rng = np.random.default_rng(0)
    order = along_curve(xyz)
    for at in rng.integers(0, max(len(order), 1), 200) if len(order) > 1 else ():
        near = order[max(0, at - 400) : at + 400]
        point = order[at]
        gaps = np.linalg.norm(xyz[near].astype(np.float64) - xyz[point], axis=1)
        gaps = gaps[gaps > 0]
        if len(gaps) and spacing[point] > 0:
            ratios.append(float(gaps.min() / spacing[point]))
    return float(np.median(ratios)) if ratios else 1.0


def _level_bytes(parts: list[tuple[np.ndarray, ...]]) -> bytes:
    """One array after the other, high and low bytes apart, places as differences: so they compress well."""
    if not parts:
        return gzip.compress(b"", COMPRESSION, mtime=0)
    steps, ranks, sizes, rgb, normals, view = (np.concatenate(column) for column in zip(*parts, strict=True))
    columns = [_high_and_low(np.diff(steps[:, axis], prepend=np.uint16(0))) for axis in range(3)]
    columns += [ranks.tobytes(), sizes.tobytes(), *(rgb[:, c].tobytes() for c in range(3))]
    columns += [normals[:, c].tobytes() for c in range(2)]
    columns.append(_high_and_low(view))
    return gzip.compress(b"".join(columns), COMPRESSION, mtime=0)


def _high_and_low(values: np.ndarray) -> bytes:
    return (values >> 8).astype(np.uint8).tobytes() + (values & 255).astype(np.uint8).tobytes()
