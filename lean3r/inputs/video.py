"""Frames of a video: chosen by image motion or as stated, and decoded one at a time."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from lean3r.errors import InputError
from lean3r.geometry.content import emptiness
from lean3r.inputs.bars import NO_BARS, Bars, Found, find_bars
from lean3r.inputs.colours import rgb_of
from lean3r.inputs.frames import DEFAULT_FRAMES, FrameChoice
from lean3r.inputs.interlaced import is_combed, without_combs
from lean3r.inputs.motion import REACH, Meter, Motion, Stepper, choose, small_size
from lean3r.inputs.panorama import has_shape, is_panorama
from lean3r.inputs.stamps import Stamp, cut_short, timeline

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

logger = logging.getLogger("lean3r")

Skip = Literal["DEFAULT", "NONREF", "NONKEY"]  # which frames the decoder skips
MOTION_STEP = 0.12  # of the picture's longer side, between two frames
WATCHED_FPS = 15  # frames a second whose motion is measured
WATCHED_PIXELS = 4e9, 20e9  # of all frames: above these, fewer are decoded (4e9: 64 s of 1080p at 30 fps)
SAMPLES = 24  # frames at most in which bars are looked for
COMBED_SAMPLES, COMBED = 8, 1 / 3  # frames that are looked at for combs; share of them that makes a video interlaced
SPHERE_SAMPLES = 3  # key frames that are looked at for panoramas
ALL_DIRECTIONS = (
    "a film of 360 degrees, of which only pictures can be used: make some, as by ffmpeg -i {name} -vf fps=2 "
    "frames/%05d.jpg (the folder frames has to be there), and reconstruct their folder, where each is cut into "
    "pictures of a usual lens"
)
THREADS = 2  # decoder errors appear as many packets late as there are threads
MAX_FRAME_PIXELS = 100_000_000
# Demuxers of plain containers only: playlists and concat scripts could make FFmpeg open other files or addresses.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,mjpeg,yuv4mpegpipe,asf,flv,ogg,h264,hevc,mxf,dv,ivf,nut,gif,apng"
# Where x and y of a frame are shown, as signs (x to x, x to y, y to x, y to y) -> the EXIF orientation of the same.
EXIF_OF_MATRIX = {
    **{(1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4},
    **{(0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8},
}


@dataclass(frozen=True)
class Clip:
    """Chosen frames of one video. `frames` maps a frame's key to its view name, in display order; a key is the
    presentation time in stream ticks, or the frame's number if the container states no times. `times_s` maps view
    names to seconds from the video's first frame."""

    name: str
    open: Callable[[], BinaryIO]
    frames: Mapping[int, str]
    timed: bool = True
    times_s: Mapping[str, float] = field(default_factory=dict)
    bars: Bars = NO_BARS
    is_interlaced: bool = False
    caution: str | None = None


class Frame(NamedTuple):
    """A frame at full size, RGB, with square pixels, as stored, without the video's `bars`; `orientation` (EXIF) says
    how to turn it upright."""

    name: str
    image: Image.Image
    orientation: int
    bars: Bars = NO_BARS


