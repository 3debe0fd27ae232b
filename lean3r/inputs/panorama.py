"""Pictures of all directions, as cameras with two lenses take them: known by their look, and cut into pictures of a
usual lens, which is what networks and refinement know."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import BinaryIO

import numpy as np
from PIL import Image

from lean3r.inputs.decoding import DIAGONAL_35MM, EXIF, EXIF_HEIGHT, EXIF_WIDTH, FOCAL_35MM, own_pixel_limit
from lean3r.inputs.upright import JPEG_QUALITY, decode_whole

HEADINGS_DEG = (0, 60, 120, 180, 240, 300)  # to the right of the middle
FOCAL_MM = 17  # of a cut, as EXIF states it: 91 degrees across: neighbours overlap by a third
SHAPE = (4, 3)
TWO_TO_ONE = 0.005  # by which the sides may differ from that
LOOKED_AT = (128, 64)  # pixels in which a picture is judged
TEXTURE = 8.0  # least contrast of the first column
# How far the last column may differ from it: over neighbouring columns at edges of things, and over the usual column.
ALIKE, UNLIKE = 1.5, 0.5
POLE = 0.3  # most that neighbouring pixels of the first and last row may differ, over those of the usual row
OF_THE_WHOLE = 0x927C, 0x920A  # EXIF that does not hold for a part: notes of the maker, the focal length of a lens
NOTE = (
    "panoramas of 360 degrees (%d): each is cut into %d pictures of a usual lens, all around, called "
    "NAME_000deg.jpg and so on"
)
CELL = 16  # pixels of a cut between which the bent grid is straight

Opener = Callable[[], BinaryIO]


def cuts_of(name: str, opener: Opener, header: Opener | None = None) -> list[tuple[str, Opener]]:
    """The names of the pictures that a panorama of 360 by 180 degrees is cut into, with what opens them as JPEG files;
    none of other pictures, of which the first bytes are read, by `header` if that is cheaper."""
    try:
        with own_pixel_limit():
            with (header or opener)() as file, Image.open(file, formats=("JPEG", "PNG", "TIFF", "WEBP")) as image:
                if not has_shape(image.size):
                    return []
            with opener() as file:
                small = decode_whole(file, name, 4 * LOOKED_AT[0])
    except Exception:  # of any kind, on damaged files: whoever decodes it says what is wrong
        return []
    if not is_panorama(small):
        return []
    panorama, stem = _Panorama(name, opener), name.rpartition(".")[0] or name
    return [(f"{stem}_{heading:03d}deg.jpg", partial(panorama.cut, heading)) for heading in HEADINGS_DEG]


def has_shape(size: tuple[int, int]) -> bool:
    """Whether a (width, height) is that of 360 by 180 degrees."""
    return abs(size[0] / size[1] / 2 - 1) <= TWO_TO_ONE


def is_panorama(image: Image.Image) -> bool:
    """Whether a picture twice as wide as high shows all directions: its left edge goes on at its right one, with some
    texture, and its first and last row show a single point each, above and below the camera."""
    pixels = np.asarray(image.convert("RGB").resize(LOOKED_AT, Image.Resampling.BOX)).astype(float)
    edge, seam = pixels[:, 0], np.abs(pixels[:, 0] - pixels[:, -1]).mean()
    steps = np.abs(np.diff(pixels, axis=1)).mean(axis=2)
    if edge.std(axis=0).mean() < TEXTURE or seam > ALIKE * np.quantile(steps.mean(axis=0), 0.9):
        return False
    if seam > UNLIKE * np.median(np.abs(pixels - edge[:, None]).mean(axis=(0, 2))):
        return False
    rows = steps.mean(axis=1)
    return bool(max(rows[0], rows[-1]) < POLE * np.median(rows))


class _Panorama:
    """A panorama of which the pictures are cut on demand. The last one that was decoded is held: its cuts are read one
    after the other."""

    _held: tuple[_Panorama, Image.Image] | None = None
    _lock = threading.Lock()

    def __init__(self, name: str, opener: Opener) -> None:
        self._name, self._open = name, opener

    def cut(self, heading_deg: int) -> BinaryIO:
        """What is seen in a direction, as a JPEG file with its focal length; InputError if it cannot be read."""
        with _Panorama._lock:
            whole = self._whole()
        turned = Image.fromarray(np.roll(np.asarray(whole), -round(whole.width * heading_deg / 360), axis=1))
        picture = turned.transform(*_mesh(whole.size), resample=Image.Resampling.BICUBIC)
        exif = whole.getexif()
        of_photo = exif.get_ifd(EXIF)
        for tag in OF_THE_WHOLE:
            of_photo.pop(tag, None)
        of_photo |= {FOCAL_35MM: FOCAL_MM, EXIF_WIDTH: picture.width, EXIF_HEIGHT: picture.height}
        file = io.BytesIO()
        profile = whole.info.get("icc_profile")
        picture.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0, exif=exif, icc_profile=profile)
        file.seek(0)
        return file

    def _whole(self) -> Image.Image:
        held = _Panorama._held
        if held is None or held[0] is not self:
            with own_pixel_limit(), self._open() as file:
                held = _Panorama._held = self, decode_whole(file, self._name, 1 << 30)
        return held[1]


def _mesh(size: tuple[int, int]) -> tuple[tuple[int, int], Image.Transform, list[tuple[tuple[int, ...], list[float]]]]:
    """How Pillow cuts what is seen straight ahead out of a panorama of this size, as sharp in its middle: the size of
    the cut, and its cells with the corners of each in the panorama (from the upper left one, down first)."""
    focal = size[0] / (2 * math.pi)
    width, height = (2 * round(focal * DIAGONAL_35MM / FOCAL_MM * side / math.hypot(*SHAPE) / 2) for side in SHAPE)
    columns, rows = (np.minimum(np.arange(0, side + CELL, CELL), side) for side in (width, height))
    right, down = np.meshgrid((columns - width / 2) / focal, (rows - height / 2) / focal)
    across = (np.arctan2(right, 1) / (2 * math.pi) + 0.5) * size[0]
    below = (np.arctan2(down, np.hypot(right, 1)) / math.pi + 0.5) * size[1]
    corners = np.stack([across, below], -1)
    ends = [corners[:-1, :-1], corners[1:, :-1], corners[1:, 1:], corners[:-1, 1:]]
    quads = np.concatenate(ends, -1).reshape(-1, 8).tolist()
    boxes = [(left, top, end, low) for top, low in pairwise(rows.tolist()) for left, end in pairwise(columns.tolist())]
    return (width, height), Image.Transform.MESH, list(zip(boxes, quads, strict=True))
