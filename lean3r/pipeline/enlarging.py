"""Larger maps as a step of a reconstruction: pictures read again, depth and confidence carried over to their size."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from lean3r.errors import InputError, OutOfMemoryError, UsageError
from lean3r.geometry.consistency import EDGE
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.views import PAD_VALUE, whole_size
from lean3r.models.base import Backbone
from lean3r.parallel import by_threads
from lean3r.pipeline.budget import Budget
from lean3r.pipeline.densifying import bytes_of_stereo, measures
from lean3r.pipeline.memory import (
    BYTES_PER_CANDIDATE,
    EXPORT_LIBRARIES,
    MOST_CANDIDATES,
    available_bytes,
    in_units,
    used_bytes,
)
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.trust import no_points
from lean3r.stereo.options import FINER, FINER_MEGAPIXELS, StereoOptions
from lean3r.types import Reconstruction, Source

logger = logging.getLogger("lean3r")

MAPS = 60  # resident memory in bytes per pixel of all views, measured
ROWS = 256  # carried at a time: bounds the memory
WORTHWHILE = 1.2  # times the pixels of the network, from which measured depth is larger unasked


def check_depth_size(options: StereoOptions, least: int, has_files: bool) -> None:
    """Raise UsageError if depth cannot have the chosen size; `least` is the side of the network's pictures,
    `has_files`: the pictures can be read again."""
    size = options.depth_size
    if size is None:
        return
    if options.dense == "off":
        raise UsageError(f"--depth-size is {size}, but --dense off leaves out depth; choose one of the two.")
    if not has_files:
        raise UsageError(
            f"depth_size is {size!r}, but ready Views cannot be read again at another size; give files, arrays or "
            "Pictures instead of Views, or leave depth_size out."
        )
    if size != "original" and size < least:
        raise UsageError(
            f"depth_size is {size}; expected at least {least}, the size of the network's pictures, or 'original'."
        )


def check_room(
    options: StereoOptions, sources: Sequence[Source], least: int, model: Backbone, budget: Budget | None
) -> None:
    """Raise OutOfMemoryError if maps of the chosen size do not fit into a budget, or into what is available.

    `least` is the side of the network's pictures. A budget on a GPU does not count: maps are in the main memory.
    """
    if options.depth_size is None:
        return
    used = used_bytes(torch.device("cpu"))

    def needed(side: int | None) -> int:
        return used + bytes_of_maps(options, sources, side)

    wanted, (limit, word) = needed(side_of(options)), _limit(model, budget)
    if limit is None or wanted <= limit:
        return
    largest = round(max(source.width * source.height for source in sources) ** 0.5)
    sides = range(least, largest + 1)
    at = bisect_right(sides, limit, key=needed)
    advice = f"--depth-size {sides[at - 1]} would fit" if at else "leave --depth-size out"
    raise OutOfMemoryError(
        f"depth of {len(sources):,} views at --depth-size {options.depth_size} needs some {in_units(wanted)} of "
        f"memory, and {in_units(limit)} are {word}: {advice}, or give fewer views (--max-views)."
    )


def with_size(options: StereoOptions, scene: Reconstruction, model: Backbone, budget: Budget | None) -> StereoOptions:
    """The options with the size of depth that is measured, if none is chosen and it is larger than the network's.

    That is FINER, or as much as FINER_MEGAPIXELS allow; the network's size stays if memory does not suffice for it.
    """
    if options.depth_size is not None or not measures(options, scene):
        return options
    views = len(scene.sources)

    def pixels(side: int) -> int:
        return views * math.prod(_canvas([map_size(source, side) for source in scene.sources]))

    side = bisect_right(range(1, FINER + 1), 1e6 * FINER_MEGAPIXELS, key=pixels)
    sized = replace(options, depth_size=max(1, side))
    is_worth_it = pixels(side) >= WORTHWHILE * scene.depth.size and options.may_measure(pixels(side), views)
    return sized if is_worth_it and has_room(sized, scene.sources, model, budget) else options


def has_room(options: StereoOptions, sources: Sequence[Source], model: Backbone, budget: Budget | None = None) -> bool:
    """Whether maps of the chosen size fit into a budget, or into what is available."""
    limit, _ = _limit(model, budget)
    needed = used_bytes(torch.device("cpu")) + bytes_of_maps(options, sources, side_of(options))
    return limit is None or needed <= limit


def _limit(model: Backbone, budget: Budget | None) -> tuple[int | None, str]:
    """The bytes that maps may have in the main memory, and in a word why (None: unknown)."""
    cpu = torch.device("cpu")
    limits = [(available_bytes(cpu), "available")]
    if budget is not None and next(model.parameters()).device == cpu:
        limits.append((budget.size, "allowed"))
    known = [(limit, word) for limit, word in limits if limit is not None]
    return min(known) if known else (None, "")


def side_of(options: StereoOptions) -> int | None:
    """The chosen side in pixels; None for the originals' own size."""
    return None if options.depth_size == "original" else options.depth_size