@dataclass(frozen=True, eq=False)
class Film:
    """A whole video, described by its packets: the `keys` of its frames in display order, their `times_s` from the
    first one, (width, height), `rate` in frames a second, the number of `packets` with pictures, of how many `bytes`
    its file was then, and any damage. Its frames are called `stem`_000000.png and so on."""

    name: str
    stem: str
    open: Callable[[], BinaryIO]
    keys: Sequence[int]
    times_s: Sequence[float]
    timed: bool
    size: tuple[int, int]
    rate: float
    packets: int
    bytes: int
    damage: str | None = None
    _watched: list[tuple[list[int], Motion, int] | None] = field(default_factory=list)

    @property
    def bars(self) -> Bars:
        """What is cut off all frames: bars at their edges, found in a few of them (inputs/bars.py)."""
        return self._seen[0].bars

    @property
    def caution(self) -> str | None:
        """Why its cameras may be far off, if bars at its edges stay."""
        return self._seen[0].caution(self.name)

    @property
    def growth(self) -> str | None:
        """What to say of a file that is longer by now: frames are those of when it was looked at."""
        try:
            with self.open() as file:
                is_longer = file.seek(0, os.SEEK_END) > self.bytes
        except (InputError, OSError):
            return None
        return f"has grown since: only its first {len(self.keys)} frames are used" if is_longer else None

    @property
    def loss(self) -> str | None:
        """How many frames could not be decoded, if all have been to measure their motion."""
        read = self._watched[0][2] if self._watched and self._watched[0] is not None else len(self.keys)
        return f"only {read} of {len(self.keys)} frames can be decoded" if read < len(self.keys) else None

    @property
    def is_interlaced(self) -> bool:
        """Whether many frames are torn to combs; then one of every two rows is made of its neighbours."""
        return self._seen[1]

    @cached_property
    def _seen(self) -> tuple[Found, bool]:
        """What a few frames show: bars, and whether the video is interlaced."""
        from av.error import FFmpegError

        combed: list[bool] = []

        def key_frames() -> Iterator[np.ndarray]:
            for grey in self._greys("NONKEY", 1):
                combed.append(is_combed(grey))
                yield grey

        def more_frames() -> Iterator[np.ndarray]:
            if len(combed) < SAMPLES // 3:
                yield from self._greys("DEFAULT", 10)

        looking, found = key_frames(), Found()
        try:
            found = find_bars(chain(looking, more_frames()))
            deque(islice(looking, max(0, COMBED_SAMPLES - len(combed))), maxlen=0)
        except (FFmpegError, InputError, ValueError, OSError) as error:
            logger.debug("%s: bars and combs not looked for: %s", self.name, error)
        if (text := found.cut(self.name)) is not None:
            logger.warning("%s", text)
        is_interlaced = sum(combed) > COMBED * len(combed)
        if is_interlaced:
            logger.warning(
                "%s is interlaced: every second row is replaced by its neighbours; for finer pictures deinterlace it "
                "first, as by: ffmpeg -i %s -vf bwdif=mode=send_frame deinterlaced.mp4",
                *(self.name, self.name),
            )
        return found, is_interlaced

    @property
    def shows_all_directions(self) -> bool:
        """Whether its first key frames show 360 by 180 degrees."""
        from av.error import FFmpegError

        with contextlib.suppress(FFmpegError, InputError, ValueError, OSError):
            return any(is_panorama(Image.fromarray(grey)) for grey in islice(self._greys("NONKEY", 1), SPHERE_SAMPLES))
        return False

    def _greys(self, skip: Skip, every: int) -> Iterator[np.ndarray]:
        """Some of the video's first frames in grey."""
        for _, frame, _ in islice(_decode(self.open, self.name, self.timed, skip), 0, every * SAMPLES, every):
            yield frame.reformat(format="gray").to_ndarray()

    def clip(self, choice: FrameChoice, keep: Callable[[Frame], None] | None = None) -> Clip:
        """The frames of a choice: by the motion of the picture where it states none.

        `keep` gets the pictures of those frames on the way, if their motion is measured, and if they are neither too
        few nor too many: then others have to be decoded.
        """
        chosen = None
        if not choice.is_stated and len(self.keys) > DEFAULT_FRAMES[0]:
            chosen = self._by_motion(choice.max_views or DEFAULT_FRAMES[1], keep)
        return self._clip(chosen or choice.indices(self.times_s))

    def called(self, names: Collection[str]) -> Clip:
        """Those of its frames that have these names."""
        return self._clip([index for index in range(len(self.keys)) if self.frame_name(index) in names])

    def frame_name(self, index: int) -> str:
        """The view name of a frame by its number."""
        return f"{self.stem}_{index:06d}.png"

    def _clip(self, indices: Sequence[int]) -> Clip:
        frames = {self.keys[i]: self.frame_name(i) for i in indices}
        times_s = {self.frame_name(i): self.times_s[i] for i in indices}
        return Clip(self.name, self.open, frames, self.timed, times_s, self.bars, self.is_interlaced, self.caution)

    def _by_motion(self, most: int, keep: Callable[[Frame], None] | None) -> list[int] | None:
        """Indices of frames that show the scene with even overlap; None where the motion cannot be measured, or only
        between fewer frames than are taken at least."""
        at = {key: index for index, key in enumerate(self.keys)}
        if not self._watched:
            self._watched.append(self._watch(at, most, keep))
        watched, least = self._watched[0], min(DEFAULT_FRAMES[0], most)
        if watched is None or not watched[1].is_known or len(watched[0]) < least:
            return None
        seen, motion, _ = watched
        chosen = choose(motion, least, most, MOTION_STEP)
        return sorted({at[seen[i]] for i in chosen if seen[i] in at}) or None

    def _watch(
        self, at: Mapping[int, int], most: int, keep: Callable[[Frame], None] | None
    ) -> tuple[list[int], Motion, int] | None:
        """Keys of frames that show something, how far the picture moves between them, and how many frames there are;
        None where none shows anything.

        They are 15 a second, but all where the picture moves by more than a step meanwhile, as in time lapses.
        For long videos only reference frames are decoded, for very long ones only key frames.
        """
        from av.error import FFmpegError

        every = max(1, round(self.rate / WATCHED_FPS))
        pixels = self.packets * self.size[0] * self.size[1]
        skip: Skip = "DEFAULT" if pixels < WATCHED_PIXELS[0] else "NONREF" if pixels < WATCHED_PIXELS[1] else "NONKEY"
        skip = skip if self.timed else "DEFAULT"  # where frames are known by their number, all have to be counted
        if skip == "NONKEY":
            logger.info("%s is long: its motion is measured on key frames only", self.name)
            every = 1
        meter, stepper, kept = Meter(), Stepper(MOTION_STEP), 0
        watched, due, read = -1, 0, 0
        keys: list[int] = []
        last: deque[tuple[int, VideoFrame, float]] = deque(maxlen=REACH + 1)

        def hand_on(indices: list[int]) -> None:
            nonlocal kept
            for key, frame, aspect in (last[index - len(keys)] for index in indices):
                if keep is not None and key in at and kept <= most:
                    keep(_picture(self.frame_name(at[key]), frame, aspect, self))
                    kept += 1

        try:
            for number, (key, frame, aspect) in enumerate(_decode(self.open, self.name, self.timed, skip)):
                read += key in at and not frame.is_corrupt
                if key is None or frame.is_corrupt or number < due:
                    continue
                small = _small(frame, self)
                if emptiness(np.stack(3 * [small], -1), np.ones(small.shape, bool)) is not None:
                    continue  # as before a film is faded in
                keys.append(key)
                last.append((key, frame, aspect))
                shift, sharpness = meter.add(small)
                hand_on(stepper.add(shift, sharpness))
                speed = float(np.linalg.norm(shift, axis=1).mean()) / (number - watched)
                watched, due = number, number + (1 if every * speed > MOTION_STEP else every)
            hand_on(stepper.end())
            return keys, meter.motion, read if skip == "DEFAULT" else len(at)
        except (FFmpegError, InputError, ValueError) as error:
            logger.debug("%s: motion not measured: %s", self.name, error)
            return None


