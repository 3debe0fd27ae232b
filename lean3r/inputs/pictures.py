"""The pictures of one run: listed once, and read for the network, refinement and other programs."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lean3r.errors import InputError, UsageError
from lean3r.inputs import arrays
from lean3r.inputs.decoding import open_image, own_pixel_limit
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.kept_frames import DECODERS, LOOKAHEAD, NOT_KEPT, PNG_LEVEL, FrameKeeper, KeptFrame
from lean3r.inputs.listing import Listing, Still, find_pictures, nothing_usable
from lean3r.inputs.masks import Masks, check_folder
from lean3r.inputs.past import Past
from lean3r.inputs.upright import decode_whole, turned, upright
from lean3r.inputs.video import Clip, Frame, read_frames
from lean3r.inputs.views import (
    Picture,
    SizeOf,
    assemble,
    decode_frame,
    decode_picture,
    network_size,
    whole_size,
)
from lean3r.scratch import temporary_folder
from lean3r.types import Prediction, Views

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    One = str | Path | Image.Image | np.ndarray | Tensor
    PictureInput = One | Sequence[One]

logger = logging.getLogger("lean3r")


class Pictures:
    """Folders, picture files, globs, zip archives, videos, or pictures in memory (PIL images; arrays [H, W, 3] or
    [S, H, W, 3]; tensors [3, H, W] or [S, 3, H, W]; uint8, or floats from 0 to 1), one or a sequence of them.

    They are listed once, on construction; InputError if there are none, UsageError if `frames` is no FrameChoice. Named
    files come first, in natural order, then the contents of folders and archives, then pictures in memory. `frames`
    chooses among them; `masks` is a folder of masks for them (inputs/masks.py). A video is decoded once, and its chosen
    frames are kept on disk while the object lives, unless `keep_frames` is off. If image motion chooses the frames and
    the usual step gives too few or too many, the step changes and the video is decoded a second time.

    `kept` is a folder in which refinement keeps what it finds in the pictures for the next run, which shows some of
    them again; None: nowhere. It calls `searched` before it looks there. Refinement finds nothing unless so many
    first pictures are `meeting` others in a match, and doubts what hangs loosely on those that are `joined` to what
    was found before (their numbers). With a `past` it goes on from what was found of that, or finds nothing. If it
    `follows`, it follows points from frame to frame of a video where few features match. In a `chain`, each picture
    is known to overlap with the one before. Where they are `calibrated`, their known intrinsics were found in others of
    the same camera, and nothing is said against these.
    """

    kept: Path | None = None
    meeting: int = 0
    joined: tuple[int, ...] = ()
    past: Past | None = None
    follows: bool = False
    chain: bool = False
    calibrated: bool = False
    searched: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self,
        inputs: PictureInput,
        frames: FrameChoice | None = None,
        *,
        masks: str | Path | None = None,
        keep_frames: bool = True,
    ) -> None:
        if not isinstance(frames, FrameChoice | None):
            raise UsageError(f"frames is {frames!r}; expected a FrameChoice, such as FrameChoice(frames=5).")
        if masks is not None:
            check_folder(Path(masks))
        values = arrays.separate(inputs)
        paths = [value for value in values if isinstance(value, str | Path)]
        self.inputs = tuple(arrays.describe(value) for value in values)
        self.places = tuple(
            os.path.abspath(Path(value).expanduser()) if isinstance(value, str | Path) else arrays.describe(value)
            for value in values
        )
        self.frames, self.keep_frames = frames or FrameChoice(), keep_frames
        self._mask_folder = None if masks is None else Path(masks)
        self._listing = find_pictures(paths, arrays.stills_of_all([v for v in values if not isinstance(v, str | Path)]))
        self._choose()

    def _choose(self) -> None:
        self._unusable: dict[str, str] = {}
        self._scratch = contextlib.ExitStack()
        weakref.finalize(self, self._scratch.close)
        keepers: dict[str, FrameKeeper] = {}

        def keeping(video: str) -> Callable[[Frame], None] | None:
            if self.keep_frames and not self.frames.is_stated and (keeper := self._keeper()) is not None:
                keepers[video] = keeper
                return keeper.keep
            return None

        selection = self._listing.choose(self.frames, keeping)
        # Of each video that was decoded, its frames.
        self._kept: dict[str, dict[str, KeptFrame]] = {video: keeper.done() for video, keeper in keepers.items()}
        self._items, self._left_out = selection.items, selection.skipped
        self.names = selection.names

    @classmethod
    def of_stills(cls, stills: Sequence[Still], inputs: Sequence[str]) -> Pictures:
        """Picture files that were listed before, in this order and under their names; `inputs` says where they are."""
        made = cls.__new__(cls)
        made.inputs = made.places = tuple(inputs)
        made.frames, made.keep_frames, made._mask_folder = FrameChoice(), False, None
        made._listing = Listing(tuple(stills), ())
        made._choose()
        return made

    def stills(self, folder: Path) -> list[Still]:
        """The chosen pictures as files; frames of videos are written to `folder`. Frames that cannot be read any more
        are left out."""
        found: list[Still] = []
        for item in self._items:
            if isinstance(item, Clip):
                found += frame_files(self._frames(item), folder)
            else:
                found.append(item)
        return found

    def at_most(self, views: int) -> Pictures:
        """The same pictures, thinned evenly to `views`, or other frames of a video; nothing is listed again, and
        picture files that `views` could not use do not count."""
        fewer = copy.copy(self)
        fewer._listing = self._listing.without(self._unusable)
        fewer.frames = replace(self.frames, max_views=views)
        fewer._choose()
        return fewer

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        clips = sum(isinstance(item, Clip) for item in self._items)
        videos = f", {clips} videos" if clips > 1 else ", a video" if clips else ""
        return f"Pictures({', '.join(self.inputs)}: {len(self):,} views{videos}, {len(self.skipped)} skipped)"

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of everything that was left out, or that `views` could not use."""
        return (*self._left_out, *self._unusable.items())

    @property
    def cautions(self) -> tuple[str, ...]:
        """Why the cameras of its videos may be far off, as far as these show it."""
        return tuple(item.caution for item in self._items if isinstance(item, Clip) and item.caution is not None)

    @property
    def timestamps_s(self) -> tuple[float | None, ...]:
        """The time of each view in its video, in seconds from the first frame; None for pictures."""
        return tuple(
            time_s
            for item in self._items
            for time_s in ([item.times_s.get(n) for n in item.frames.values()] if isinstance(item, Clip) else [None])
        )

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the picture files, without video frames."""
        return tuple(item.name for item in self._items if isinstance(item, Still))

    @property
    def are_at_hand(self) -> bool:
        """Whether the pictures can be read again without decoding a video once more."""
        return all(isinstance(item, Still) or self._kept_of(item) for item in self._items)

    @property
    def are_loose_files(self) -> bool:
        """False if any picture is in a video, an archive or memory, where other programs cannot find it."""
        return all(isinstance(item, Still) and item.is_loose for item in self._items)

    @property
    def masks(self) -> Masks | None:
        """The masks of the usable pictures, as far as is known; InputError if the folder has none that fits."""
        names = [name for name in self.names if name not in self._unusable]
        return None if self._mask_folder is None else Masks.find(self._mask_folder, names)

    def views(self, *, resolution: int, patch: int, progress: Callable[[int, int], None] | None = None) -> Views:
        """Network input, B = 1: each picture at its own `network_size`, smaller ones padded to the largest.

        Unusable pictures are skipped with a warning and listed in `skipped`. `progress(done, total)` is called after
        each view. InputError if nothing usable remains.
        """
        network_size(1, 1, resolution, patch)
        size_of = partial(network_size, resolution=resolution, patch=patch)
        pictures, self._unusable = [], {}
        with own_pixel_limit():
            for done, (name, result) in enumerate(self._decode(size_of), start=1):
                if isinstance(result, Picture):
                    pictures.append(result)
                else:
                    logger.warning("skipped %s: %s", name, result)
                    self._unusable[name] = str(result)
                if progress:
                    progress(done, len(self))
        if not pictures:
            raise nothing_usable(self.inputs, self.skipped)
        return assemble(pictures, patch)

    def predicted(self, predict: Callable[[], Prediction]) -> Prediction:
        """What a network says of these pictures, by `predict`; for pictures that are reconstructed more than once, what
        it said the first time."""
        return predict()

    def whole(self, names: Collection[str], size_of: SizeOf = whole_size) -> Iterator[Picture]:
        """The pictures called `names`, one at a time, at some size, or their own, in the order of the input.
        Pictures that can no longer be read are left out."""
        wanted = set(names)
        with own_pixel_limit():
            for name, result in self._decode(size_of):
                if name in wanted and isinstance(result, Picture):
                    yield result

    def read(self, names: Collection[str], side: int) -> Iterator[tuple[str, Image.Image]]:
        """The pictures called `names`, one at a time, upright RGB, in the order of the input.

        Formats that decode faster at a half, a quarter or an eighth of their size may come so, with a longer side of at
        least `side`. Pictures that can no longer be read are left out.
        """
        with own_pixel_limit():
            for item in self._listing.called(names):
                if isinstance(item, Clip):
                    yield from self._frames(item)
                    continue
                try:
                    with item.open() as file:
                        yield item.name, decode_whole(file, item.name, side)
                except (InputError, OSError) as error:
                    logger.warning("%s cannot be read again: %s", item.name, error)

    def exif(self, names: Collection[str], block: int) -> Iterator[tuple[str, dict[int, Any]]]:
        """A block of EXIF fields (0x8825: GPS) of the picture files called `names` that have one; frames have none."""
        for item in self._listing.called(names):
            if isinstance(item, Still):
                fields: dict[int, Any] = {}
                # A damaged EXIF block raises anything.
                with own_pixel_limit(), contextlib.suppress(Exception), item.open() as file, open_image(file) as image:
                    fields = dict(image.getexif().get_ifd(block))
                if fields:
                    yield item.name, fields

    def write(self, names: Sequence[str], directory: Path) -> list[Path]:
        """Write the pictures called `names` into a folder, under these names, upright, at their full size.

        Frames become PNG; picture files are copied byte by byte, unless EXIF states a rotation: then they are rotated
        and re-encoded in their own format. InputError if one is no longer there.
        """
        requested, written = set(names), []
        for item in self._listing.called(requested):
            if isinstance(item, Clip) and (kept := self._kept_of(item)):
                for name, frame in kept.items():
                    written.append(_new_path(directory, name))
                    if frame.orientation == 1:
                        shutil.copyfile(frame.path, written[-1])
                    else:
                        image = turned(frame.read(name).image, frame.orientation)
                        image.save(written[-1], "PNG", compress_level=PNG_LEVEL)
            elif isinstance(item, Clip):
                for name, image in self._frames(item):
                    written.append(_new_path(directory, name))
                    image.save(written[-1], "PNG", compress_level=PNG_LEVEL)
            else:
                try:
                    with item.open() as file:
                        content = file.read()
                except OSError as error:
                    logger.warning("%s cannot be read again: %s", item.name, error)
                    continue
                written.append(_new_path(directory, item.name))
                written[-1].write_bytes(upright(content))
        missing = requested - {path.relative_to(directory).as_posix() for path in written}
        if missing:
            count = f"{len(missing)} of {len(requested)} pictures"
            raise InputError(f"{count} cannot be read again ({min(missing)}); did the input change during the run?")
        return written

    def _decode(self, size_of: SizeOf) -> Iterator[tuple[str, Picture | InputError]]:
        """Each view in order, or the reason why there is none. Only a few originals are held at a time."""

        def attempt(still: Still) -> Picture | InputError:
            try:
                with still.open() as file:
                    return decode_picture(file, still.name, size_of)
            except InputError as error:
                return error
            except OSError as error:
                return InputError(f"cannot be read ({error.strerror or error})")

        for _, group in groupby(self._items, key=type):
            run = list(group)
            yield from _in_threads(attempt, [i for i in run if isinstance(i, Still)])
            for clip in run:
                if isinstance(clip, Clip):
                    yield from self._decode_clip(clip, size_of)

    def _decode_clip(self, clip: Clip, size_of: SizeOf) -> Iterator[tuple[str, Picture | InputError]]:
        missing = dict.fromkeys(clip.frames.values())
        kept = self._kept_of(clip)
        keeper = self._keeper() if self.keep_frames and not kept else None
        frames = (frame.read(name) for name, frame in kept.items()) if kept else read_frames(clip)
        try:
            for frame in frames:
                picture = decode_frame(frame, clip, size_of)
                if keeper is not None:
                    keeper.keep(frame)
                del missing[frame.name]
                yield frame.name, picture
            reason = f"the frame is damaged in {clip.name}"
        except InputError as error:
            reason = str(error)
        except OSError as error:  # the video is gone
            reason = f"{clip.name} cannot be read ({error.strerror or error})"
        if keeper is not None and (kept := keeper.done()):
            self._kept[clip.name] = kept
        for name in missing:
            yield name, InputError(reason)

    def _frames(self, clip: Clip) -> Iterator[tuple[str, Image.Image]]:
        """The frames of a clip, upright, as far as they can be read: kept ones, or decoded again."""
        if kept := self._kept_of(clip):
            for name, frame in kept.items():
                yield name, turned(frame.read(name).image, frame.orientation)
            return
        try:
            for frame in read_frames(clip):
                yield frame.name, turned(frame.image, frame.orientation)
        except (InputError, OSError) as error:
            logger.warning("%s cannot be read to its end again: %s", clip.name, error)

    def _kept_of(self, clip: Clip) -> dict[str, KeptFrame]:
        """The files of a clip's frames, if all were kept and nobody has removed them since."""
        kept = self._kept.get(clip.name, {})
        files = {name: kept[name] for name in clip.frames.values() if name in kept and kept[name].path.exists()}
        return files if len(files) == len(clip.frames) else {}

    def _keeper(self) -> FrameKeeper | None:
        try:
            return FrameKeeper(self._scratch.enter_context(temporary_folder("frames")))
        except OSError as error:
            logger.debug(NOT_KEPT, error)
            return None


