"""Sources of a stream: files, folders, a camera, or any iterator of pictures, one frame at a time."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.errors import InputError
from lean3r.inputs.arrays import pixels_of
from lean3r.inputs.decoding import TURNS, own_pixel_limit
from lean3r.inputs.listing import Still, find_pictures
from lean3r.inputs.video import Film, read_all
from lean3r.inputs.views import check_shape, decode_whole
from lean3r.stream.engine import Frame

logger = logging.getLogger("lean3r")

CAMERA = "camera:"
PICTURE_S = 1.0  # between pictures without times
SHORTEST_S = 1e-3  # between frames whose times do not grow
QUEUE = 64  # frames of a live source that may wait
LARGEST_SIDE = 1 << 14


class Source:
    """Frames of an input, in order, without the first `skip` of them.

    The input is a path or several (a video, a folder, pictures, a zip archive), `camera:0` or `/dev/video0`, or an
    iterable of pictures (PIL images, arrays, tensors, frames of PyAV) or of pairs of a time in seconds and a picture.
    Frames that cannot be used are left out. `notes` says what was wrong, each kind once, with its number. Iterating
    again goes on where it stopped.
    """

    def __init__(self, source: Any, *, skip: int = 0) -> None:
        self.counts: dict[str, int] = {}
        self.name, self.is_file = self.describe(source)
        self.is_live = self.name.startswith(CAMERA)
        self._index, self._last_s, self._latest_s = skip, -np.inf, -np.inf
        self._offset_s: float | None = 0.0  # added to all times; None: the first one follows the last frame of before
        self._is_cut = False  # before the next frame
        self._bars: tuple[int, int, int, int] | None = None  # cut off the next frame
        self._frames = self._read(source, skip)

    def __iter__(self) -> Iterator[Frame]:
        for time_s, value in self._frames:
            try:
                image = pixels_of(_plain(value), f"frame {self._index}")
                check_shape(image.shape[1], image.shape[0])
            except InputError as error:
                self.note("frames that cannot be used", str(error))
                continue
            if self._offset_s is None:
                self._offset_s = self._last_s + PICTURE_S - time_s
            time_s += self._offset_s
            if time_s < self._latest_s:
                self.note("frames whose time goes back", f"{time_s:.3f} s after {self._latest_s:.3f} s")
            self._latest_s = max(self._latest_s, time_s)
            if time_s <= self._last_s:
                time_s = self._last_s + SHORTEST_S
            frame = Frame(self._index, time_s, image, self._is_cut, self._bars)
            self._is_cut = False
            self._index, self._last_s = self._index + 1, time_s
            yield frame

    @staticmethod
    def describe(source: Any) -> tuple[str, bool]:
        """A name for a source, and whether it is read from files, which can be read again."""
        if isinstance(source, str) and (source.startswith((CAMERA, "/dev/video"))):
            return CAMERA + source.removeprefix(CAMERA).removeprefix("/dev/video"), False
        if isinstance(source, str | PathLike):
            return str(source), True
        if isinstance(source, Sequence) and source and all(isinstance(each, str | PathLike) for each in source):
            if len(source) == 1:
                return Source.describe(source[0])
            return ", ".join(map(str, source)), True
        if isinstance(source, Iterable):
            return type(source).__name__, False
        raise InputError(
            f"the source is a {type(source).__name__}; expected a file, a folder, camera:0, or an iterator of pictures."
        )

    @staticmethod
    def is_once(source: Any) -> bool:
        """Whether frames that have been read are gone, as those of a camera."""
        return Source.describe(source)[0].startswith(CAMERA)

    def resume_at(self, last_s: float) -> None:
        """The time of the last frame that was read before."""
        self._last_s = self._latest_s = last_s

    def follow(self, index: int, last_s: float) -> None:
        """Number and time frames as those after another source, whose last frame had this time."""
        self._index, self._last_s, self._latest_s = index, last_s, last_s
        self._offset_s, self._is_cut = None, True

    def note(self, what: str, example: str) -> None:
        """Count something that was wrong, and log the first of its kind."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] == 1:
            logger.warning("%s: %s (%s)", self.name, what, example)

    def _read(self, source: Any, skip: int) -> Iterator[tuple[float, Any]]:
        if self.is_live:
            yield from _camera(self.name)
        elif self.is_file:
            yield from self._files(source, skip)
        else:
            yield from self._iterate(source, skip)

    def _files(self, source: Any, skip: int) -> Iterator[tuple[float, Any]]:
        paths = [source] if isinstance(source, str | PathLike) else list(source)
        listing = find_pictures([Path(path) if isinstance(path, PathLike) else path for path in paths], [])
        damage = {item.damage for item in listing.items if isinstance(item, Film)}
        for name, reason in listing.skipped:
            if reason not in damage:  # of films that are used all the same
                self.note("files that cannot be used", f"{name}: {reason}")
        start_s, is_first = 0.0, True
        for item in listing.items:
            if isinstance(item, Film):
                if item.damage:
                    self.note("damage", item.damage)
                count, self._is_cut = 0, self._is_cut or not (is_first or skip)
                is_first = False
                for time_s, frame in read_all(item, skip):
                    turn, self._bars = TURNS.get(frame.orientation), frame.bars.turned(frame.orientation).edges
                    yield start_s + time_s, frame.image if turn is None else frame.image.transpose(turn)
                    count += 1
                if count + skip < len(item.keys):
                    self.note("damage", f"{item.name}: only {count + skip} of {len(item.keys)} frames can be decoded")
                skip = max(0, skip - len(item.keys))
                start_s += item.times_s[-1] + PICTURE_S
                continue
            self._bars = None
            if skip:
                skip -= 1
            elif (picture := self._still(item)) is not None:
                yield start_s, picture
            start_s, is_first = start_s + PICTURE_S, False

    def _still(self, item: Still) -> Any:
        try:
            with own_pixel_limit(), item.open() as file:
                return decode_whole(file, item.name, LARGEST_SIDE)
        except (InputError, OSError) as error:
            self.note("files that cannot be used", f"{item.name}: {error}")
            return None

    def _iterate(self, source: Iterable[Any], skip: int) -> Iterator[tuple[float, Any]]:
        from av.error import FFmpegError

        values = iter(source)
        number = 0
        while True:
            try:
                value = next(values)
            except StopIteration:
                return
            except FFmpegError as error:  # of a decoder that the user iterates over
                self.note("damage", f"the stream ends after {number} frames: {error}")
                return
            if number >= skip:
                is_timed = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int | float)
                known_s = value[0] if is_timed else getattr(value, "time", None)
                picture = value[1] if is_timed else value
                yield float(number * PICTURE_S if known_s is None else known_s), picture
            number += 1


