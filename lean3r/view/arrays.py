"""The arrays of predictions.npz and keyframes, large ones mapped from the file instead of read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lean3r.errors import InputError

MAPPED = 1 << 22  # bytes from which on an array is mapped


def open_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """All arrays of an .npz file; InputError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as stored:
            found = {}
            for name in stored.files:
                about = archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
                is_large = about.file_size >= MAPPED and about.compress_type == zipfile.ZIP_STORED
                found[name] = _mapped(path, about) if is_large else np.asarray(stored[name])
            return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    except (NotImplementedError, RuntimeError, MemoryError, struct.error, TypeError, OverflowError) as error:
        raise InputError(f"{path} is damaged ({error or type(error).__name__}).") from error


def _mapped(path: Path, about: zipfile.ZipInfo) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(about.header_offset + 26)
        name, more = struct.unpack("<HH", file.read(4))
        file.seek(about.header_offset + 30 + name + more)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, kind = read(file)
        if kind.hasobject or is_fortran:
            raise ValueError(f"{about.filename} has an unusual layout")
        return np.memmap(path, kind, "r", file.tell(), shape)
