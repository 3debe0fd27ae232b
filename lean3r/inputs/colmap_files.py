"""Check that the files of a COLMAP model are intact. The library trusts them: if a count or a number is damaged, it
hangs, takes all memory, or aborts the process. So they are checked first."""

from __future__ import annotations

import codecs
import math
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lean3r.errors import InputError

MODELS = {  # of cameras, in the order of their numbers: how many parameters, and of these focal lengths
    "SIMPLE_PINHOLE": (3, 1),
    "PINHOLE": (4, 2),
    "SIMPLE_RADIAL": (4, 1),
    "RADIAL": (5, 1),
    "OPENCV": (8, 2),
    "OPENCV_FISHEYE": (8, 2),
    "FULL_OPENCV": (12, 2),
    "FOV": (5, 2),
    "SIMPLE_RADIAL_FISHEYE": (4, 1),
    "RADIAL_FISHEYE": (5, 1),
    "THIN_PRISM_FISHEYE": (12, 2),
    "RAD_TAN_THIN_PRISM_FISHEYE": (16, 2),
    "SIMPLE_DIVISION": (4, 1),
    "DIVISION": (5, 2),
    "SIMPLE_FISHEYE": (3, 1),
    "FISHEYE": (4, 2),
    "EUCM": (6, 2),
    "EQUIRECTANGULAR": (2, 1),
}
MAX_SIDE = 100_000  # pixels: undistortion walks along the borders
_NEEDED = ("cameras", "images", "points3D")  # beside these rigs and frames, since 2025


def is_binary(folder: Path) -> bool:
    """Whether COLMAP would read the binary files in a folder, not those of text."""
    return all((folder / f"{name}.bin").is_file() for name in _NEEDED)


def names_in_text(path: Path) -> dict[int, str]:
    """The whole names in an images.txt, by the ids of the images: the library cuts them off at the first blank."""
    names, lines = {}, iter(path.read_text(encoding="utf-8").split("\n"))  # other ends of lines may stand in names
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            words = line.split(maxsplit=9)
            names[int(words[0])] = words[9]
            next(lines, None)  # its points, which may be none
    return names


def check_model(folder: Path) -> None:
    """InputError if the files that COLMAP would read in `folder`, binary or else text, are missing or damaged."""
    are_binary = is_binary(folder)
    for name, (end_of, check_line, columns) in _RECORDS.items():
        path = folder / f"{name}{'.bin' if are_binary else '.txt'}"
        if name not in _NEEDED and not path.exists():
            continue
        try:
            if not path.is_file():
                raise ValueError("there is no such file; expected cameras, images, points3D")
            if are_binary:
                _check_binary(path.read_bytes(), end_of)
            else:
                _check_text(path.read_bytes(), check_line, columns)
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
    if not 0 <= model < len(MODELS):
        raise ValueError(f"its camera model {model} is unknown")
    name = list(MODELS)[model]
    values = struct.unpack_from(f"<{MODELS[name][0]}d", data, at + 24)
    _check_camera(name, width, height, values)
    return at + 24 + 8 * len(values)


def _image(data: bytes, at: int) -> int:
    _check_pose(struct.unpack_from("<4x7d4x", data, at))
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
    _check_pose(pose)
    return at + 68 + 16 * count


def _check_text(data: bytes, check_line: Callable[[list[bytes]], None], columns: str) -> None:
    """Check line by line; ValueError says which is wrong. The library says only that one is, and leaves out the last
    picture if its second line, that of the points, is missing."""
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it begins with a byte order mark; save it as plain UTF-8")
    lines, ids = enumerate(data.removesuffix(b"\n").split(b"\n"), 1), dict[int, int]()
    for number, line in lines:
        words = line.split(maxsplit=9)
        if not words or words[0].startswith(b"#"):
            continue
        try:
            if (first := ids.setdefault(_whole(words[0]), number)) != number:
                raise ValueError(f"its number is that of line {first}")
            check_line(words)
        except IndexError:
            raise ValueError(f"line {number}: too few words; expected {columns}") from None
        except ValueError as error:
            raise ValueError(f"line {number}: {error}; expected {columns}") from None
        if check_line is _image_line:
            _check_points(*next(lines, (number + 1, None)))


def _check_points(number: int, line: bytes | None) -> None:
    """The second line of a picture; ValueError if it is another."""
    words = [] if line is None or line.lstrip().startswith(b"#") else line.split()
    with suppress(ValueError):
        is_finite = line is not None and b"n" not in b"".join(words).lower()  # as in nan and inf
        if is_finite and len(words) % 3 == 0 and (not words or _whole(words[2]) >= -1):
            return
    raise ValueError(f"line {number}: not the points of a picture; expected X, Y, POINT3D_ID of each, or an empty line")


def _camera_line(words: list[bytes]) -> None:
    _check_camera(words[1].decode(), _whole(words[2]), _whole(words[3]), _numbers(b" ".join(words[4:]).split()))


def _image_line(words: list[bytes]) -> None:
    _check_pose(_numbers(words[1:8]))
    _whole(words[8])
    words[9].decode()


def _point_line(words: list[bytes]) -> None:
    _check_finite(_numbers(words[1:7]))
    _ = words[7]


def _rig_line(words: list[bytes]) -> None:
    _whole(words[1])


def _frame_line(words: list[bytes]) -> None:
    _check_pose(_numbers(words[2:9]))


_RECORDS = {
    "cameras": (_camera, _camera_line, "CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"),
    "images": (_image, _image_line, "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"),
    "points3D": (_point, _point_line, "POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"),
    "rigs": (_rig, _rig_line, "RIG_ID, NUM_SENSORS, REF_SENSOR_TYPE, REF_SENSOR_ID, SENSORS[]"),
    "frames": (_frame, _frame_line, "FRAME_ID, RIG_ID, QW, QX, QY, QZ, TX, TY, TZ, NUM_DATA_IDS, DATA_IDS[]"),
}


def _whole(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"'{word.decode(errors='replace')}' is no whole number") from None


def _numbers(words: Sequence[bytes]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        raise ValueError(f"'{b' '.join(words).decode(errors='replace')}' are not numbers") from None


def _check_camera(name: str, width: int, height: int, values: Sequence[float]) -> None:
    if name not in MODELS:
        raise ValueError(f"its camera model {name} is unknown")
    count, focals = MODELS[name]
    if len(values) != count:
        raise ValueError(f"it has a camera {name} with {len(values)} parameters instead of {count}")
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"it has a camera of {width} x {height} pixels")
    _check_finite(values)
    if min(values[:focals]) <= 0:
        raise ValueError("it has a camera without a positive focal length")


def _check_pose(values: Sequence[float]) -> None:
    """Of a quaternion and a position: the library would take zeros for a camera that is not turned."""
    _check_finite(values)
    if not any(values[:4]):
        raise ValueError("it has a pose whose rotation is 0 0 0 0")


def _check_finite(values: Sequence[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError("it has a number that is not finite")
