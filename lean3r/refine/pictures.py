"""The original pictures, grey and shrunk, as files that the refining process reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from lean3r.inputs.masks import Masks
    from lean3r.inputs.pictures import Pictures
    from lean3r.types import Reconstruction, Source

# Pixels of the longer side at which frames of films are searched: more take longer, and hold no better. An office walk,
# enlarged to 1920 x 1280, as a stream: 640 6.4 cm in 86 s, 800 6.3 cm, 960 6.6 cm in 207 s, 1600 310 s and a third of
# its frames uncertain.
FRAME_SIDE = 640


class Size(NamedTuple):
    """That of a picture of which nothing else is known, in pixels."""

    width: int
    height: int
    timestamp_s: float | None = None


def scale_of(source: Source | Size, side: int) -> float:
    """Factor by which a picture is shrunk, to `side` pixels at most, or a frame of a film to FRAME_SIDE."""
    if source.timestamp_s is not None:
        side = min(side, FRAME_SIDE)
    return min(1.0, side / max(source.width, source.height))


def size_of(source: Source | Size, scale: float) -> tuple[int, int]:
    """(width, height) of the shrunk picture; fractions of a pixel are cut off."""
    return max(1, math.floor(source.width * scale + 1e-6)), max(1, math.floor(source.height * scale + 1e-6))


def write_pictures(
    reconstruction: Reconstruction, pictures: Pictures | None, side: int, files: list[Path]
) -> list[bool]:
    """Write one picture for each view, from the originals, or from the network's pictures if there are none.

    Returns which views could be read. A pixel (x, y) of an original lies at `scale_of` times (x, y).
    """
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    if pictures is None:
        for view, file in enumerate(files):
            _seen(reconstruction, view, scale_of(reconstruction.sources[view], side)).save(file)
        return [True] * len(files)
    return write_originals(reconstruction.sources, pictures, side, files)


def write_originals(sources: Sequence[Source], pictures: Pictures, side: int, files: Sequence[Path]) -> list[bool]:
    """Write the pictures of these sources, into folders that exist; returns which could be read."""
    view_of = {source.name: view for view, source in enumerate(sources)}
    written = [False] * len(files)
    for name, image in pictures.read(view_of, side):
        view = view_of[name]
        if (grey := searched(image, sources[view], side)) is not None:
            grey.save(files[view])
            written[view] = True
    return written


def write_masks(masks: Masks, sources: Sequence[Source], side: int, files: list[Path]) -> None:
    """Write the mask of each view's shrunk picture; a white one where it has none, as COLMAP needs all or none."""
    for source, file in zip(sources, files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        scale = scale_of(source, side)
        size = size_of(source, scale)
        counts = masks.resample(source, (0, 0, size[0] / scale, size[1] / scale), size)
        Image.fromarray(counts.astype(np.uint8) * 255).save(file)


def searched(image: Image.Image, source: Source | Size, side: int) -> Image.Image | None:
    """The picture of a source as it is searched, at most `side` pixels long; some formats decode at a half, a quarter
    or an eighth. None if it is another picture: its size does not fit."""
    decoded = round(source.width / image.width)
    is_same = (math.ceil(source.width / decoded), math.ceil(source.height / decoded)) == image.size
    return shrunk(image, source, scale_of(source, side), decoded) if is_same else None


def shrunk(image: Image.Image, source: Source | Size, scale: float, decoded: int) -> Image.Image:
    """The picture of a source, decoded so many times smaller, as it is searched: grey, shrunk by `scale`."""
    width, height = size_of(source, scale)
    grey = image.convert("L")
    if (width, height) == image.size and decoded == 1:
        return grey
    right, lower = min(image.width, width / scale / decoded), min(image.height, height / scale / decoded)
    return grey.resize((width, height), Image.Resampling.LANCZOS, box=(0, 0, right, lower))


def _seen(reconstruction: Reconstruction, view: int, scale: float) -> Image.Image:
    """The network's picture of a view, in pixels of the (shrunk) original; grey outside it."""
    source = reconstruction.sources[view]
    sx, sy, ox, oy = source.original_from_network
    grey = np.where(reconstruction.mask[view], reconstruction.images[view].mean(-1), 128).astype(np.uint8)
    affine = (1 / scale / sx, 0, -ox / sx, 0, 1 / scale / sy, -oy / sy)
    size = size_of(source, scale)
    return Image.fromarray(grey).transform(
        size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC, fillcolor=128
    )
