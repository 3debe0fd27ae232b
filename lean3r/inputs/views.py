"""Pictures -> network input: decode, turn upright, scale and crop, pad, and record how pixels map back.

Colours are those of sRGB: a picture with another ICC profile is converted; transparency is composited on white; 16-bit
values are divided by 257; for animations and multi-page files the first picture is used, with a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from lean3r.errors import InputError, UsageError
from lean3r.inputs.decoding import (
    DIAGONAL_35MM,
    TURNS,
    check_pixels,
    eight_bit,
    exif,
    is_large,
    on_white,
    open_image,
    plain,
    rgb_profile,
    shrunk_by,
)
from lean3r.inputs.gravity import measured_up
from lean3r.inputs.notes import in_srgb
from lean3r.inputs.video import Clip, Frame
from lean3r.types import Source, Views

logger = logging.getLogger("lean3r")

MIN_SIDE = 16
MAX_RESOLUTION = 4096
MAX_ASPECT = 4.0
PAD_VALUE = 0.5

SizeOf = Callable[[int, int], tuple[int, int]]
"""From the (width, height) of an original, upright, to the (W, H) of its smaller picture."""


@dataclass(frozen=True)
class Picture:
    """One picture ready for the network: `pixels` [H, W, 3] uint8 upright RGB; `source` knows the original's
    size, name and focal length and maps network pixels back to it."""

    source: Source
    pixels: np.ndarray


@lru_cache(maxsize=256)
def network_size(width: int, height: int, resolution: int, patch: int) -> tuple[int, int]:
    """(W, H) in pixels, multiples of `patch`, for a picture of the given size.

    W * H stays within 8 % of resolution^2 and the picture covers it with less than one patch cropped on each
    side, wherever whole patches allow both (always up to 4:1 from 12 patches a side on).
    """
    target = (resolution / patch) ** 2
    if resolution < 3 * patch:
        raise UsageError(f"resolution {resolution} is too small; expected at least {3 * patch} (3 patches of {patch})")
    if resolution > MAX_RESOLUTION:
        raise UsageError(f"resolution {resolution} is too large; expected at most {MAX_RESOLUTION}")

    def cost(grid: tuple[int, int]) -> tuple[bool, float]:
        cols, rows = grid
        aspect_error = math.log(cols / rows * height / width)
        area_error = math.log(cols * rows / target)
        cropped = max(cols, rows * width / height) - cols + max(rows, cols * height / width) - rows
        is_loose = abs(cols * rows / target - 1) > 0.08 or cropped >= 2
        return is_loose, abs(aspect_error) + 0.5 * abs(area_error)

    longest = math.ceil(2.2 * resolution / patch)
    cols, rows = min(((c, r) for c in range(3, longest + 1) for r in range(3, longest + 1)), key=cost)
    return cols * patch, rows * patch


def whole_size(width: int, height: int, side: int | None = None, most: float = 1.0) -> tuple[int, int]:
    """(W, H) in pixels of an uncropped picture with the area of a square of `side` pixels (None: any), but not more
    than `most` times its own sides."""
    own = math.sqrt(width * height)
    times = most if side is None or side >= most * own else side / own
    return max(1, round(width * times)), max(1, round(height * times))


def assemble(pictures: Sequence[Picture], patch: int) -> Views:
    """Stack pictures of S sizes into images [1, S, 3, H, W], padded by whole patches as evenly as possible.

    The odd patch goes to the bottom and to the right. Sources are shifted with it; the mask is None without padding.
    """
    height = max(p.pixels.shape[0] for p in pictures)
    width = max(p.pixels.shape[1] for p in pictures)
    images = torch.full((1, len(pictures), 3, height, width), PAD_VALUE)
    mask = torch.zeros((1, len(pictures), height, width), dtype=torch.bool)
    sources = []
    for i, picture in enumerate(pictures):
        h, w = picture.pixels.shape[:2]
        top, left = (height - h) // patch // 2 * patch, (width - w) // patch // 2 * patch
        pixels = torch.from_numpy(picture.pixels).permute(2, 0, 1)
        images[0, i, :, top : top + h, left : left + w] = pixels.float() / 255
        mask[0, i, top : top + h, left : left + w] = True
        sx, sy, ox, oy = picture.source.original_from_network
        moved = (sx, sy, ox - sx * left, oy - sy * top)
        sources.append(replace(picture.source, original_from_network=moved))
    return Views(images, None if bool(mask.all()) else mask, tuple(sources))


def decode_picture(file: BinaryIO, name: str, size_of: SizeOf) -> Picture:
    """Decode one picture file, whatever its suffix, at some size.

    Raises InputError whose message is the reason, without the name.
    """
    with open_image(file) as image:
        return _read(image, name, size_of)


def _read(image: Image.Image, name: str, size_of: SizeOf) -> Picture:
    """From an open, still undecoded image to a Picture."""
    orientation, focal_35mm = exif(image, name)
    up = measured_up(image)
    stored_width, stored_height = image.size
    is_turned = orientation >= 5
    width, height = (stored_height, stored_width) if is_turned else (stored_width, stored_height)
    check_shape(width, height)
    if image.format in ("GIF", "WEBP", "TIFF", "PNG", "AVIF") and getattr(image, "is_animated", False):
        logger.warning("%s holds several pictures; only the first is used", name)
        image.seek(0)

    # JPEG decodes at 1/2, 1/4 or 1/8 almost for free; at twice the target size, resizing decides the quality.
    target = size_of(width, height)
    cover = max(target[0] / width, target[1] / height)
    drafted = image.draft(None, (math.ceil(2 * cover * stored_width), math.ceil(2 * cover * stored_height)))
    # A side that the fraction does not divide ends in a part of a pixel: image.size would be a little too large.
    shrink = drafted[1][2] / stored_width if drafted else 1.0
    image.load()
    profile = rgb_profile(image)
    if is_large(image):
        factor = shrunk_by(2 * cover / shrink)
        image, shrink = plain(image, factor), shrink / factor
    pixels, transform = fit(eight_bit(image), (width, height), orientation, target, shrink)
    if profile is not None:
        pixels = np.array(in_srgb(Image.fromarray(pixels), profile))
    focal_px = None if focal_35mm is None else focal_35mm / DIAGONAL_35MM * math.hypot(width, height)
    return Picture(Source(name, width, height, transform, focal_px, None, orientation, up), pixels)


def fit(
    image: Image.Image, size: tuple[int, int], orientation: int, target: tuple[int, int], shrink: float = 1.0
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Scale by one factor to `target` (W, H), crop the centre, turn upright: pixels [H, W, 3] uint8, and
    original_from_network.

    `size` is the (width, height) of the upright original; `image` is stored as `orientation` (EXIF, 1 to 8) says,
    at `shrink` times that size. The crop box is not rounded to pixels, so the transform is exact.
    """
    width, height = size
    columns, rows = target
    scale = min(width / columns, height / rows)
    transform = (scale, scale, (width - columns * scale) / 2, (height - rows * scale) / 2)

    # A centred crop commutes with rotation: crop and shrink as stored, turn the small result.
    if orientation >= 5:
        width, height, columns, rows = height, width, rows, columns
    centre_x, centre_y, half_x, half_y = width / 2, height / 2, columns * scale / 2, rows * scale / 2
    box = (
        max(0.0, (centre_x - half_x) * shrink),
        max(0.0, (centre_y - half_y) * shrink),
        min(float(image.width), (centre_x + half_x) * shrink),
        min(float(image.height), (centre_y + half_y) * shrink),
    )
    image = on_white(image.resize((columns, rows), Image.Resampling.BICUBIC, box=box))
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    return np.array(image), transform


def check_shape(width: int, height: int) -> None:
    """Raise InputError with the reason if a picture of this size is unusable."""
    if min(width, height) < MIN_SIDE:
        raise InputError(f"too small: {width}x{height} pixels; each side needs at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        ratio = max(width, height) / min(width, height)
        raise InputError(f"too elongated: {width}x{height} is {ratio:.1f}:1, at most {MAX_ASPECT:g}:1; crop it")


def decode_frame(frame: Frame, clip: Clip, size_of: SizeOf) -> Picture:
    """The picture of a video frame at some size; InputError whose message is the reason if it is unusable."""
    name, image, orientation, bars = frame
    check_pixels(image.size)
    size = (image.height, image.width) if orientation >= 5 else image.size
    check_shape(*size)
    pixels, transform = fit(image, size, orientation, size_of(*size))
    edges = bars.turned(orientation).edges
    return Picture(Source(name, *size, transform, timestamp_s=clip.times_s.get(name), bars=edges), pixels)
