"""Checks on pictures alone: views without content, repeated pictures, and sky.

Plain rules, no network, on pictures shrunk to about the input size of nano, so that they hold at any resolution.
The thresholds lie between values measured on real scenes and on synthetic ones (benchmarks/trust.py).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Emptiness = Literal["no-content", "noise"]

AREA = 240 * 240  # pixels; pictures are shrunk to this size
STEP = 4.0  # grey levels between neighbours that count as structure
LEAST_STRUCTURE = 0.02  # share of such pixels; real scenes have 0.43 and more, skies and walls alone below 0.01
LEAST_MEMORY = 0.4  # correlation of neighbouring pixels; real scenes have 0.7 and more, noise 0.2 and less
SAME = 3.0  # grey levels (root mean square) within which two pictures differ only by compression
LEAST_SKY = 0.015  # of the picture, for one region
SMOOTH, SMOOTHEST, ROUGHEST = 0.5, 0.7, 2.0  # mean steps of a region of sky, white and blue, and the largest within


def emptiness(image: np.ndarray, counts: np.ndarray) -> Emptiness | None:
    """Why a picture [H, W, 3] uint8 has no usable content among the pixels that `counts` [H, W] bool selects; None if
    it has."""
    image, counts = _shrunk(image, counts)
    grey = image @ np.full(3, 1 / 3, np.float32)
    right, down = counts[:, 1:] & counts[:, :-1], counts[1:] & counts[:-1]
    steps = np.concatenate([np.abs(np.diff(grey, axis=1))[right], np.abs(np.diff(grey, axis=0))[down]])
    if not len(steps) or (steps > STEP).mean() < LEAST_STRUCTURE:
        return "no-content"
    centred = grey - grey[counts].mean()
    products = (centred[:, 1:] * centred[:, :-1])[right].mean(), (centred[1:] * centred[:-1])[down].mean()
    return "noise" if min(products) < LEAST_MEMORY * centred[counts].var() else None


def repeats(images: np.ndarray) -> np.ndarray:
    """For each of the pictures [S, H, W, 3] uint8, the index [S] of the first identical one, or its own."""
    small = np.stack([image[::4, ::4].astype(np.float32) for image in images])
    first = np.arange(len(images))
    for view in range(len(images)):
        for other in np.flatnonzero(first[:view] == np.arange(view)):
            if np.sqrt(np.square(small[view] - small[other]).mean()) < SAME:
                first[view] = other
                break
    return first


def sky(image: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sky mask [H, W] bool of an upright picture [H, W, 3] uint8, within the pixels that `counts` [H, W] selects.

    Sky is a region without texture that reaches the upper border and is bright or blue. Walls and ceilings show
    surface texture unless they are overexposed. Clouds with sharp edges are not found.
    """
    small, inside = _shrunk(image, counts)
    grey, blue = small.mean(-1), small[..., 2] - small[..., 0]
    steps = np.maximum(*(np.abs(np.diff(_blur(grey), axis=a, prepend=_first(_blur(grey), a))) for a in (0, 1)))
    allowed = inside & (steps < ROUGHEST) & (blue > -12) & ((grey > 185) | (blue > 0.4 * grey))
    rows = np.flatnonzero(inside.any(axis=1))
    left = np.zeros_like(allowed)
    left[rows[:2]] = allowed[rows[:2]]
    sky = np.zeros_like(allowed)
    while left.any():
        seed = np.zeros_like(allowed)
        seed.flat[np.flatnonzero(left)[0]] = True
        region = _flood(seed, allowed)
        left &= ~region
        level, tint = grey[region].mean(), blue[region].mean()
        limit = SMOOTHEST if tint > 0.3 * level or level > 245 else SMOOTH
        is_sky = (level > 200 or tint > 0.45 * level) and steps[region].mean() < limit
        if is_sky and region.sum() >= LEAST_SKY * inside.sum():
            # At its border, the sky is blurred into the foreground.
            sky |= region | (_grown(region, 1) & inside & (grey > 0.9 * level))
    rows, cols = ((np.arange(n) * m) // n for n, m in zip(image.shape[:2], sky.shape, strict=True))
    return sky[np.ix_(rows, cols)] & counts


def _shrunk(image: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture, float32, and its mask, shrunk by an integer factor."""
    factor = max(1, round((counts.size / AREA) ** 0.5))
    if factor == 1:
        return image.astype(np.float32), counts
    import torch  # late: whoever only lists and decodes pictures does without it
    from torch.nn.functional import interpolate

    size = tuple(max(1, n // factor) for n in counts.shape)
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    share = torch.tensor(counts)[None, None].float()
    small = interpolate(pixels, size, mode="area")[0].permute(1, 2, 0).numpy()
    return small, interpolate(share, size, mode="area")[0, 0].numpy() > 0.99


def _first(values: np.ndarray, axis: int) -> np.ndarray:
    return np.take(values, [0], axis=axis)


def _blur(grey: np.ndarray) -> np.ndarray:
    """Means of 3 x 3 pixels."""
    padded = np.pad(grey, 1, mode="edge")
    height, width = grey.shape
    return np.mean([padded[r : r + height, c : c + width] for r in range(3) for c in range(3)], axis=0)


def _grown(region: np.ndarray, pixels: int) -> np.ndarray:
    for _ in range(pixels):
        padded = np.pad(region, 1)
        region = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return region


def _flood(seed: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed pixels [H, W] that are connected to the seed along rows and columns."""
    region, before = seed & allowed, -1
    while region.sum() > before:
        before = region.sum()
        for _ in range(2):
            # Whole runs of a row at a time, then of the columns.
            run = np.cumsum(~np.pad(allowed, ((0, 0), (1, 0)))).reshape(len(allowed), -1)[:, 1:]
            reached = np.bincount(run[region], minlength=run.max() + 1) > 0
            region, allowed = (reached[run] & allowed).T, allowed.T
    return region
