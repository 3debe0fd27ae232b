"""What an engine of a stream is: frames in, estimates out, a state that can be saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lean3r.geometry.lens import Optics
from lean3r.layers.frames import Pages
from lean3r.options import PointOptions
from lean3r.refine.options import RefineOptions
from lean3r.stereo.options import StereoOptions
from lean3r.stream import sim3
from lean3r.stream.bend import Bend, bent

if TYPE_CHECKING:
    from lean3r.models.base import Backbone
    from lean3r.stream.options import StreamOptions
    from lean3r.types import Lens, Source

FLAGS = (
    *("anchor", "keyframe", "joined", "uncertain", "lost", "between", "still", "no-content", "refined", "loop"),
    "apart",
)
"""What may be said of a frame, in the order of the bits in the store.

- `anchor`: its camera is the origin of the world;
- `keyframe`: the network saw it, and it has depth;
- `joined`: its window is joined to those before it by frames that agree;
- `uncertain`: its camera may be far off;
- `lost`: nothing connects it with the frames before; its camera is a guess;
- `between`: its camera is interpolated between those of keyframes, by the motion of the picture;
- `still`: the camera rests, and has that of the last keyframe;
- `no-content`: black, or without any structure;
- `refined`: the cameras of its window were adjusted to matches;
- `loop`: its window shows a place that was seen before, and is joined to it;
- `apart`: uncertain only because nothing joins its window to the first certain one yet; a loop may.
"""

# Warnings that the reports of windows have with their texts.
WITH_TEXT = ("known-focal-length", "known-principal-point", "unfinished")


class Frame(NamedTuple):
    """A frame of a stream: its number from 0, its time in seconds, and its picture [H, W, 3] uint8, upright; with
    `is_cut` it begins a film of its own, which nothing connects with the frames before; `bars` (left, top, right,
    lower) are the pixels that were cut off its edges; `file` is the name of its picture, if that has one, which is also
    the one that `lean3r.reconstruct` gives it."""

    index: int
    timestamp_s: float
    image: np.ndarray
    is_cut: bool = False
    bars: tuple[int, int, int, int] | None = None
    file: str = ""


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of one frame.

    cam_from_world [4, 4] float64 and intrinsics [3, 3] float64 in pixels of the frame, whose size is `width` x
    `height`. Keyframes have a network picture: `image` [H, W, 3] uint8, `depth` and `conf` [H, W] float32 (z-depth in
    world units, 0 where unknown) and `source`, which has the name of the frame's picture (frame_000123.png without one)
    and maps its pixels to those of the frame; other frames have None. `lens` is the whole camera in pixels of the frame
    if it bends lines; `intrinsics` are then its pinhole part.
    `flags` are some of FLAGS. cam_from_world is the pose `in_window` [4, 4], bent (bend.py) and moved by the similarity
    `placement` [4, 4] of window number `window`, as known in `version`: closing a loop and the end of a film revise
    earlier windows, and count up.
    """

    index: int
    timestamp_s: float
    cam_from_world: np.ndarray
    intrinsics: np.ndarray
    width: int
    height: int
    flags: frozenset[str]
    window: int = 0
    in_window: np.ndarray = field(default_factory=lambda: np.eye(4))
    placement: np.ndarray = field(default_factory=lambda: np.eye(4))
    version: int = 0
    image: np.ndarray | None = None
    depth: np.ndarray | None = None
    conf: np.ndarray | None = None
    source: Source | None = None
    lens: Lens | None = None

    @property
    def slopes(self) -> np.ndarray:
        """(x / z, y / z) [H, W, 2] of the rays through the pixels of `depth`, which a keyframe has; NaN where the lens
        sees nothing."""
        assert self.source is not None and self.depth is not None
        sx, sy, ox, oy = self.source.original_from_network
        matrix = np.array([[1 / sx, 0, -ox / sx], [0, 1 / sy, -oy / sy], [0, 0, 1]]) @ self.intrinsics
        lenses = () if self.lens is None else (self.lens,)
        return Optics([self.source], matrix[None], lenses).slopes(0, *self.depth.shape)


def flags_now(flags: frozenset[str], window: int, rejoined: Sequence[Sequence[int]]) -> frozenset[str]:
    """The flags of a frame, after loops have joined the windows of these ranges [first, end) to the first one."""
    is_joined = "apart" in flags and any(first <= window < end for first, end in rejoined)
    return flags - {"apart", "uncertain", "lost"} if is_joined else flags


