"""Pictures in memory (PIL images, NumPy arrays, tensors) as picture files, so that they are read as files are."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.decoding import (
    BY_8_BIT,
    ORIENTATION,
    SELF_TURNING_FORMATS,
    TURNS,
    check_pixels,
    eight_bit,
    on_white,
    rgb_profile,
)
from lean3r.inputs.listing import Still

logger = logging.getLogger("lean3r")

PNG_LEVEL = 1
EXPECTED = "expected a PIL image, a NumPy array [H, W, 3] or [S, H, W, 3], or a tensor [3, H, W] or [S, 3, H, W]"


def separate(inputs: object) -> list[object]:
    """The inputs one by one: paths and pictures in memory; InputError for anything else."""
    single = isinstance(inputs, str | PathLike) or is_picture(inputs)
    if not single and not isinstance(inputs, Iterable):
        raise InputError(f"got {type(inputs).__name__} as the pictures; {EXPECTED}, or paths.")
    values = [inputs] if single else list(inputs)  # pyright: ignore[reportArgumentType]
    values = [Path(value) if isinstance(value, PathLike) else value for value in values]
    for value in values:
        if not (isinstance(value, str | Path) or is_picture(value)):
            raise InputError(f"got {type(value).__name__} as a picture; {EXPECTED}, or the path of a file.")
    return values


def is_picture(value: object) -> bool:
    """Whether a value is a picture, or several in one array, rather than the path of one."""
    return isinstance(value, Image.Image | np.ndarray) or _is_tensor(value)


def stills_of(value: object, first: int) -> list[Still]:
    """The picture files of a value in memory, numbered from `first`; InputError if it is not a picture."""
    if isinstance(value, Image.Image):
        return [Still(_name(value, first), lambda: _file(value), is_loose=False)]
    array = _channels_last(value) if _is_tensor(value) else np.asarray(value)
    shape = tuple(array.shape)
    pictures = array if array.ndim == 4 else array[None] if array.ndim in (2, 3) else None
    if pictures is None or not len(pictures) or (array.ndim > 2 and shape[-1] not in (1, 3, 4)):
        raise InputError(f"{describe(value)} is not a picture; {EXPECTED}.")
    values = [_eight_bit(picture, f"picture {first + i}") for i, picture in enumerate(pictures)]
    return [
        Still(f"picture_{first + i:04d}.png", lambda p=picture: _file(Image.fromarray(p)), is_loose=False)
        for i, picture in enumerate(values)
    ]


def describe(value: object) -> str:
    """A short description of an input, for messages; never the values of an array."""
    if not is_picture(value):
        return str(value)
    if isinstance(value, Image.Image):
        return f"a PIL image of {value.width}x{value.height}"
    return f"{'a tensor' if _is_tensor(value) else 'an array'} of shape {tuple(getattr(value, 'shape', ()))}"


def _is_tensor(value: object) -> bool:
    """Whether a value is a PyTorch tensor, without importing PyTorch."""
    return any(kind.__module__.startswith("torch") and kind.__name__ == "Tensor" for kind in type(value).__mro__)


def _channels_last(tensor: object) -> np.ndarray:
    import torch

    assert isinstance(tensor, torch.Tensor)
    try:
        array = tensor.detach().cpu()
        array = array.float() if array.is_floating_point() and array.itemsize < 4 else array  # NumPy has no bfloat16
        return (array if array.ndim < 3 else array.movedim(-3, -1)).numpy()
    except (TypeError, RuntimeError) as error:  # of tensors without data, or stored in other ways
        raise InputError(f"{describe(tensor)} cannot be read ({error}).") from error


def _eight_bit(picture: np.ndarray, what: str) -> np.ndarray:
    """[H, W] or [H, W, 3 or 4] uint8 from another number type."""
    picture = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(picture)
    if picture.dtype == np.uint16:
        return BY_8_BIT[picture]
    if not np.issubdtype(picture.dtype, np.floating):
        raise InputError(f"{what} is of type {picture.dtype}; expected uint8, uint16, or floats from 0 to 1.")
    low, high = float(picture.min(initial=0)), float(picture.max(initial=0))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise InputError(
            f"the values of {what} run from {low:g} to {high:g}; expected 0 to 1 (divide by 255, or use uint8)."
        )
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def pixels_of(value: object, what: str) -> np.ndarray:
    """The pixels [H, W, 3] uint8, upright, of one picture in memory; InputError if it is none."""
    if isinstance(value, Image.Image):
        check_pixels(value.size)
        turn = TURNS.get(value.getexif().get(ORIENTATION, 1)) if value.format not in SELF_TURNING_FORMATS else None
        plain = on_white(eight_bit(value))
        return np.asarray(plain if turn is None else plain.transpose(turn))
    if not is_picture(value):
        raise InputError(f"{what} is a {type(value).__name__}; {EXPECTED}.")
    array = _channels_last(value) if _is_tensor(value) else np.asarray(value)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or not array.size:
        raise InputError(f"{what}, {describe(value)}, is not one picture; {EXPECTED}.")
    array = _eight_bit(array, what)
    return array if array.ndim == 3 and array.shape[-1] == 3 else np.asarray(on_white(Image.fromarray(array)))


def _name(image: Image.Image, number: int) -> str:
    """`IMG_1.png` of an image that was opened from IMG_1.jpg, else by its number."""
    file = getattr(image, "filename", "")
    stem = PurePath(file).stem if isinstance(file, str) else ""
    return f"{stem}.png" if stem else f"picture_{number:04d}.png"


def _file(image: Image.Image) -> BinaryIO:
    """A picture as PNG, with its EXIF and the meaning of its colours; InputError if it cannot be read."""
    try:
        check_pixels(image.size)
        plain = on_white(eight_bit(image))
        file = io.BytesIO()
        plain.save(file, "PNG", compress_level=PNG_LEVEL, exif=_exif(image), icc_profile=rgb_profile(image))
    except InputError:
        raise
    except Exception as error:  # an image of a file that is damaged or gone raises anything
        raise InputError(f"this picture in memory cannot be read ({str(error) or 'is its file closed?'})") from error
    file.seek(0)
    return file


def _exif(image: Image.Image) -> bytes:
    """The EXIF of a decoded image, without an orientation that decoding has applied; empty if it is damaged."""
    try:
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())  # a copy: the image is the user's
        if image.format in SELF_TURNING_FORMATS:
            exif.pop(ORIENTATION, None)
        return exif.tobytes()
    except Exception as error:  # a damaged EXIF block raises anything; the picture itself may be sound
        logger.warning("the EXIF data of a picture in memory cannot be read (%s); it is taken as upright", error)
        return b""


def stills_of_all(values: Sequence[object]) -> list[Still]:
    """The picture files of several values in memory, numbered consecutively; InputError if an image is given twice."""
    images = [value for value in values if isinstance(value, Image.Image)]
    if len({id(image) for image in images}) < len(images):
        raise InputError("one PIL image is given twice; if it is a reader of several frames, give copies of them.")
    stills: list[Still] = []
    for value in values:
        stills += stills_of(value, len(stills))
    return stills
