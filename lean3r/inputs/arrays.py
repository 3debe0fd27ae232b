"""Pictures in memory (PIL images, NumPy arrays, tensors) as picture files, so that all that reads files reads them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.decoding import BY_8_BIT, ORIENTATION, SELF_TURNING_FORMATS, eight_bit, on_white
from lean3r.inputs.listing import Still

if TYPE_CHECKING:
    pass

PNG_LEVEL = 1
EXPECTED = "expected a PIL image, a NumPy array [H, W, 3] or [S, H, W, 3], or a tensor [3, H, W] or [S, 3, H, W]"


def separate(inputs: object) -> list[object]:
    """What was given, one by one: paths and pictures in memory; InputError where something is neither."""
    single = isinstance(inputs, str | PurePath) or is_picture(inputs)
    if not single and not isinstance(inputs, Iterable):
        raise InputError(f"pictures are given as {type(inputs).__name__}; {EXPECTED}, or paths.")
    values = [inputs] if single else list(inputs)  # pyright: ignore[reportArgumentType]
    for value in values:
        if not (isinstance(value, str | PurePath) or is_picture(value)):
            raise InputError(f"a picture is given as {type(value).__name__}; {EXPECTED}, or the path of a file.")
    return values


def is_picture(value: object) -> bool:
    """Whether a value is a picture, or several in one array, rather than the path of one."""
    return isinstance(value, Image.Image | np.ndarray) or _is_tensor(value)


def stills_of(value: object, first: int) -> list[Still]:
    """The picture files of a value in memory, numbered from `first`; InputError where it is no picture."""
    if isinstance(value, Image.Image):
        return [Still(_name(value, first), lambda: _file(value), is_loose=False)]
    array = _channels_last(value) if _is_tensor(value) else np.asarray(value)
    shape = tuple(array.shape)
    pictures = array if array.ndim == 4 else array[None] if array.ndim in (2, 3) else None
    if pictures is None or not len(pictures) or (array.ndim > 2 and shape[-1] not in (1, 3, 4)):
        raise InputError(f"{describe(value)} is no picture; {EXPECTED}.")
    values = [_eight_bit(picture, f"picture {first + i}") for i, picture in enumerate(pictures)]
    return [
        Still(f"picture_{first + i:04d}.png", lambda p=picture: _file(Image.fromarray(p)), is_loose=False)
        for i, picture in enumerate(values)
    ]


def describe(value: object) -> str:
    """What was given, for a message: never the values of an array."""
    if not is_picture(value):
        return str(value)
    if isinstance(value, Image.Image):
        return f"a PIL image of {value.width}x{value.height}"
    return f"{'a tensor' if _is_tensor(value) else 'an array'} of shape {tuple(getattr(value, 'shape', ()))}"


def _is_tensor(value: object) -> bool:
    """Whether a value is a tensor of PyTorch's, which need not be imported to know."""
    return any(kind.__module__.startswith("torch") and kind.__name__ == "Tensor" for kind in type(value).__mro__)


def _channels_last(tensor: object) -> np.ndarray:
    import torch

    assert isinstance(tensor, torch.Tensor)
    array = tensor.detach().cpu()
    array = array.float() if array.dtype in (torch.bfloat16, torch.float16) else array
    return (array if array.ndim < 3 else array.movedim(-3, -1)).numpy()


def _eight_bit(picture: np.ndarray, what: str) -> np.ndarray:
    """[H, W] or [H, W, 3 or 4] uint8 of numbers in another form."""
    picture = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(picture)
    if picture.dtype == np.uint16:
        return BY_8_BIT[picture]
    if not np.issubdtype(picture.dtype, np.floating):
        raise InputError(f"{what} has numbers of type {picture.dtype}; expected uint8, uint16, or floats from 0 to 1.")
    low, high = float(picture.min(initial=0)), float(picture.max(initial=0))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise InputError(f"{what} has floats from {low:g} to {high:g}; expected 0 to 1 (divide by 255, or use uint8).")
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _name(image: Image.Image, number: int) -> str:
    """`IMG_1.png` of an image that was opened from IMG_1.jpg, else by its number."""
    file = getattr(image, "filename", "")
    stem = PurePath(file).stem if isinstance(file, str) else ""
    return f"{stem}.png" if stem else f"picture_{number:04d}.png"


def _file(image: Image.Image) -> BinaryIO:
    """A picture as PNG, with its EXIF; InputError where it cannot be read."""
    try:
        exif = image.getexif()
        if image.format in SELF_TURNING_FORMATS:
            exif.pop(ORIENTATION, None)
        plain = on_white(eight_bit(image))
        file = io.BytesIO()
        plain.save(file, "PNG", compress_level=PNG_LEVEL, exif=exif.tobytes())
    except InputError:
        raise
    except Exception as error:  # an image of a file that is damaged or gone raises anything
        raise InputError(f"this picture in memory cannot be read ({error})") from error
    file.seek(0)
    return file


def numbered(values: Sequence[object]) -> list[Still]:
    """The picture files of several values in memory, numbered on."""
    stills: list[Still] = []
    for value in values:
        stills += stills_of(value, len(stills))
    return stills
