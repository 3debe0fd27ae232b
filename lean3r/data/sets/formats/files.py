"""Reading pictures and maps of data sets: whatever is wrong with a file is an InputError that names it."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.decoding import FORMATS

# What libraries raise on files that are cut off, overwritten, or of another format.
_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    LookupError,
    SyntaxError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
MAX_UNPACKED, MAX_RATIO = 2**30, 100  # bytes of a packed text, and against those of its file


def read_image(path: Path) -> np.ndarray:
    """[H, W, 3] uint8 RGB as stored: cameras of data sets belong to stored pixels, so EXIF does not turn them."""
    with naming(path), Image.open(path, formats=FORMATS) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a stored picture, from its header."""
    with naming(path), Image.open(path, formats=FORMATS) as picture:
        return picture.size


def read_depth_png(path: Path, units_per_metre: float) -> np.ndarray:
    """[H, W] float32 from a PNG of 16-bit (or 32-bit) integers; 0 stays 0. Divides by `units_per_metre`."""
    with naming(path), Image.open(path, formats=FORMATS) as picture:
        values = np.asarray(picture)
    if values.ndim != 2:
        raise InputError(f"{path} has {values.shape[-1]} channels; expected a depth map of one")
    return (values / units_per_metre).astype(np.float32)


def read_npy(path: Path) -> np.ndarray:
    """[H, W] float32 from a .npy file."""
    with naming(path), open(path, "rb") as file:
        values = read_array(file)
        return np.asarray(values, dtype=np.float32).reshape(values.shape[-2:] if values.ndim > 2 else values.shape)


def read_array(file: BinaryIO) -> np.ndarray:
    """The array of an open .npy file; ValueError where it states more values than there are bytes."""
    start, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if math.prod(shape) * dtype.itemsize > end - file.tell():
        raise ValueError(f"it states an array {shape} of {dtype}, and ends before that")
    file.seek(start)
    return np.load(file, allow_pickle=False)


def read_gzip(path: Path) -> bytes:
    """The content of a gzipped text, of a size that a text can have."""
    with naming(path), gzip.open(path) as file:
        limit = min(MAX_UNPACKED, MAX_RATIO * path.stat().st_size + 2**20)
        content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes")
    return content


def inside(folder: Path, name: str) -> Path:
    """`folder / name`; InputError where that would be elsewhere."""
    parts = PurePosixPath(str(name).replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in str(name):
        raise InputError(f"{name!r} would lie outside {folder}; expected a name below it")
    return folder / parts


def read_pfm(path: Path) -> np.ndarray:
    """[H, W] or [H, W, 3] float32 from a portable float map, whose rows run from the bottom up."""
    with naming(path), open(path, "rb") as file:
        kind = file.readline().strip()
        width, height = (int(x) for x in file.readline().split())
        little = float(file.readline()) < 0
        channels = {b"Pf": 1, b"PF": 3}[kind]
        values = np.frombuffer(file.read(), "<f4" if little else ">f4").reshape(height, width, channels)
    return np.ascontiguousarray(values[::-1, :, 0] if channels == 1 else values[::-1]).astype(np.float32)


def write_pfm(path: Path, values: np.ndarray) -> None:
    """Write [H, W] float32 so that `read_pfm` gives it back."""
    height, width = values.shape
    header = f"Pf\n{width} {height}\n-1.0\n".encode()
    path.write_bytes(header + np.ascontiguousarray(values[::-1], "<f4").tobytes())


def read_text(path: Path) -> str:
    """The text of a file."""
    with naming(path):
        return path.read_text(encoding="utf-8")


def read_matrix(path: Path, rows: int, columns: int) -> np.ndarray:
    """[rows, columns] float64 from numbers in a text file; more of them are left out."""
    with naming(path):
        numbers = [float(x) for x in read_text(path).replace(",", " ").split()]
        return np.array(numbers[: rows * columns]).reshape(rows, columns)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, what goes wrong is an InputError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except _DAMAGED as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} is damaged or of another format ({reason})") from error