def scan(name: str, stem: str, opener: Callable[[], BinaryIO]) -> Film:
    """Read the packet headers of a video; InputError with the reason if it has no frame."""
    stamps: list[Stamp] = []
    sound = damaged = 0
    with opener() as file, _open_container(file, name) as container:
        stream = _pictures_of(container, name)
        rate, tick_s = float(stream.average_rate or 30), float(stream.time_base or 1)
        # Of a film that was trimmed by its edit list, the table counts all frames, and the index those within it.
        announced = min(stream.frames, len(stream.index_entries) or stream.frames)
        size, stated = (stream.width, stream.height), stream.metadata.get("DURATION")
        for packet in _packets(container, stream, name):
            if packet.size == 0:
                continue
            damaged += packet.is_corrupt
            sound += not packet.is_corrupt
            if not packet.is_corrupt and not packet.is_discard:
                stamps.append(Stamp(packet.pts, packet.dts))
        container_name, length = container.format.name, file.seek(0, os.SEEK_END)
    if not stamps:
        raise InputError(f"no frames in {name}: its video stream is empty")
    total = max(announced, sound + damaged)
    damage = (
        f"incomplete: {total - sound} of {total} frames cannot be read; the others are used"
        if sound < total
        else cut_short([stamp.pts * tick_s for stamp in stamps if stamp.pts is not None], stated)
    )
    keys, times_s, timed, parts = timeline(stamps, container_name, rate, tick_s)
    if parts > 1:
        logger.warning("%s: its time stamps start %d times; the parts are taken one after the other", name, parts)
    film = Film(name, stem, opener, keys, times_s, timed, size, rate, len(stamps), length, damage)
    if has_shape(size) and film.shows_all_directions:
        raise InputError(ALL_DIRECTIONS.format(name=name))
    return film


def read_frames(clip: Clip) -> Iterator[Frame]:
    """Decode the chosen frames of a clip.

    One frame is held at a time. After a damaged packet, decoding resumes at the next key frame; the caller sees the gap
    by the missing names. (The decoder may conceal the damage in one or two frames that were in progress; in a truncated
    file it does not, since the last packet is known to be incomplete.)
    """

    pending = dict(clip.frames)
    for key, frame, aspect in _decode(clip.open, clip.name, clip.timed):
        name = None if key is None else pending.pop(key, None)
        if name is not None and not frame.is_corrupt:
            yield _picture(name, frame, aspect, clip)
        if not pending:
            return


