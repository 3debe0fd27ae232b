"""Pictures as they are looked at: turned as EXIF states, in memory and as files."""

from __future__ import annotations

import io
import logging
from typing import Any

from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.decoding import ORIENTATION, TURNS, exif, open_image, own_pixel_limit

logger = logging.getLogger("lean3r")

JPEG_QUALITY = 95
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture of a file, turned by the EXIF orientation (1 to 8) that it states."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def upright(content: bytes) -> bytes:
    """A picture file unchanged, or re-encoded in its own format if EXIF states a rotation; anything else unchanged."""
    file, is_picture = io.BytesIO(), False
    try:
        with own_pixel_limit(), open_image(io.BytesIO(content)) as image:
            is_picture = True
            # HEIC stays: lean3r reads it, and few other programs turn or open it.
            if image.format == "HEIF" or _stated_orientation(image) == 1:
                return content
            orientation, _ = exif(image, "a picture")
            image.load()  # turns some formats
            quality = {"quality": JPEG_QUALITY} if image.format in LOSSY else {}
            profile = image.info.get("icc_profile")
            # A copy: the picture itself would save what its file says besides.
            turned(image.copy(), orientation).save(file, image.format, exif=b"", icc_profile=profile, **quality)
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