def map_size(source: Source, side: int | None) -> tuple[int, int]:
    """(W, H) of a picture's map of the chosen side: at most that of the original or, if this is smaller, of the whole
    picture as the network saw it; None: the original's."""
    sx, sy, *_ = source.original_from_network
    return whole_size(source.width, source.height, side, 1.0 if side is None else max(1.0, (sx * sy) ** -0.5))


def bytes_of_maps(options: StereoOptions, sources: Sequence[Source], side: int | None) -> int:
    """Bytes that a run needs for maps of pictures with a side and what is made of them, with stereo if it may run."""
    height, width = _canvas([map_size(source, side) for source in sources])
    view, views = height * width, len(sources)
    pixels = view * views
    maps = MAPS * pixels + BYTES_PER_CANDIDATE * min(pixels, MOST_CANDIDATES) + EXPORT_LIBRARIES
    return maps + bytes_of_stereo(view, views) if options.may_measure(pixels, views) else maps


def enlarge_scene(
    scene: Reconstruction,
    pictures: Pictures,
    options: StereoOptions,
    masks: Masks | None,
    observer: Observer,
    is_asked: bool = True,
) -> Reconstruction:
    """The scene with pictures and maps of the chosen size, and without points; Ctrl-C keeps its size, and so do
    pictures that cannot be read again, unless the size `is_asked` for: then InputError. The config says which it is."""
    size = options.depth_size
    with observer.stage("enlarging") as progress:
        try:
            larger = enlarge(scene, pictures, side_of(options), masks, progress)
        except KeyboardInterrupt:
            larger, size = scene, None
        except InputError as error:
            if is_asked:
                raise
            logger.warning("%s Depth keeps the network's size.", error)
            larger, size = scene, None
    config = scene.info.get("config", {}) | {"depth_size": size}
    return replace(larger, info={**scene.info, "config": config})


def with_maps_of(before: Reconstruction, larger: Reconstruction) -> Reconstruction:
    """The scene as it was before it was enlarged, with what is said of it since, but for the size."""
    return replace(before, info={**larger.info, "config": before.info.get("config", {})})