def _in_threads(
    attempt: Callable[[Still], Picture | InputError], stills: Sequence[Still]
) -> Iterator[tuple[str, Picture | InputError]]:
    """(name, result) in order; decoders run in threads, a few pictures ahead."""
    waiting: deque[tuple[str, Future[Picture | InputError]]] = deque()
    with ThreadPoolExecutor(DECODERS) as pool:
        for still in stills:
            waiting.append((still.name, pool.submit(attempt, still)))
            if len(waiting) > LOOKAHEAD:
                name, future = waiting.popleft()
                yield name, future.result()
        for name, future in waiting:
            yield name, future.result()


def frame_files(frames: Iterable[tuple[str, Image.Image]], folder: Path) -> list[Still]:
    """Frames with their names, written to a folder as PNG files."""
    found = []
    for number, (name, image) in enumerate(frames, start=sum(1 for _ in folder.iterdir())):
        path = folder / f"{number:06d}.png"
        image.save(path, "PNG", compress_level=PNG_LEVEL)
        found.append(Still(name, partial(path.open, "rb"), is_loose=False))
    return found


def _new_path(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{name} would be written outside {directory}; rename it.")
    if path.exists():  # where upper and lower case are the same
        raise InputError(f"{name} would replace another picture whose name differs only in case; rename one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
