"""Check that the files of a COLMAP model are intact. The library trusts them: if a count or a number is damaged, it
hangs, takes all memory, or aborts the process. So they are checked first."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from lean3r.errors import InputError

PARAMETERS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16, 4, 5, 3, 4, 6, 2)  # of a camera, by the model's number
TWO_FOCAL_LENGTHS = (1, 4, 5, 6, 7, 10, 11, 13, 15, 16)
MAX_SIDE = 100_000  # pixels: undistortion walks along the borders
_NEEDED = ("cameras", "images", "points3D")  # beside these rigs and frames, since 2025


def is_binary(folder: Path) -> bool:
    """Whether COLMAP would read the binary files in a folder, not those of text."""
    return all((folder / f"{name}.bin").is_file() for name in _NEEDED)


def names_in_text(path: Path) -> dict[int, str]:
    """The whole names in an images.txt, by the ids of the images: the library cuts them off at the first blank."""
    names, lines = {}, iter(path.read_text(encoding="utf-8").splitlines())
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            words = line.split(maxsplit=9)
            names[int(words[0])] = words[9]
            next(lines, None)  # its points, which may be none
    return names


def check_model(folder: Path) -> None:
    """InputError if the files that COLMAP would read in `folder`, binary or else text, are missing or damaged."""
    are_binary = is_binary(folder)
    for name, end_of in _RECORDS.items():
        path = folder / f"{name}{'.bin' if are_binary else '.txt'}"
        if name not in _NEEDED and not path.exists():
            continue
        try:
            if not path.is_file():
                raise ValueError("there is no such file; expected cameras, images, points3D")
            if are_binary:
                _check_binary(path.read_bytes(), end_of)
            elif name == "cameras":
                _check_text(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, IndexError, struct.error) as error:
            raise InputError(f"{folder} holds no readable COLMAP model: {path.name} is damaged ({error}).") from error


def _check_binary(data: bytes, end_of: Callable[[bytes, int], int]) -> None:
    """Walk over the records; ValueError or struct.error unless their number and length agree with the file."""
    if len(data) < 8:
        raise ValueError(f"it has {len(data)} bytes, too few for a count")
    (count,), at = struct.unpack_from("<Q", data), 8
    for number in range(count):
        at = end_of(data, at)
        if at > len(data):
            raise ValueError(f"it ends within record {number + 1} of {count}")
    if at < len(data):
        raise ValueError(f"{len(data) - at} bytes follow the {count} records that it states")


def _camera(data: bytes, at: int) -> int:
    _, model, width, height = struct.unpack_from("<IiQQ", data, at)
    values = struct.unpack_from(f"<{_parameters(model)}d", data, at + 24)
    _check_camera(width, height, values)
    if min(values[: 2 if model in TWO_FOCAL_LENGTHS else 1]) <= 0:
        raise ValueError("it has a camera without a positive focal length")
    return at + 24 + 8 * len(values)


def _image(data: bytes, at: int) -> int:
    _check_finite(struct.unpack_from("<4x7d4x", data, at))
    name_end = data.index(b"\0", at + 64)
    (points,) = struct.unpack_from("<Q", data, name_end + 1)
    return name_end + 9 + 24 * points


def _point(data: bytes, at: int) -> int:
    _check_finite(struct.unpack_from("<8x3d", data, at))
    (track,) = struct.unpack_from("<43xQ", data, at)
    return at + 51 + 8 * track


def _rig(data: bytes, at: int) -> int:
    (sensors,) = struct.unpack_from("<4xI", data, at)
    at += 8 + (8 if sensors else 0)  # the first sensor has no pose
    for _ in range(sensors - 1):
        (has_pose,) = struct.unpack_from("<8xB", data, at)
        if has_pose > 1:
            raise ValueError(f"a flag that must be 0 or 1 is {has_pose}")
        at += 9 + 56 * has_pose
    return at


def _frame(data: bytes, at: int) -> int:
    *pose, count = struct.unpack_from("<8x7dI", data, at)
    _check_finite(pose)
    return at + 68 + 16 * count


_RECORDS = {"cameras": _camera, "images": _image, "points3D": _point, "rigs": _rig, "frames": _frame}


def _check_text(text: str) -> None:
    """Check the cameras of a text file: the library checks everything but impossible picture sizes."""
    for line in text.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            _check_camera(int(words[2]), int(words[3]), [float(word) for word in words[4:]])


def _parameters(model: int) -> int:
    if not 0 <= model < len(PARAMETERS):
        raise ValueError(f"its camera model {model} is unknown")
    return PARAMETERS[model]


def _check_camera(width: int, height: int, values: Sequence[float]) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"it has a camera of {width} x {height} pixels")
    _check_finite(values)


def _check_finite(values: Sequence[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError("it has a number that is not finite")
