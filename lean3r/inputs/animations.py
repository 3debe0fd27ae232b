"""Animated pictures: files of picture formats that hold a film."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import BinaryIO

from PIL import Image

HEADS = (b"GIF8", b"\x89PNG", b"RIFF")
FILMS = ("GIF", "PNG")  # read as films; FFmpeg does not read animated WebP


def animation_of(opener: Callable[[], BinaryIO]) -> str | None:
    """`animation_in` a file that is opened for it."""
    try:
        with opener() as file:
            return animation_in(file)
    except Exception:  # of any kind, on damaged files: whoever decodes it says what is wrong
        return None


def animation_in(file: BinaryIO) -> str | None:
    """The format of an open file that holds several pictures, one after the other: GIF, PNG or WEBP; None of other
    files. It is read from its beginning, and stands there again."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            if not file.read(4).startswith(HEADS):
                return None
            file.seek(0)
            with Image.open(file, formats=("GIF", "PNG", "WEBP")) as image:
                return image.format if getattr(image, "is_animated", False) else None
    except Exception:  # as above
        return None
    finally:
        file.seek(0)
