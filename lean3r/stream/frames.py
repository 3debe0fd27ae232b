"""Sources of a stream: files, folders, a camera, or any iterator of pictures, one frame at a time."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lean3r.errors import InputError, UsageError
from lean3r.inputs.animations import animation_in
from lean3r.inputs.arrays import pixels_of
from lean3r.inputs.colours import rgb_of
from lean3r.inputs.decoding import TURNS, own_pixel_limit
from lean3r.inputs.listing import Listing, Still, find_pictures
from lean3r.inputs.notes import in_srgb
from lean3r.inputs.trajectory import stamp_of
from lean3r.inputs.upright import decode_whole, turned
from lean3r.inputs.video import Film, orientation_of, read_all
from lean3r.inputs.views import check_shape
from lean3r.stream.engine import Frame
from lean3r.stream.options import CAMERA, DEVICE

logger = logging.getLogger("lean3r")

PICTURE_S = 1.0  # between pictures without times
SHORTEST_S = 1e-3  # between frames whose times do not grow
ANEW_S = 1.0  # behind the last frame: two frames with such times in their order follow a clock that began anew
LARGEST_SIDE = 1 << 14
LOOK = 8  # columns and rows to which a picture is reduced, to know it again
LISTED = 100  # skipped files that are remembered by name
ALIKE = 8  # levels of 256 by which two decoders may differ there


class Mark(NamedTuple):
    """Where a source goes on behind a frame: the number of the next frame, the time of the last one, the `place` in the
    source (inputs that are done, frames of the next input that are), what is added to its times, how its first
    picture looks, the time that the last frame came with, if that did not grow, whether times are the numbers of
    the frames, the first names and reasons of what was skipped, a checksum of the names of the files so far, and
    `cautions`: why the cameras of films may be far off."""

    next: int = 0
    last_s: float = -np.inf
    place: tuple[int, int] = (0, 0)
    offset_s: float | None = 0.0  # None: the first frame follows the last one of another source
    first: Sequence[int] | None = None
    behind_s: float | None = None
    is_counted: bool = False
    skipped: Sequence[Sequence[str]] = ()
    files: int = 0
    cautions: Sequence[str] = ()


class Source:
    """Frames of an input, in order; only those behind the `mark`, if there is one.

    The input is a path or several (a video, a folder, pictures, a zip archive), `camera:0` or `/dev/video0`, or an
    iterable of pictures (PIL images, arrays, tensors, frames of PyAV) or of pairs of a time in seconds and a picture.
    Frames that cannot be used are left out. `notes` says what was wrong, each kind once, with its number. Iterating
    again goes on where it stopped. UsageError if files do not begin with the picture that the mark knows, or are not
    those that it has behind it.
    """

    def __init__(self, source: Any, mark: Mark | None = None, listing: Listing | None = None) -> None:
        self.counts: dict[str, int] = {}
        self.name, self.is_file = self.describe(source)
        self.is_live = self.name.startswith(CAMERA)
        mark = mark or Mark()
        self._index, self._last_s, self._place, self._offset_s, self._first, self._behind_s = mark[:6]
        self.skipped = tuple((name, reason) for name, reason in mark.skipped)  # LISTED at most
        self._read_so_far = mark.files
        self.cautions = tuple(mark.cautions)
        self._listing = listing  # of files, if they have been looked at
        self._latest_s = self._last_s
        self._marks: deque[Mark] = deque()  # of the frames that were not asked for yet
        self._is_cut = False  # before the next frame
        self._bars: tuple[int, int, int, int] | None = None  # cut off the next frame
        self._file = ""  # the name of the next frame's picture
        self._is_counted = False  # no frame has a time of its own yet
        self._frames = self._read(source)

    def __iter__(self) -> Iterator[Frame]:
        for time_s, value in self._frames:
            try:
                image = pixels_of(_plain(value), f"frame {self._index}")
                check_shape(image.shape[1], image.shape[0])
            except InputError as error:
                self.note("frames that cannot be used", str(error))
                self._skip(self._file, str(error))
                continue
            if self._offset_s is None:
                self._offset_s = self._last_s + PICTURE_S - time_s
            time_s = self._grown(time_s + self._offset_s)
            self._first = self._first or look_of(image)
            frame = Frame(self._index, time_s, image, self._is_cut, self._bars, self._file)
            self._is_cut = False
            self._index, self._last_s = self._index + 1, time_s
            is_counted = self._is_counted and self._offset_s == 0
            at = self._index, time_s, self._place, self._offset_s, self._first, self._behind_s
            self._marks.append(Mark(*at, is_counted, self.skipped, self._read_so_far, self.cautions))
            yield frame

    def _grown(self, time_s: float) -> float:
        """The time of a frame behind that of the last one. Where a clock began anew, which the second frame tells,
        frames are as far apart as it says; a single frame that goes back changes nothing for the others."""
        if time_s < self._latest_s:
            self.note("frames whose time goes back", f"{time_s:.3f} s after {self._latest_s:.3f} s")
        behind_s, self._behind_s = self._behind_s, None
        if time_s > self._last_s:
            self._latest_s = max(self._latest_s, time_s)
            return time_s
        if behind_s is None or not behind_s < time_s < self._last_s - ANEW_S:
            self._behind_s = time_s
            return self._last_s + SHORTEST_S
        assert self._offset_s is not None
        self._offset_s += self._last_s - behind_s
        self._latest_s = self._last_s + time_s - behind_s
        return self._latest_s

    def _check_first(self, source: Any, listing: Listing) -> None:
        """Another film or folder may have the same name."""
        found = next(iter(Source(source, listing=listing)), None)
        if found is None or np.abs(np.subtract(look_of(found.image), self._first or ())).mean() > ALIKE:
            raise UsageError(
                f"{self.name} does not begin with the picture that this stream began with: it is another film or "
                "folder. Give the same one to go on, or another -o (or --overwrite) to begin anew."
            )

    def behind(self, index: int) -> Mark:
        """Where the source goes on behind a frame that it gave; asked for in order."""
        while (mark := self._marks.popleft()).next <= index:
            pass
        return mark

    @staticmethod
    def describe(source: Any) -> tuple[str, bool]:
        """A name for a source, and whether it is read from files, which can be read again."""
        if isinstance(source, str) and source.startswith((CAMERA, DEVICE)):
            return CAMERA + source.removeprefix(CAMERA).removeprefix(DEVICE), False
        if isinstance(source, str | PathLike):
            return str(source), True
        if isinstance(source, Sequence) and source and all(isinstance(each, str | PathLike) for each in source):
            if len(source) == 1:
                return Source.describe(source[0])
            return ", ".join(map(str, source)), True
        is_one = isinstance(source, bytes | Mapping | Set) or 1 < getattr(source, "ndim", 0) < 4  # one picture
        if isinstance(source, Iterable) and not is_one:
            return type(source).__name__, False
        shape = getattr(source, "shape", None)
        shape = "" if shape is None else f" of shape {tuple(shape)}"
        raise InputError(
            f"the source is a {type(source).__name__}{shape}; expected a file, a folder, camera:0, or an iterator of "
            "pictures."
        )

    @staticmethod
    def is_once(source: Any) -> bool:
        """Whether frames that have been read are gone, as those of a camera."""
        return Source.describe(source)[0].startswith(CAMERA)

    def follow(self, index: int, last_s: float) -> None:
        """Number and time frames as those after another source, whose last frame had this time."""
        self._index, self._last_s, self._latest_s = index, last_s, last_s
        self._offset_s, self._is_cut = None, True

    def note(self, what: str, example: str) -> None:
        """Count something that was wrong, and log the first of its kind."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] == 1:
            logger.warning("%s: %s (%s)", self.name, what, example)

    def _skip(self, name: str, reason: str) -> None:
        """Remember what was left out; a stream that goes on meets some of it again."""
        if name and (name, reason) not in self.skipped and len(self.skipped) < LISTED:
            self.skipped = (*self.skipped, (name, reason))

    def _read(self, source: Any) -> Iterator[tuple[float, Any]]:
        if self.is_live:
            yield from _camera(self.name)
        elif self.is_file:
            yield from self._files(source, *self._place)
        else:
            yield from self._iterate(source, self._place[1])

    def _files(self, source: Any, done: int, read: int) -> Iterator[tuple[float, Any]]:
        listing = self._listing or find_pictures(paths_of(source))
        if self._first is not None:
            self._check_first(source, listing)
        if any(isinstance(item, Still) and item.is_cut for item in listing.items):
            raise InputError(
                f"{self.name} holds panoramas of 360 degrees; a stream takes pictures of a usual lens, one after the "
                "other. Use `lean3r reconstruct` for them: it cuts each into such pictures"
            )
        damage = {item.damage for item in listing.items if isinstance(item, Film)}
        for name, reason in listing.skipped:
            self._skip(name, reason)
            if reason not in damage:  # of films that are used all the same
                self.note("files that cannot be used", f"{name}: {reason}")
        behind, self._read_so_far = self._read_so_far, 0
        if names_sum(listing.items[: done + (read > 0)]) != behind:
            raise UsageError(
                f"{self.name} does not hold the pictures that this stream has behind it: some were added, removed or "
                "renamed since. Put them back to go on, or give another -o (or --overwrite) to begin anew."
            )
        times_s = times_in_names(listing.items)
        self._is_counted = times_s is None and all(isinstance(item, Still) for item in listing.items)
        start_s = 0.0
        for number, item in enumerate(listing.items):
            self._read_so_far = names_sum([item], self._read_so_far)
            if isinstance(item, Film):
                if item.damage:
                    self.note("damage", item.damage)
                if number >= done:
                    yield from self._film(item, number, read if number == done else 0, start_s)
                start_s += item.times_s[-1] + PICTURE_S
                continue
            if number >= done and (picture := self._still(item)) is not None:
                self._bars, self._file, self._place = None, item.name, (number + 1, 0)
                yield times_s[number] if times_s else self._counted_s if self._is_counted else start_s, picture
            start_s += PICTURE_S

    @property
    def _counted_s(self) -> float:
        """The time of the next frame where they have none, by its number: those that cannot be used do not count."""
        return self._index * PICTURE_S

    def _film(self, film: Film, number: int, read: int, start_s: float) -> Iterator[tuple[float, Any]]:
        """Frames of the film that is input `number` and begins at `start_s`, without those that were `read` before."""
        self._is_cut = self._is_cut or (number > 0 and not read)
        if film.caution is not None and film.caution not in self.cautions:
            self.cautions = (*self.cautions, film.caution)
            logger.warning("%s", film.caution)
        for time_s, frame in read_all(film, read):
            read += 1
            turn, self._bars = TURNS.get(frame.orientation), frame.bars.turned(frame.orientation).edges
            self._file, self._place = frame.name, (number, read)
            yield start_s + time_s, frame.image if turn is None else frame.image.transpose(turn)
        if read < len(film.keys):
            reason = f"only {read} of {len(film.keys)} frames can be decoded"
            self.note("damage", f"{film.name}: {reason}")
            self._skip(film.name, reason)
        if film.growth is not None:
            reason = f"{film.growth}. Once it is written, run again with --resume to go on"
            self.note("films that are still being written", f"{film.name} {reason}")
            self._skip(film.name, reason)

    def _still(self, item: Still) -> np.ndarray | None:
        try:
            with own_pixel_limit(), item.open() as file:
                if animation_in(file) is not None:
                    self.note("animations of which only the first picture is used", item.name)
                # Upright now: an array, as the image may still carry the EXIF that says how to turn it.
                picture = decode_whole(file, item.name, LARGEST_SIDE)
                return np.asarray(in_srgb(picture, picture.info.get("icc_profile")))
        except (InputError, OSError) as error:
            self.note("files that cannot be used", f"{item.name}: {error}")
            self._skip(item.name, str(error))
            return None

    def _iterate(self, source: Iterable[Any], read: int) -> Iterator[tuple[float, Any]]:
        from av.error import FFmpegError

        values = iter(source)
        number, latest_s = 0, None
        while True:
            try:
                value = next(values)
            except StopIteration:
                return
            except FFmpegError as error:  # of a decoder that the user iterates over
                self.note("damage", f"the stream ends after {number} frames: {error}")
                return
            is_timed = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Real)
            known_s = value[0] if is_timed else getattr(value, "time", None)
            if known_s is not None and math.isfinite(known_s):
                latest_s = float(known_s)
            elif known_s is not None:
                self.note("frames whose time is no number", f"{known_s} of picture {number}")
            number += 1
            if number > read:
                self._place = 0, number
                # Without a time of its own, a frame follows at once on the last one that had one.
                self._is_counted = latest_s is None
                yield self._counted_s if latest_s is None else latest_s, value[1] if is_timed else value