def enlarge(
    scene: Reconstruction,
    pictures: Pictures,
    side: int | None,
    masks: Masks | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reconstruction:
    """The scene with whole pictures, of the `map_size` for a side, and maps of their size, without points; what is not
    used by `masks` has no depth. Cameras are those of before. InputError if the pictures changed."""
    views = len(scene.sources)
    sizes = [map_size(source, side) for source in scene.sources]
    size_of = {(source.width, source.height): size for source, size in zip(scene.sources, sizes, strict=True)}
    height, width = _canvas(sizes)
    images = np.full((views, height, width, 3), round(255 * PAD_VALUE), np.uint8)
    mask = np.zeros((views, height, width), bool)
    sources = list(scene.sources)
    corners = [((height - h) // 2, (width - w) // 2) for w, h in sizes]
    number = {name: view for view, name in enumerate(scene.names)}
    for picture in pictures.whole(scene.names, lambda *original: size_of.get(original, (1, 1))):
        view = number.pop(picture.source.name)
        (top, left), (w, h) = corners[view], sizes[view]
        if picture.pixels.shape[:2] != (h, w):
            raise _changed(picture.source.name)
        images[view, top : top + h, left : left + w] = picture.pixels
        mask[view, top : top + h, left : left + w] = True
        sx, sy, ox, oy = picture.source.original_from_network
        sources[view] = replace(sources[view], original_from_network=(sx, sy, ox - sx * left, oy - sy * top))
        progress(views - len(number), views)
    if number:
        raise _changed(min(number))
    used = mask if masks is None else masks.of_network(sources, mask)
    return replace(carried(scene, sources, used), images=images, mask=mask, points=no_points())


def carried(scene: Reconstruction, sources: Sequence[Source], used: np.ndarray) -> Reconstruction:
    """The scene with maps in the pixels of other pictures made of its originals, where these are `used` [S, H, W].

    Depth and confidence are interpolated inside surfaces and taken from the nearest pixel elsewhere; what is unknown
    stays 0.
    """
    maps = np.zeros((2, *used.shape), np.float32)
    height, width = used.shape[1:]

    def carry_view(view: int) -> None:
        depth = np.where(scene.mask[view] & np.isfinite(scene.depth[view]), scene.depth[view], 0)
        x, y = (_places(sources[view], scene.sources[view], axis, n) for axis, n in ((0, width), (1, height)))
        carry(depth, scene.conf[view], x, y, maps[:, view])
        maps[:, view] *= used[view]

    by_threads(carry_view, range(len(sources)))
    intrinsics = _intrinsics(scene.original_intrinsics, sources)
    return replace(scene, sources=tuple(sources), mask=used, depth=maps[0], conf=maps[1], intrinsics=intrinsics)


def carry(depth: np.ndarray, conf: np.ndarray, x: np.ndarray, y: np.ndarray, maps: np.ndarray) -> None:
    """Write depth and confidence [h, w] at columns x [W] and rows y [H], in their pixels, to maps [2, H, W].

    Depth is linear in inverse depth, and confidence linear, between four pixels of one surface
    (`consistency.sample_depth`), and else those of the nearest pixel, so that none lies between two surfaces. Outside,
    both are 0, as they are where they are unknown.
    """
    height, width = depth.shape
    left, across = _between(x, width)
    right = np.minimum(left + 1, width - 1)
    for start in range(0, len(y), ROWS):
        rows = slice(start, start + ROWS)
        top, down = _between(y[rows], height)
        at = [np.ix_(r, c) for r in (top, np.minimum(top + 1, height - 1)) for c in (left, right)]
        down = down[:, None]
        shares = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
        corners = [depth[index] for index in at]
        nearest = np.ix_(top + (down[:, 0] >= 0.5), left + (across >= 0.5))
        least, most = np.minimum.reduce(corners), np.maximum.reduce(corners)
        surface = (least > 0) & (most < EDGE * least)
        inverse = sum(share / np.where(surface, z, 1) for share, z in zip(shares, corners, strict=True))
        inside = ((y[rows] >= 0) & (y[rows] <= height))[:, None] & (x >= 0) & (x <= width) & (depth[nearest] > 0)
        mixed = sum(share * conf[index] for share, index in zip(shares, at, strict=True))
        sure = inside & (conf[nearest] > 0)
        maps[0, rows] = np.where(inside, np.where(surface, 1 / inverse, depth[nearest]), 0)
        maps[1, rows] = np.where(sure, np.where(surface, mixed, conf[nearest]), 0)


def _between(at: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel [N] before each place, and the share [N] of the one behind it; only the first of a single pixel."""
    low = np.clip(np.floor(at - 0.5).astype(np.int64), 0, max(size - 2, 0))
    return low, np.clip(at - 0.5 - low, 0, min(size - 1, 1))


def _places(large: Source, small: Source, axis: int, count: int) -> np.ndarray:
    """Where the first `count` pixel centres of a large picture lie along an axis (0: x, 1: y) of the small one."""
    original = (np.arange(count) + 0.5) * large.original_from_network[axis] + large.original_from_network[2 + axis]
    return (original - small.original_from_network[2 + axis]) / small.original_from_network[axis]


def _intrinsics(original: np.ndarray, sources: Sequence[Source]) -> np.ndarray:
    """Intrinsics [S, 3, 3] of the originals in the pixels of pictures made from them."""
    intrinsics = original.copy()
    for k, source in zip(intrinsics, sources, strict=True):
        sx, sy, ox, oy = source.original_from_network
        k[:2, 2] -= ox, oy
        k[:2] /= [[sx], [sy]]
    return intrinsics


def _canvas(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(H, W) that holds pictures of (w, h)."""
    return max(h for _, h in sizes), max(w for w, _ in sizes)


def _changed(name: str) -> InputError:
    return InputError(f"{name} cannot be read again as it was; did the input change during the run?")
