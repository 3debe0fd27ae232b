"""Pictures as they are looked at: turned as EXIF states, in memory and as files."""

from __future__ import annotations

import io
import logging
import math
from typing import Any, BinaryIO

from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.decoding import (
    ORIENTATION,
    TURNS,
    eight_bit,
    exif,
    is_large,
    on_white,
    open_image,
    own_pixel_limit,
    plain,
    shrunk_by,
)
from lean3r.inputs.notes import notes_of, restated, save

logger = logging.getLogger("lean3r")

JPEG_QUALITY = 95
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture of a file, turned by the EXIF orientation (1 to 8) that it states."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def decode_whole(file: BinaryIO, name: str, side: int) -> Image.Image:
    """Decode one picture file, upright, RGB, uncropped; its longer side has at least `side` pixels, if it had them.

    It comes at its own size, or at a half, a quarter or an eighth of that (rounded up to whole pixels) if the format
    decodes faster so. Its info holds what its file says besides, as it is true of an upright picture (notes.py). Raises
    InputError whose message is the reason, without the name.
    """
    return decode_sized(file, name, side)[0]


def decode_sized(file: BinaryIO, name: str, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """See `decode_whole`; with the (width, height) of the upright original."""
    with open_image(file) as image:
        orientation, focal = exif(image, name)
        width, height = image.size
        share = min(1.0, side / max(image.size))
        if not image.draft(None, (math.ceil(share * width), math.ceil(share * height))) and is_large(image):
            whole = plain(image, shrunk_by(share))
        else:
            whole = on_white(eight_bit(image))
        whole = turned(whole, orientation)
        whole.info = {**restated(notes_of(image), whole.size, is_whole=focal is not None)}
        return whole, (height, width) if orientation >= 5 else (width, height)


def upright(content: bytes) -> bytes:
    """A picture file unchanged, or re-encoded in its own format if EXIF states a rotation, with what it says besides;
    anything else unchanged."""
    file, is_picture = io.BytesIO(), False
    try:
        with own_pixel_limit(), open_image(io.BytesIO(content)) as image:
            is_picture = True
            # HEIC stays: lean3r reads it, and few other programs turn or open it.
            if image.format == "HEIF" or _stated_orientation(image) == 1:
                return content
            orientation, focal = exif(image, "a picture")
            image.load()  # turns some formats
            quality = {"quality": JPEG_QUALITY} if image.format in LOSSY else {}
            notes = {kind: note for kind, note in notes_of(image).items() if kind != "xmp" or image.format != "TIFF"}
            if profile := image.info.get("icc_profile"):  # that of grey or CMYK, too: the colours stay as they are
                notes["icc_profile"] = profile
            # A copy: the picture itself would save what its file says besides.
            copy = turned(image.copy(), orientation)
            save(copy, file, image.format or "", restated(notes, copy.size, is_whole=focal is not None), **quality)
    except InputError as error:
        if is_picture:
            logger.warning("a picture could not be rotated and keeps its EXIF orientation: %s", error)
        return content
    return file.getvalue()


def _stated_orientation(image: Image.Image) -> Any:
    if image.format == "PNG":
        image.load()  # EXIF may follow the pixels
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block raises anything
        return 1
