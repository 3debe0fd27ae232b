"""The pictures that a reconstruction used, as files: what other programs open beside its cameras."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from lean3r.errors import InputError
from lean3r.inputs.decoding import ORIENTATION, TURNS, exif, opened
from lean3r.inputs.listing import Still, find_pictures
from lean3r.inputs.video import Clip, read_frames
from lean3r.inputs.views import decode_whole, own_pixel_limit

logger = logging.getLogger("lean3r")

PNG_LEVEL = 1  # frames are many: a tenth larger, five times as fast
JPEG_QUALITY = 95
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")


@dataclass(frozen=True)
class Originals:
    """Where the pictures of a reconstruction came from: its inputs, and the choice of frames of a video."""

    inputs: Sequence[str | Path]
    fps: float | None = None
    every: int | None = None
    frames: int | None = None
    max_views: int | None = None

    @property
    def are_loose_files(self) -> bool:
        """False if any picture lies in a video or an archive, where other programs cannot find it."""
        return all(isinstance(item, Still) and not item.is_archived for item in self._items)

    @property
    def file_names(self) -> tuple[str, ...]:
        """What the picture files are called, frames of videos left out."""
        return tuple(item.name for item in self._items if isinstance(item, Still))

    def read(self, names: Collection[str], side: int) -> Iterator[tuple[str, Image.Image]]:
        """The pictures called `names`, one at a time, upright RGB, in the order of the input.

        Formats that decode at a half, a quarter or an eighth for less may come so, with the longer side no less than
        `side`. Those that cannot be read any more are left out.
        """
        with own_pixel_limit():
            for item in self._items:
                if isinstance(item, Clip):
                    for name, image, orientation in _frames(item):
                        if name in names:
                            yield name, image.transpose(TURNS[orientation]) if orientation in TURNS else image
                elif item.name in names:
                    try:
                        with item.open() as file:
                            yield item.name, decode_whole(file, item.name, side)
                    except (InputError, OSError) as error:
                        logger.warning("%s cannot be read again: %s", item.name, error)

    def exif(self, names: Collection[str], block: int) -> Iterator[tuple[str, dict[int, Any]]]:
        """A block of EXIF fields (0x8825: GPS) of the picture files called `names` that have one; no frames do."""
        for item in self._items:
            if isinstance(item, Still) and item.name in names:
                fields: dict[int, Any] = {}
                # A damaged EXIF block raises anything.
                with own_pixel_limit(), contextlib.suppress(Exception), item.open() as file, opened(file) as image:
                    fields = dict(image.getexif().get_ifd(block))
                if fields:
                    yield item.name, fields

    def write(self, names: Sequence[str], directory: Path) -> list[Path]:
        """Write the pictures called `names` into a folder, under these names, upright, at their full size.

        Frames become PNG; picture files are copied byte by byte, unless EXIF turns them: then they are turned
        and encoded anew in their own format. InputError when one is no longer there.
        """
        wanted, written = set(names), []
        for item in self._items:
            if isinstance(item, Clip):
                for name, image, orientation in _frames(item):
                    if name in wanted:
                        turned = image.transpose(TURNS[orientation]) if orientation in TURNS else image
                        written.append(_place(directory, name))
                        turned.save(written[-1], "PNG", compress_level=PNG_LEVEL)
            elif item.name in wanted:
                with item.open() as file:
                    content = file.read()
                written.append(_place(directory, item.name))
                written[-1].write_bytes(upright(content))
        missing = wanted - {path.relative_to(directory).as_posix() for path in written}
        if missing:
            count = f"{len(missing)} of {len(wanted)} pictures"
            raise InputError(f"{count} cannot be read again ({min(missing)}); did the input change meanwhile?")
        return written

    @cached_property
    def _items(self) -> Sequence[Still | Clip]:
        choice = {"fps": self.fps, "every": self.every, "frames": self.frames, "max_views": self.max_views}
        return find_pictures(self.inputs, **choice, quiet=True).items


def _frames(clip: Clip) -> Iterator[tuple[str, Image.Image, int]]:
    """The frames of a clip as far as they can be read."""
    try:
        yield from read_frames(clip)
    except (InputError, OSError) as error:
        logger.warning("%s cannot be read again to its end: %s", clip.name, error)


def upright(content: bytes) -> bytes:
    """A picture file as it is, or encoded anew in its own format where EXIF says that it must be turned."""
    file = io.BytesIO()
    try:
        with own_pixel_limit(), opened(io.BytesIO(content)) as image:
            # HEIC stays: lean3r reads it, and few other programs turn or open it.
            if image.format == "HEIF" or _stated_turn(image) == 1:
                return content
            orientation, _ = exif(image, "a picture")
            image.load()  # turns some formats
            turned = image.transpose(TURNS[orientation]) if orientation in TURNS else image.copy()
            quality = {"quality": JPEG_QUALITY} if image.format in LOSSY else {}
            turned.save(file, image.format, exif=b"", **quality)
    except InputError as error:
        logger.warning("a picture stays as it is, EXIF's orientation included: %s", error)
        return content
    return file.getvalue()


def _stated_turn(image: Image.Image) -> Any:
    if image.format == "PNG":
        image.load()  # EXIF may follow the pixels
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block raises anything
        return 1


def _place(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{name} would be written outside {directory}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
