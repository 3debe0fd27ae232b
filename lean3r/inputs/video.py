"""Frames of a video: which to take, by how far its picture moves or as asked for, and their decoding one at a time."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO, Literal

from lean3r.errors import InputError, UsageError
from lean3r.inputs.motion import Motion, choose, measure, small_size

if TYPE_CHECKING:
    import numpy as np
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL.Image import Image

logger = logging.getLogger("lean3r")

Skip = Literal["DEFAULT", "NONREF", "NONKEY"]  # which frames a decoder passes over
DEFAULT_FPS = 2.0
DEFAULT_FRAMES = (8, 120)  # least and most frames of a video when no option says otherwise
MOTION_STEP = 0.12  # of the picture's longer side, between two frames
WATCHED_FPS = 15  # frames a second whose motion is measured
WATCHED_PIXELS = 4e9, 20e9  # in all frames: from there on, fewer are decoded for that (4e9: 64 s of 1080p at 30 fps)
THREADS = 2  # decoder errors surface as many packets late, so no more of them
MAX_FRAME_PIXELS = 100_000_000
# Demuxers of plain containers only: playlists and concat scripts could make FFmpeg open other files or addresses.
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
    of the three. None of them: so that the picture moves by about the same from each to the next, more where it turns
    and none where it rests, the sharpest of those that would do; at least 8 and at most `max_views` (120 if None)."""

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
    """Choose frames: by the motion of the picture, or where the choice is stated, from the packet headers alone;
    returns the clip and what is damaged in it, if anything.

    The frames are called `stem`_000000.png and so on, numbered in display order. Raises InputError with the
    reason when the video has no frame.
    """
    ticks: list[int | None] = []
    packets: list[tuple[int | None, int]] = []
    sound = damaged = 0
    with opener() as file, _open_container(file, name) as container:
        stream = _pictures_of(container, name)
        announced, rate, tick_s = stream.frames, float(stream.average_rate or 30), float(stream.time_base or 1)
        size = (stream.width, stream.height)
        for packet in _packets(container, stream, name):
            if packet.size == 0:
                continue
            damaged += packet.is_corrupt
            sound += not packet.is_corrupt
            if not packet.is_corrupt and not packet.is_discard:
                ticks.append(packet.pts)
                packets.append((packet.pts, packet.size))
    if not ticks:
        raise InputError(f"no frames in {name}: its video stream is empty")
    total = max(announced, sound + damaged)
    damage = f"incomplete video: {sound} of {total} frames can be read and are used" if sound < total else None
    timed = None not in ticks
    keys = sorted({t for t in ticks if t is not None}) if timed else list(range(len(ticks)))
    times_s = [(k - keys[0]) * tick_s if timed else k / rate for k in keys]
    chosen = None
    if not choice.is_stated and len(keys) > DEFAULT_FRAMES[0]:
        film = _Film(tuple(packets), timed, size, name, opener)
        chosen = _by_motion(film, keys, rate, choice.max_views or DEFAULT_FRAMES[1])
    frames = {keys[i]: f"{stem}_{i:06d}.png" for i in chosen or choice.indices(times_s)}
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
    for key, frame, aspect in _decoded(clip.open, clip.name, clip.timed):
        name = None if key is None else wanted.pop(key, None)
        if name is not None and not frame.is_corrupt:
            orientation = EXIF_OF_TURN[round(frame.rotation / 90) * 90 % 360]
            try:
                picture = frame.to_image(width=_square(frame.width, frame.height, aspect, clip.name))
            except (FFmpegError, ValueError) as error:
                raise InputError(f"frames of {clip.name} cannot be converted to pictures ({error})") from error
            yield name, picture, orientation
        if not wanted:
            return


@dataclass(frozen=True)
class _Film:
    """A video as far as its packets tell it from others: what was measured of it once need not be measured again."""

    packets: tuple[tuple[int | None, int], ...]
    timed: bool
    size: tuple[int, int]
    name: str = field(compare=False)
    open: Callable[[], BinaryIO] = field(compare=False)


@lru_cache(maxsize=8)
def _watch(film: _Film, every: int) -> tuple[list[int], Motion] | None:
    """Keys of frames (each `every`-th) and how far the picture moves between them; None where nothing is decoded.

    Long videos are watched by frames that others refer to alone, very long ones by key frames.
    """
    from av.error import FFmpegError

    pixels = len(film.packets) * film.size[0] * film.size[1]
    skip: Skip = "DEFAULT" if pixels < WATCHED_PIXELS[0] else "NONREF" if pixels < WATCHED_PIXELS[1] else "NONKEY"
    if skip == "NONKEY":
        logger.info("%s is long: its motion is measured on key frames alone", film.name)
    keys: list[int] = []

    def frames() -> Iterator[np.ndarray]:
        for number, (key, frame, _) in enumerate(_decoded(film.open, film.name, film.timed, skip)):
            if key is not None and not frame.is_corrupt and (skip == "NONKEY" or number % every == 0):
                width, height = small_size(frame.width, frame.height)
                grey = frame.reformat(width, height, "gray").to_ndarray()
                keys.append(key)
                yield grey

    try:
        motion = measure(frames())
    except (FFmpegError, InputError, ValueError) as error:
        logger.debug("%s: motion not measured: %s", film.name, error)
        return None
    return keys, motion


def _by_motion(film: _Film, keys: Sequence[int], rate: float, most: int) -> list[int] | None:
    """Indices of frames that show the scene with even overlap; None where the motion cannot be measured."""
    watched = _watch(film, max(1, round(rate / WATCHED_FPS)))
    if watched is None:
        return None
    at = {key: index for index, key in enumerate(keys)}
    seen, motion = watched
    if not motion.is_known:
        return None
    chosen = choose(motion, min(DEFAULT_FRAMES[0], most), most, MOTION_STEP)
    return sorted({at[seen[i]] for i in chosen if seen[i] in at}) or None


def _decoded(
    opener: Callable[[], BinaryIO], name: str, timed: bool, skip: Skip = "DEFAULT"
) -> Iterator[tuple[int | None, VideoFrame, float]]:
    """The frames of a video one at a time, with their keys and how many times as wide as high their pixels are."""
    from av.error import FFmpegError

    with opener() as file, _open_container(file, name) as container:
        stream = _pictures_of(container, name)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # a frame may be larger than announced
        stream.codec_context.skip_frame = skip
        aspect = float(stream.sample_aspect_ratio or 1)
        number, waits_for_key = 0, False
        for packet in _packets(container, stream, name):
            waits_for_key = (waits_for_key or packet.is_corrupt) and not (packet.is_keyframe and not packet.is_corrupt)
            if waits_for_key and packet.size:
                continue
            try:
                decoded = packet.decode()
            except FFmpegError as error:
                logger.debug("%s: packet at %s not decoded: %s", name, packet.pts, error)
                waits_for_key = True
                continue
            for frame in decoded:
                yield frame.pts if timed else number, frame, aspect
                number += 1


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
