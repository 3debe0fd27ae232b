"""Known cameras and masks that come with an upload: what they are by content, and where they lie beside its pictures.

The names of both folders begin with a dot, which no stored name does.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lean3r.scratch import DISK_FULL
from lean3r.serve.content import ARCHIVE_SUFFIX, check_archive, stored_name, suffix_of

CAMERAS, MASKS = "cameras", "masks"  # the fields of the form, and the kinds of files
ROLES = (CAMERAS, MASKS)
LEFT_OUT = "left out"  # another kind: a file that was not kept
TRAJECTORY, JSON = "trajectory.txt", ("cameras.json", "transforms.json")
MODEL = frozenset(
    f"{part}.{kind}" for part in ("cameras", "images", "points3D", "rigs", "frames") for kind in ("bin", "txt")
)
LARGEST_TEXT = 1 << 26
_DEEPEST = 8


def folder_of(role: str, inputs: Path) -> Path:
    """Where the files of a role lie."""
    return inputs / f".{role}"


def cameras_of(inputs: Path) -> Path | None:
    """What --cameras would name; None if no cameras came."""
    folder = folder_of(CAMERAS, inputs)
    trajectory = folder / TRAJECTORY
    return trajectory if trajectory.is_file() else folder if folder.is_dir() else None


def masks_of(inputs: Path) -> Path | None:
    """What --masks would name; None if no masks came."""
    folder = folder_of(MASKS, inputs)
    return folder if folder.is_dir() else None


class Given:
    """Takes the complete files of these roles of one upload. `room` is asked for what archives unpack to; each may hold
    `members`, and `most` bytes."""

    def __init__(self, inputs: Path, members: int, most: int, room: Callable[[int], None]) -> None:
        self.inputs, self.members, self.most, self.room = inputs, members, most, room

    def take(self, role: str, path: Path, name: str, head: bytes) -> str:
        """Move a file to its place; why it is refused, empty if it is not."""
        folder = folder_of(role, self.inputs)
        folder.mkdir(mode=0o700, exist_ok=True)
        suffix = suffix_of(head)
        if suffix == ARCHIVE_SUFFIX:
            return check_archive(path, self.members, self.most) or self._unpack(role, path, folder)
        if role == MASKS:
            if suffix != ".png":
                return "a mask is a PNG, or they come in a zip"
            place = folder / stored_name(name, suffix, set())
            if place.name.lower() in {path.name.lower() for path in folder.iterdir()}:
                return "there are two of them"
        else:
            place = folder / _cameras_name(path, name, head)
            if place.name == folder.name:
                return "it is not a JSON file, a trajectory or a part of a COLMAP model"
        if place.exists():
            return "there are two of them"
        path.rename(place)
        return ""

    def _unpack(self, role: str, path: Path, folder: Path) -> str:
        """The masks, or the cameras, of an archive; it is removed."""
        found = 0
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                place = folder / _member_name(role, member.filename)
                if place == folder or member.is_dir():
                    continue
                if member.flag_bits & 1:
                    return "it is encrypted"
                if place.exists():
                    return f"it holds two files {place.name}"
                self.room(member.file_size)
                try:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as packed, place.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)  # not more than it says, which was checked
                except Exception as error:  # zipfile, zlib, lzma and bz2 have errors of many kinds
                    if isinstance(error, OSError) and error.errno in DISK_FULL:
                        raise
                    return f"it is damaged ({type(error).__name__})"
                found += 1
        path.unlink()
        return "" if found else f"it holds no {role}"


def _cameras_name(path: Path, name: str, head: bytes) -> str:
    """The name under which cameras are read; empty if they are none by their beginning."""
    if name in MODEL:
        return name
    if path.stat().st_size > LARGEST_TEXT or b"\0" in head:
        return ""
    return JSON[0] if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")) else TRAJECTORY


def _member_name(role: str, name: str) -> str:
    """Where a member of an archive goes, relative to the folder; empty if it is left out."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or "__MACOSX" in parts or len(parts) > _DEEPEST or parts[-1].startswith("."):
        return ""
    if role == CAMERAS:
        return parts[-1] if parts[-1] in MODEL or parts[-1] in JSON else ""
    if not parts[-1].lower().endswith(".png"):
        return ""
    safe = [stored_name(f"{part}.png", ".png", set())[: -len(".png")] for part in parts[:-1] if part != "/"]
    return "/".join([*safe, stored_name(parts[-1], ".png", set())])
