"""What each frame of a sequence may see: the policy of a causal cache, as a table between frames.

The first frames (anchors) see one another fully. Every later one sees the anchors and the last stored frames (window)
fully, itself included, and the first few tokens (memory) of all stored frames between them. Only keyframes are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.tracing import is_traced

TRAINED = 320
"""Stored frames of the longest clips in training."""

Pages = Literal["auto", "float32", "bfloat16", "float8"]


@dataclass(frozen=True)
class CachePolicy:
    """What a stream keeps. Frames are counted from 0, anchors are the first `anchors` of them.

    `window` counts stored frames behind the anchors, a new keyframe included. Every `interval`-th frame behind the
    anchors is a keyframe; None: every frame, or of a sequence of known length as many as fit into TRAINED. With
    `motion_px` a frame is a keyframe if pixels move farther than that since the last one, on average, or if it is
    `max_gap` frames away; other frames leave no trace. `memory` is the number of tokens kept of every stored frame
    (camera first, then registers, then scale). `camera_passes` are refinements of the camera, None for all.

    `pages` is the number type of cached keys and values: "auto" is that of the products; "float8" has one scale for
    each page and head. With `top_pages`, a frame sees of the window only the `recent` last frames and so many of the
    others, those whose mean key is nearest to its mean query. `reserve` is the number of stored frames for whose memory
    room is made at a time. `camera_keeps_all`: the camera head also keeps frames that motion did not make keyframes, as
    the authors' program does; only for comparisons with it.
    """

    anchors: int = 8
    window: int = 64
    interval: int | None = None
    motion_px: float | None = None
    max_gap: int = 30
    memory: int = 6
    camera_passes: int | None = None
    pages: Pages = "auto"
    top_pages: int | None = None
    recent: int = 4
    reserve: int = TRAINED
    camera_keeps_all: bool = False

    def __post_init__(self) -> None:
        least = {"anchors": 1, "window": 1, "interval": 1, "max_gap": 1, "memory": 0, "camera_passes": 1}
        for name, low in (least | {"top_pages": 0, "recent": 0, "reserve": 1}).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}; expected at least {low}.")
        if self.motion_px is not None and not self.motion_px >= 0:
            raise UsageError(f"motion_px is {self.motion_px}; expected at least 0 pixels.")

    def for_frames(self, count: int) -> CachePolicy:
        """The policy for a sequence of this many frames: an `interval` of None becomes a number, that of up to TRAINED
        frames in a traced model, which takes no more."""
        if self.interval is not None:
            return self
        return replace(self, interval=1 if is_traced() else max(1, -(-count // TRAINED)))

    def is_keyframe(self, index: int) -> bool:
        """Whether a frame is stored, by its number alone."""
        return index < self.anchors or (index - self.anchors) % (self.interval or 1) == 0


@dataclass(frozen=True)
class FrameTable:
    """Which of S frames see which: row t sees all tokens of the columns where `full` [S, S] is True, and the memory
    tokens of those where `memory` [S, S] is True. `times` [S] counts the stored frames before each."""

    full: Tensor
    memory: Tensor
    times: Tensor

    @classmethod
    def of(cls, policy: CachePolicy, count: int) -> FrameTable:
        """The table of `count` frames, of which the policy's interval stores some."""
        every = policy.interval or 1
        t = torch.arange(count)
        behind = t - policy.anchors  # frames behind the anchors, negative for these
        before = (behind + every - 1).div(every, rounding_mode="floor").clamp_min(0)  # keyframes behind them, before t
        anchor = behind < 0
        kept = anchor | (behind % every == 0)
        newest = before + (~anchor & kept)  # as `before`, t included
        in_window = newest[:, None] - before <= policy.window
        past = t[:, None] >= t
        full = (past & (anchor | (kept & in_window))) | (anchor[:, None] & anchor) | (t[:, None] == t)
        return cls(full, past & kept & ~full, t.minimum(policy.anchors + before))