class Early:
    """Frames of files, some of which are read before their turn; an error waits for its turn."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames, self._error = iter(frames), None

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._error is not None:
            raise self._error
        return next(self._frames)

    def give(self, take: Callable[[Frame], None]) -> bool:
        """Give the next frame to `take`, before its turn; whether there was one."""
        try:
            take(next(self._frames))
        except Exception as error:
            self._error = error  # StopIteration among them
        return self._error is None


class Live:
    """Frames of a source that does not wait: read in a thread, at most QUEUE wait. When more come, every second of
    them is dropped (`dropped` counts them): what is left still covers the whole way, and the delay stays bounded."""

    def __init__(self, source: Source, most: int = QUEUE) -> None:
        self.source, self.dropped = source, 0
        self._waiting: deque[tuple[float, Frame]] = deque()
        self._most, self._more = most, threading.Condition()
        self._is_done, self._failure = False, None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for frame in self.source:
                with self._more:
                    if self._is_done:
                        return
                    self._waiting.append((time.perf_counter(), frame))
                    if len(self._waiting) > self._most:
                        kept = list(self._waiting)[::2]
                        self.dropped += len(self._waiting) - len(kept)
                        self._waiting = deque(kept)
                    self._more.notify()
        except Exception as error:
            self._failure = error
        finally:
            with self._more:
                self._is_done = True
                self._more.notify()

    def __iter__(self) -> Iterator[tuple[float, Frame]]:
        """Frames, with the moment at which each arrived."""
        while True:
            with self._more:
                while not self._waiting and not self._is_done:
                    self._more.wait(0.2)
                if not self._waiting:
                    break
                item = self._waiting.popleft()
            yield item
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Take no more frames."""
        with self._more:
            self._is_done = True


def _plain(value: Any) -> Any:
    """A frame of PyAV as an array; other pictures as they are."""
    return value.to_ndarray(format="rgb24") if type(value).__module__.startswith("av.") else value


def _camera(name: str) -> Iterator[tuple[float, Any]]:
    """Frames of a video device."""
    import av
    from av.error import FFmpegError

    device = f"/dev/video{name.removeprefix(CAMERA)}"
    try:
        container = av.open(device, "r", format="v4l2")
    except (FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"the camera {device} cannot be opened ({error}); `ls /dev/video*` lists the devices"
        ) from error
    start = time.perf_counter()
    with container, contextlib.suppress(FFmpegError):
        for frame in container.decode(video=0):
            yield time.perf_counter() - start, frame
