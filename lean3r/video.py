"""Frames of a video: which to take, from the packet headers alone, and their decoding one at a time."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO

from lean3r.errors import InputError, UsageError

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL.Image import Image

logger = logging.getLogger("lean3r")

DEFAULT_FPS = 2.0
DEFAULT_FRAMES = (8, 64)  # least and most frames of a video when no option says otherwise
THREADS = 2  # decoder errors surface as many packets late, so no more of them
# Demuxers of plain containers only: playlists and concat scripts could make FFmpeg open other files or addresses.
MAX_FRAME_PIXELS = 100_000_000
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,asf,flv,ogg,h264,hevc,mxf,dv,ivf"
EXIF_OF_TURN = {0: 1, 90: 8, 180: 3, 270: 6}  # counter-clockwise degrees -> the EXIF orientation that means the same


@dataclass(frozen=True)
class Clip:
    """Chosen frames of one video. `frames` maps a frame's key to its view name, in display order; a key is the
    presentation time in stream ticks, or the running number where the container states no times. `times_s` are the
    seconds from the video's first frame by view name."""

    name: str
    open: Callable[[], BinaryIO]
    frames: Mapping[int, str]
    timed: bool = True
    times_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video to take: `fps` a second, each `every`-th, or `frames` evenly spread; at most one
    of the three. None of them: about 2 a second, at least 8 and at most `max_views` (64 if None)."""

    fps: float | None = None
    every: int | None = None
    frames: int | None = None
    max_views: int | None = None

    def __post_init__(self) -> None:
        options = {"--fps": self.fps, "--every": self.every, "--frames": self.frames}
        stated = [name for name, value in options.items() if value is not None]
        if len(stated) > 1:
            raise UsageError(f"{' and '.join(stated)} contradict each other; give one of them")
        for name, value in {**options, "--max-views": self.max_views}.items():
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} must be positive, got {value}")

    @property
    def is_stated(self) -> bool:
        """True if the user asked for a choice."""
        return (self.fps, self.every, self.frames) != (None, None, None)

    def indices(self, times_s: Sequence[float]) -> list[int]:
        """Indices of the frames to take, given their times in seconds (ascending, at least one)."""
        total, duration_s = len(times_s), times_s[-1] - times_s[0]
        if self.every is not None:
            return list(range(0, total, self.every))
        if self.fps is not None:
            steps = int(duration_s * self.fps + 1e-6) + 1
            if steps >= total:
                return list(range(total))
            middles = [(a + b) / 2 for a, b in pairwise(times_s)]
            return sorted({bisect_left(middles, times_s[0] + k / self.fps) for k in range(steps)})
        if self.frames is not None:
            return evenly(total, self.frames)
        least, most = DEFAULT_FRAMES
        return evenly(total, min(max(round(duration_s * DEFAULT_FPS) + 1, least), self.max_views or most))


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of `range(total)`, evenly spread, both ends included (the middle one for a count of 1)."""
    if count >= total:
        return list(range(total))
    return [total // 2] if count == 1 else [round(i * (total - 1) / (count - 1)) for i in range(count)]


def scan_clip(name: str, stem: str, opener: Callable[[], BinaryIO], choice: FrameChoice) -> tuple[Clip, str | None]:
    """Choose frames from the packet headers alone; returns the clip and what is damaged in it, if anything.

    The frames are called `stem`_000000.png and so on, numbered in display order. Raises InputError with the
    reason when the video has no frame.
    """
    ticks: list[int | None] = []
    sound = damaged = 0
    with opener() as file, _open_container(file, name) as container:
        stream = _pictures_of(container, name)
        announced, rate, tick_s = stream.frames, float(stream.average_rate or 30), float(stream.time_base or 1)
        for packet in _packets(container, stream, name):
            if packet.size == 0:
                continue
            damaged += packet.is_corrupt
            sound += not packet.is_corrupt
            if not packet.is_corrupt and not packet.is_discard:
                ticks.append(packet.pts)
    if not ticks:
        raise InputError(f"no frames in {name}: its video stream is empty")
    total = max(announced, sound + damaged)
    damage = f"incomplete video: {sound} of {total} frames can be read and are used" if sound < total else None
    timed = None not in ticks
    keys = sorted({t for t in ticks if t is not None}) if timed else list(range(len(ticks)))
    times_s = [(k - keys[0]) * tick_s if timed else k / rate for k in keys]
    frames = {keys[i]: f"{stem}_{i:06d}.png" for i in choice.indices(times_s)}
    seconds = dict(zip(keys, times_s, strict=True))
    return Clip(name, opener, frames, timed, {view: seconds[key] for key, view in frames.items()}), damage


def read_frames(clip: Clip) -> Iterator[tuple[str, Image, int]]:
    """Decode the chosen frames of a clip: (view name, full-size RGB with square pixels, EXIF orientation).

    One frame is held at a time. After a damaged packet decoding goes on at the next key frame; the caller sees
    the gap by the names that did not come. (The one or two frames that a decoder thread had begun by then may
    be patched up by the decoder; a file cut short is no such case, its last packet is known to be incomplete.)
    """
    from av.error import FFmpegError

    wanted = dict(clip.frames)
    with clip.open() as file, _open_container(file, clip.name) as container:
        stream = _pictures_of(container, clip.name)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # a frame may be larger than announced
        aspect = float(stream.sample_aspect_ratio or 1)
        number, waits_for_key = 0, False
        for packet in _packets(container, stream, clip.name):
            waits_for_key = (waits_for_key or packet.is_corrupt) and not (packet.is_keyframe and not packet.is_corrupt)
            if waits_for_key and packet.size:
                continue
            try:
                decoded = packet.decode()
            except FFmpegError as error:
                logger.debug("%s: packet at %s not decoded: %s", clip.name, packet.pts, error)
                waits_for_key = True
                continue
            for frame in decoded:
                key = frame.pts if clip.timed else number
                number += 1
                name = None if key is None else wanted.pop(key, None)
                if name is None or frame.is_corrupt:
                    continue
                orientation = EXIF_OF_TURN[round(frame.rotation / 90) * 90 % 360]
                try:
                    picture = frame.to_image(width=_square(frame.width, frame.height, aspect, clip.name))
                except (FFmpegError, ValueError) as error:
                    raise InputError(f"frames of {clip.name} cannot be converted to pictures ({error})") from error
                yield name, picture, orientation
            if not wanted:
                return


def _pictures_of(container: InputContainer, name: str) -> VideoStream:
    """The first video stream; InputError where there is none, or none that can be decoded to pictures of a size."""
    if not container.streams.video:
        raise InputError(f"no frames in {name}: it has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise InputError(f"no frames in {name}: no decoder knows its codec; convert it to H.264 in .mp4")
    _square(stream.width, stream.height, float(stream.sample_aspect_ratio or 1), name)
    return stream


def _square(width: int, height: int, aspect: float, name: str) -> int:
    """The width of a frame with square pixels, of one whose pixels are `aspect` times as wide as high."""
    shown = max(1, round(width * aspect))
    if max(width, shown) * height > MAX_FRAME_PIXELS:
        raise InputError(
            f"frames of {name} have {width}x{height} pixels, each {aspect:g} times as wide as high: over the limit of "
            f"{MAX_FRAME_PIXELS / 1e6:.0f} megapixels"
        )
    return shown


def _packets(container: InputContainer, stream: VideoStream, name: str) -> Iterator[Packet]:
    """Packets until the end, or until the file is damaged so that no more can be found."""
    from av.error import FFmpegError

    try:
        yield from container.demux(stream)
    except (FFmpegError, ValueError) as error:
        logger.debug("%s: reading stopped early: %s", name, error)


def _open_container(file: BinaryIO, name: str) -> InputContainer:
    import av
    from av.error import FFmpegError

    try:
        options = {"format_whitelist": CONTAINERS}
        container = av.open(file, "r", options=options, metadata_errors="replace")
    except (FFmpegError, OSError, ValueError) as error:
        empty = file.seek(0, os.SEEK_END) == 0
        why = "the file is empty" if empty else "cannot open video (damaged, unfinished or not a video)"
        raise InputError(f"no frames in {name}: {why}") from error
    return container
