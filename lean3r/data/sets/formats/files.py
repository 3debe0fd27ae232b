"""Read pictures, maps and text of data sets; a file that cannot be read raises InputError with its name."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from zipfile import BadZipFile, ZipFile

import numpy as np

from lean3r.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Errors of libraries for files that are truncated, overwritten, or of another format.
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
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
MAX_UNPACKED, MAX_RATIO = 2**30, 100  # limits for unpacked text: bytes, and ratio to the bytes of its file


@contextmanager
def open_picture(path: Path) -> Iterator[Image]:
    """Open a picture without decoding it. Pillow is imported here: training on the synthetic world needs none."""
    from PIL import Image

    from lean3r.inputs.decoding import FORMATS

    with naming(path, Image.DecompressionBombError), Image.open(path, formats=FORMATS) as picture:
        yield picture


def read_image(path: Path) -> np.ndarray:
    """Read RGB [H, W, 3] uint8 as stored: cameras of data sets are for these pixels, so EXIF is ignored."""
    with open_picture(path) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a stored picture, from its header."""
    with open_picture(path) as picture:
        return picture.size


def read_depth_png(path: Path, units_per_metre: float) -> np.ndarray:
    """Read a PNG of 16-bit or 32-bit integers as [H, W] float32, divided by `units_per_metre`."""
    with open_picture(path) as picture:
        values = np.asarray(picture)
    if values.ndim != 2:
        raise InputError(f"{path} has {values.shape[-1]} channels; expected a depth map with one")
    return (values / units_per_metre).astype(np.float32)


def read_npy(path: Path) -> np.ndarray:
    """Read [H, W] float32 from a .npy file."""
    with naming(path), open(path, "rb") as file:
        values = read_array(file)
        return np.asarray(values, dtype=np.float32).reshape(values.shape[-2:] if values.ndim > 2 else values.shape)


def read_array(file: BinaryIO) -> np.ndarray:
    """Read the array of an open .npy file; ValueError if its header states more values than the file has."""
    start, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(start)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if math.prod(shape) * dtype.itemsize > end - file.tell():
        raise ValueError(f"its header states an array {shape} of {dtype}, but the file ends before that")
    file.seek(start)
    return np.load(file, allow_pickle=False)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file; InputError if they unpack to more than MAX_UNPACKED bytes."""
    with naming(path, BadZipFile), ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > MAX_UNPACKED:
            raise ValueError(f"it unpacks to {size:,} bytes")
        members = archive.namelist()
        return {name.removesuffix(".npy"): read_array(io.BytesIO(archive.read(name))) for name in members}


def read_gzip(path: Path) -> bytes:
    """Read a gzipped text; InputError if it unpacks to more than MAX_UNPACKED bytes or MAX_RATIO times its file."""
    with naming(path), gzip.open(path) as file:
        limit = min(MAX_UNPACKED, MAX_RATIO * path.stat().st_size + 2**20)
        content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"it unpacks to more than {limit:,} bytes")
    return content


def inside(folder: Path, name: str) -> Path:
    """`folder / name`; InputError if that is outside the folder."""
    parts = PurePosixPath(str(name).replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in str(name):
        raise InputError(f"{name!r} is outside {folder}; expected a path below it")
    return folder / parts


def present(paths: Iterable[Path]) -> set[Path]:
    """Those of the paths that exist; folders are listed once, which is quicker than asking for each of their files."""
    wanted = set(paths)
    names = {folder: set(os.listdir(folder)) if folder.is_dir() else () for folder in {p.parent for p in wanted}}
    return {path for path in wanted if path.name in names[path.parent]}


def read_pfm(path: Path) -> np.ndarray:
    """Read a portable float map, whose rows are stored from the bottom up, as [H, W] or [H, W, 3] float32."""
    with naming(path), open(path, "rb") as file:
        kind = file.readline().strip()
        width, height = (int(x) for x in file.readline().split())
        little = float(file.readline()) < 0
        channels = {b"Pf": 1, b"PF": 3}[kind]
        values = np.frombuffer(file.read(), "<f4" if little else ">f4").reshape(height, width, channels)
    return np.ascontiguousarray(values[::-1, :, 0] if channels == 1 else values[::-1]).astype(np.float32)


def write_pfm(path: Path, values: np.ndarray) -> None:
    """Write [H, W] float32 as a portable float map; see `read_pfm`."""
    height, width = values.shape
    header = f"Pf\n{width} {height}\n-1.0\n".encode()
    path.write_bytes(header + np.ascontiguousarray(values[::-1], "<f4").tobytes())


def read_text(path: Path) -> str:
    """Read a UTF-8 text file."""
    with naming(path):
        return path.read_text(encoding="utf-8")


def read_matrix(path: Path, rows: int, columns: int) -> np.ndarray:
    """Read [rows, columns] float64 from the first numbers of a text file."""
    with naming(path):
        numbers = [float(x) for x in read_text(path).replace(",", " ").split()]
        return np.array(numbers[: rows * columns]).reshape(rows, columns)


@contextmanager
def naming(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn errors of a damaged or missing file, and those in `more`, into an InputError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except (*_DAMAGED, *more) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} is damaged or of another format ({reason})") from error
