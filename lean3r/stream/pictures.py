"""Keyframes of a stream as the pictures of one run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lean3r.geometry.content import emptiness
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.pictures import Pictures
from lean3r.inputs.views import Picture, assemble, fit, network_size
from lean3r.stream.engine import Frame
from lean3r.types import Prediction, Source, Views

CONTENT_PIXELS = 240  # longer side from which pictures are judged smaller
SIDE = 960  # pixels of the longer side near which pictures are kept: those with twice as many at half their size, ...


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A frame that is kept for a while: its number in the stream, its time, the (width, height) of the original, and
    its pixels [H, W, 3] uint8, shrunk by a whole `factor` (sides rounded up), the `bars` that were cut off, and the
    `file` that it is, if it has a name of its own."""

    index: int
    timestamp_s: float
    size: tuple[int, int]
    pixels: np.ndarray
    factor: int
    bars: tuple[int, int, int, int] | None = None
    file: str = ""

    @classmethod
    def of(cls, frame: Frame) -> Keyframe:
        """The keyframe of a frame."""
        image = frame.image
        height, width = image.shape[:2]
        factor = shrinking(height, width)
        pixels = image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))
        pixels = np.ascontiguousarray(pixels)
        return cls(frame.index, frame.timestamp_s, (width, height), pixels, factor, frame.bars, frame.file)

    @property
    def name(self) -> str:
        """A name that no other frame has, nor any of a stream that this one goes on from."""
        return f"frame_{self.index:06d}.png"

    @property
    def shown(self) -> str:
        """The name of the frame in every output."""
        return self.file or self.name

    def state(self) -> dict[str, Any]:
        """As arrays and plain values."""
        return {
            "index": self.index,
            "timestamp_s": self.timestamp_s,
            "size": list(self.size),
            "pixels": self.pixels,
            "factor": self.factor,
            "bars": None if self.bars is None else list(self.bars),
            "file": self.file,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Keyframe:
        """From `state`."""
        width, height = state["size"]
        bars = None if state["bars"] is None else tuple(state["bars"])
        at = state["index"], state["timestamp_s"], (width, height)
        return cls(*at, state["pixels"], state["factor"], bars, state["file"])


def shrinking(height: int, width: int) -> int:
    """The whole factor by which a keyframe of this size is kept smaller."""
    return max(1, round(max(height, width) / SIDE))


class Recent(Pictures):
    """Keyframes as `Pictures`: read again and again from memory, with their times, as frames of one video. The network
    sees them once."""

    def __init__(
        self,
        keyframes: Sequence[Keyframe],
        kept: Path | None = None,
        meeting: int = 0,
        joined: Sequence[int] = (),
    ) -> None:
        self.kept, self.meeting, self.joined = kept, meeting, tuple(joined)
        self.chain = not meeting
        self.inputs = self.places = ("a stream",)
        self.frames, self.keep_frames = FrameChoice(), False
        self._keyframes = {keyframe.name: keyframe for keyframe in keyframes}
        self._prediction: Prediction | None = None
        self.names = tuple(self._keyframes)

    @property
    def keyframes(self) -> list[Keyframe]:
        """These."""
        return [*self._keyframes.values()]

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Nothing: only usable frames become keyframes."""
        return ()

    @property
    def cautions(self) -> tuple[()]:
        """None: the stream says them once (stream/frames.py)."""
        return ()

    @property
    def masks(self) -> None:
        """None: a stream has no masks."""
        return None

    @property
    def are_at_hand(self) -> bool:
        """False: the network sees them once."""
        return False

    def views(self, *, resolution: int, patch: int, progress: Callable[[int, int], None] | None = None) -> Views:
        """Network input, as of `Pictures`."""
        return assemble([picture_of(keyframe, resolution, patch) for keyframe in self._keyframes.values()], patch)

    def predicted(self, predict: Callable[[], Prediction]) -> Prediction:
        """See `Pictures`."""
        if self._prediction is None:
            self._prediction = predict()
        return self._prediction

    def read(self, names: Collection[str], side: int) -> Iterator[tuple[str, Image.Image]]:
        """The pictures called `names`, as of `Pictures`."""
        for name, keyframe in self._keyframes.items():
            if name in names:
                yield name, Image.fromarray(keyframe.pixels)


def has_content(keyframe: Keyframe) -> bool:
    """Whether a frame shows anything: not black, not all of one colour, not noise."""
    factor = max(1, max(keyframe.pixels.shape) // CONTENT_PIXELS)
    small = np.asarray(Image.fromarray(keyframe.pixels).reduce(factor))
    return emptiness(small, np.ones(small.shape[:2], bool)) is None


def picture_of(keyframe: Keyframe, resolution: int, patch: int) -> Picture:
    """The network's picture of a keyframe."""
    target = network_size(*keyframe.size, resolution, patch)
    image = Image.fromarray(keyframe.pixels)
    pixels, transform = fit(image, keyframe.size, 1, target, 1 / keyframe.factor)
    source = Source(keyframe.name, *keyframe.size, transform, timestamp_s=keyframe.timestamp_s, bars=keyframe.bars)
    return Picture(source, pixels)