def paths_of(source: Any) -> list[str | Path]:
    """The paths and globs of a source that is read from files; none of other sources."""
    if not Source.describe(source)[1]:
        return []
    paths = [source] if isinstance(source, str | PathLike) else source
    return [Path(path) if isinstance(path, PathLike) else path for path in paths]


def names_sum(items: Sequence[Still | Film], before: int = 0) -> int:
    """A checksum of the names of files, behind that of those before."""
    return zlib.crc32("".join(f"{item.name}\n" for item in items).encode(errors="backslashreplace"), before)


def times_in_names(items: Sequence[Still | Film]) -> list[float] | None:
    """The times in seconds in the names of pictures; None if one has none, or they do not ascend."""
    times_s = [stamp_of(item.name) if isinstance(item, Still) else None for item in items]
    known = [time_s for time_s in times_s if time_s is not None]
    is_usable = len(known) == len(times_s) and all(first < second for first, second in pairwise(known))
    return known if is_usable else None


def look_of(image: np.ndarray) -> tuple[int, ...]:
    """A picture [H, W, 3] in LOOK x LOOK x 3 numbers."""
    small = Image.fromarray(image).resize((LOOK, LOOK), Image.Resampling.BOX)
    return tuple(np.asarray(small).reshape(-1).tolist())


def _plain(value: Any) -> Any:
    """A frame of PyAV as an array, turned as it is shown; other pictures as they are."""
    if not type(value).__module__.startswith("av."):
        return value
    image, orientation = rgb_of(value), orientation_of(value)
    return np.asarray(turned(Image.fromarray(image), orientation)) if orientation in TURNS else image


def _camera(name: str) -> Iterator[tuple[float, Any]]:
    """Frames of a video device."""
    import av
    from av.error import FFmpegError

    device = DEVICE + name.removeprefix(CAMERA)
    try:
        container = av.open(device, "r", format="v4l2")
    except (FFmpegError, OSError, ValueError) as error:
        raise InputError(f"the camera {device} cannot be opened ({error}); `ls {DEVICE}*` lists the devices") from error
    start = time.perf_counter()
    with container, contextlib.suppress(FFmpegError):
        for frame in container.decode(video=0):
            yield time.perf_counter() - start, frame