def place(
    index: int,
    timestamp_s: float,
    size: tuple[int, int],
    pose: np.ndarray,
    intrinsics: np.ndarray,
    flags: frozenset[str],
    placements: Sequence[np.ndarray],
    lens: Lens | None = None,
) -> Estimate:
    """The estimate of a frame of this width and height with a `pose` in the last window, without depth; a guess
    of its intrinsics, uncertain, where they are not finite."""
    if not np.isfinite(intrinsics).all():
        (width, height), side = size, max(size)
        intrinsics = np.array([[side, 0, width / 2], [0, side, height / 2], [0, 0, 1.0]])
        flags |= {"uncertain"}
    window = max(0, len(placements) - 1)
    placement = placements[window] if placements else np.eye(4)
    world = sim3.move_poses(placement, pose)
    return Estimate(index, timestamp_s, world, intrinsics, *size, flags, window, pose, placement, lens=lens)


@dataclass(frozen=True)
class Settings:
    """How a stream is reconstructed: `window` keyframes at once, of which `overlap` are shared with the window before;
    a keyframe whenever the picture has moved by `step` of its longer side; network pictures with the area of a square
    of `resolution` pixels; at most `landmarks` keyframes are remembered to find places again; known `intrinsics` (fx,
    fy, cx, cy) in pixels of the frames, or of pictures whose width and height follow, and the known `lens` in the same
    pixels; whether frames may wait long for keyframes while the camera rests, as those of files do, and a live camera's
    do not (`waits`); the number type of cached keys and values, as in CachePolicy (`pages`)."""

    window: int = 48
    overlap: int = 12
    step: float = 0.12
    resolution: int | None = None
    seed: int = 0
    landmarks: int = 512
    intrinsics: tuple[float, ...] | None = None
    lens: Lens | None = None
    refine: RefineOptions = field(default_factory=RefineOptions)
    dense: StereoOptions = field(default_factory=lambda: StereoOptions(dense="network"))
    points: PointOptions = field(default_factory=PointOptions)
    waits: bool = True
    pages: Pages = "auto"


class Engine(Protocol):
    """Reconstructs a stream with bounded memory. Made of a model and Settings."""

    def __init__(self, model: Backbone, settings: Settings) -> None: ...

    @staticmethod
    def fit(
        model: Backbone,
        settings: Settings,
        options: StreamOptions,
        shape: Sequence[int],
        memory: str | int,
        queue: int,
    ) -> tuple[Settings, str]:
        """The settings that fit into the memory for frames of `shape` (H, W, 3), of which `queue` may wait whole, and
        the sum in words."""
        ...

    def push(self, frame: Frame) -> list[Estimate]:
        """Take the next frame; the frames whose estimate is known now, in order, each exactly once."""
        ...

    def finish(self) -> list[Estimate]:
        """No frame follows: the estimates of all frames that are still missing."""
        ...

    def locate(self, frame: Frame) -> Estimate | None:
        """Where a picture is, as far as the engine remembers its place; it is not stored. None if it is not found."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that the next estimates depend on: nested dictionaries and lists of arrays and plain values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, as if nothing had been in between."""
        ...

    version: int
    """How often earlier windows were revised."""

    bends: Mapping[int, Bend]
    """How windows bend, by their number: what is within them was revised too."""

    rejoined: Sequence[Sequence[int]]
    """Ranges [first, end) of windows that nothing joined to the first one, until a loop did."""

    @property
    def placements(self) -> np.ndarray:
        """The similarities [W, 4, 4] that move the windows into the world."""
        ...

    def take_reports(self) -> list[dict[str, Any]]:
        """What happened since the last call, for people and the store: a dictionary for each window."""
        ...

    @property
    def bytes(self) -> int:
        """Bytes of the frames, depth maps and other arrays that are held between two frames."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """An engine that can look at frames before their turn, while `push` waits for another process."""

    @property
    def has_room(self) -> bool:
        """Whether it can take one more before its turn."""
        ...

    def look(self, frame: Frame) -> None:
        """Take the next frame before its turn: the next call of `push` or `finish` goes on with it."""
        ...

    def go_on(self) -> list[Estimate]:
        """The estimates that are known next by the frames before their turn; none when these tell no more."""
        ...

    def prepare(self) -> None:
        """Nothing more is looked at for now: begin with what the frames before their turn will need."""
        ...


def revised(estimate: Estimate, engine: Engine) -> Estimate:
    """An estimate as the engine that gave it knows it now, after the loops that were closed since."""
    if estimate.version == engine.version:
        return estimate
    placement = engine.placements[estimate.window]
    growth = sim3.parts(placement)[0] / sim3.parts(estimate.placement)[0]
    return replace(
        estimate,
        cam_from_world=sim3.move_poses(
            placement, bent(engine.bends, estimate.window, estimate.index, estimate.in_window)
        ),
        placement=placement,
        flags=flags_now(estimate.flags, estimate.window, engine.rejoined),
        version=engine.version,
        depth=None if estimate.depth is None else estimate.depth * np.float32(growth),
    )