def read_all(film: Film, skip: int = 0) -> Iterator[tuple[float, Frame]]:
    """Decode the frames of a film one after the other, with their times in seconds, without the first `skip` of them.

    As with `read_frames`, decoding resumes after damage at the next key frame, and ends where nothing follows.
    """
    at, number = {key: index for index, key in enumerate(film.keys)}, 0
    for key, frame, aspect in _decode(film.open, film.name, film.timed):
        if key is None or key not in at or frame.is_corrupt:
            continue
        if number >= skip:
            yield film.times_s[at[key]], _picture(film.frame_name(at[key]), frame, aspect, film)
        number += 1


def _picture(name: str, frame: VideoFrame, aspect: float, video: Film | Clip) -> Frame:
    """A decoded frame as a picture; InputError where it cannot be one."""
    from av.error import FFmpegError

    try:
        width = _square(frame.width, frame.height, aspect, video.name)
        if video.is_interlaced:
            image = Image.fromarray(without_combs(rgb_of(frame))).resize((width, frame.height))
        else:
            image = Image.fromarray(rgb_of(frame, width))  # `to_image` takes six times as long
    except (FFmpegError, ValueError) as error:
        raise InputError(f"frames of {video.name} cannot be converted to pictures ({error})") from error
    bars = NO_BARS
    if video.bars.size == (frame.width, frame.height):  # a frame may have another size than the others
        bars = video.bars.at_width(image.width)
        image = image.crop(bars.content)
    return Frame(name, image, orientation_of(frame), bars)


def orientation_of(frame: VideoFrame) -> int:
    """The EXIF orientation that means the same as a frame's display matrix, to the nearest quarter of a turn."""
    stated = frame.side_data.get("DISPLAYMATRIX")
    if stated is None:
        return 1
    a, b, _, c, d = np.frombuffer(stated, np.int32)[:5].astype(float)
    main = (a, 0, 0, d) if abs(a) + abs(d) >= abs(b) + abs(c) else (0, b, c, 0)
    return EXIF_OF_MATRIX.get(tuple(np.sign(main).astype(int).tolist()), 1)


def _small(frame: VideoFrame, film: Film) -> np.ndarray:
    """A small grey frame, without bars and combs, to measure its motion; of one size, though the film's may change."""
    size = frame.width, frame.height
    whole, part = film.bars.content if film.bars.size == film.size else (0, 0, *film.size), (0, 0, *size)
    left, top, right, lower = whole if size == film.size else part
    width, height = small_size(whole[2] - whole[0], whole[3] - whole[1])
    x, y = width / (right - left), height / (lower - top)
    size = math.ceil(round(frame.width * x, 6)), math.ceil(round(frame.height * y, 6))
    if film.is_interlaced:
        rows = without_combs(frame.reformat(format="gray").to_ndarray())
        whole = np.asarray(Image.fromarray(rows).resize(size, Image.Resampling.BILINEAR))
    else:
        whole = frame.reformat(*size, "gray").to_ndarray()
    return whole[round(top * y) :, round(left * x) :][:height, :width]


def _decode(
    opener: Callable[[], BinaryIO], name: str, timed: bool, skip: Skip = "DEFAULT"
) -> Iterator[tuple[int | None, VideoFrame, float]]:
    """Decode the frames of a video one at a time, with their keys and the aspect ratio of their pixels."""
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
    """The video stream with the largest pictures, not a thumbnail or a cover; InputError if there is none, or it cannot
    be decoded, or is too large."""
    from av.stream import Disposition

    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        cover = " but a cover picture" if container.streams.video else ""
        raise InputError(f"no frames in {name}: it has no video stream{cover}")
    known = [stream for stream in films if stream.codec_context is not None]
    if not known:
        raise InputError(f"no frames in {name}: its codec is unknown; convert it to H.264 in .mp4")
    stream = max(known, key=lambda stream: stream.width * stream.height)  # of equal ones the first
    _square(stream.width, stream.height, float(stream.sample_aspect_ratio or 1), name)
    return stream


def _square(width: int, height: int, aspect: float, name: str) -> int:
    """The width in square pixels of a frame whose pixels are `aspect` times as wide as high."""
    shown = max(1, round(width * aspect))
    if max(width, shown) * height > MAX_FRAME_PIXELS:
        raise InputError(
            f"frames of {name} have {width}x{height} pixels, each {aspect:g} times as wide as high: over the limit of "
            f"{MAX_FRAME_PIXELS / 1e6:.0f} megapixels"
        )
    return shown


def _packets(container: InputContainer, stream: VideoStream, name: str) -> Iterator[Packet]:
    """Packets until the end, or until damage hides the rest."""
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
