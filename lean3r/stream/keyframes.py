"""Which frames of a stream become keyframes: by the motion of the picture, never by their number.

The motion of the picture since the last keyframe is measured against a reference frame, which follows only where the
picture has moved clearly: the slowest motion adds up, and that of a resting camera stays zero for hours. Where parts of
the picture move differently, the camera goes somewhere, and does not only turn: such motion counts more, or metres of
walking ahead pass without a keyframe, and with them the scale of what follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lean3r.inputs.flow import Reference, flow_between
from lean3r.inputs.motion import LOST, REACH, SHARP_REACH, sharpness_of, small_size
from lean3r.stream.pictures import Keyframe

APART_S = 1.0  # from the frame before: then a camera between keyframes would be a guess
RESTING = 0.05  # of the step: such frames show a camera at rest
PARALLAX = 2.0  # by which motion counts in which the picture's parts differ
FOLLOW = 0.03  # of the longer side: motion since the reference frame at which the next frame takes its place


class _Candidate(NamedTuple):
    """A frame that may still become a keyframe: where its parts are, and how sharp it is."""

    keyframe: Keyframe
    at: np.ndarray
    sharpness: float


class Selector:
    """Chooses keyframes as frames come: the first, then, of those whose picture is nearly `step` away from the last
    chosen one, the sharpest. Which one that is, is known at most REACH frames later. Frames that are APART_S from the
    one before, as single photos are, are keyframes wherever the camera does not rest."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.travelled = 0.0  # by the picture since the start, in longer sides
        self.flow: np.ndarray | None = None  # of the last frame from frame number `reference`, if it was measured
        self.reference = 0
        self._reference: Reference | None = None
        self._reference_index = 0
        self._last: np.ndarray | None = None
        self._reference_at = np.zeros(2)  # one row for each part follows in `_at`
        self._at: np.ndarray | None = None
        self._key_at: np.ndarray | None = None
        self._waiting: deque[_Candidate] = deque(maxlen=REACH + 1)
        self._last_s = 0.0

    def add(self, keyframe: Keyframe) -> list[Keyframe]:
        """One frame more; the frames that are now known to be keyframes. `travelled` says how far the picture is."""
        grey = _grey(keyframe)
        is_apart = keyframe.timestamp_s - self._last_s >= APART_S
        self._last_s = keyframe.timestamp_s
        at, moved = self._move(grey, keyframe.index)
        self.travelled += moved
        if self._key_at is None or self._key_at.shape != at.shape:  # the first, or one of another shape
            self._key_at = at
            self._waiting.clear()
            return [keyframe]
        self._waiting.append(_Candidate(keyframe, at, sharpness_of(grey)))
        if is_apart and self._away(self._waiting[-1]) > RESTING * self.step:
            self._key_at = at
            self._waiting.clear()
            return [keyframe]
        chosen = []
        while (best := self._best()) is not None:
            while (first := self._waiting.popleft()) is not best:
                del first
            self._key_at = best.at
            chosen.append(best.keyframe)
        return chosen

    def end(self) -> list[Keyframe]:
        """The last frame, where it is far enough from the last keyframe. None before the next one can be chosen now."""
        last = self._waiting[-1] if self._waiting else None
        far = last is not None and self._away(last) > self.step / 2
        self._waiting.clear()
        if last is None or not far:
            return []
        self._key_at = last.at
        return [last.keyframe]

    def _away(self, candidate: _Candidate) -> float:
        """How far the picture has moved from the last keyframe."""
        assert self._key_at is not None
        shift = candidate.at - self._key_at
        apart = np.linalg.norm(shift - np.median(shift, axis=0), axis=1)
        return max(float(np.linalg.norm(shift, axis=1).mean()), PARALLAX * float(np.median(apart)))

    def _best(self) -> _Candidate | None:
        """The next keyframe among those that wait; None as long as none is far enough."""
        away = [self._away(candidate) for candidate in self._waiting]
        late = next((i for i, far in enumerate(away) if far >= self.step), None)
        if late is None:
            return None
        early = next(i for i, far in enumerate(away) if far >= (1 - SHARP_REACH) * self.step)
        return max(list(self._waiting)[early : late + 1], key=lambda candidate: candidate.sharpness)

    def _move(self, grey: np.ndarray, index: int) -> tuple[np.ndarray, float]:
        """Where the parts [B, 2] of a frame are, and how far they have moved since the frame before."""
        before, last = self._at, self._last
        self._last, self.flow, self.reference = grey, None, self._reference_index
        if self._reference is None or before is None or self._reference.picture.shape != grey.shape:
            blocks = 1 if before is None else len(before)
            self._reference = Reference(grey)
            shift = self._reference.flow_to(grey)
            blocks = blocks if shift is None else len(shift)
            is_first = before is None
            far = 0.0 if is_first else LOST
            centre = np.zeros(2) if before is None else before.mean(0)
            self._at = self._reference_at = np.tile(centre + far / np.sqrt(2), (blocks, 1))
            self._reference_index = index
            return self._at, far
        shift = self._reference.flow_to(grey)
        if shift is None:
            step = None if last is None or last.shape != grey.shape else flow_between(last, grey)
            at = before + (np.full_like(before, LOST / np.sqrt(2)) if step is None else step)
        else:
            at, self.flow = self._reference_at + shift, shift
        if shift is None or float(np.linalg.norm(shift, axis=1).mean()) > FOLLOW:
            self._reference, self._reference_at, self._reference_index = Reference(grey), at, index
        self._at = at
        return at, float(np.linalg.norm(at - before, axis=1).mean())

    def state(self) -> dict[str, Any]:
        """See Engine.state."""
        return {
            "travelled": self.travelled,
            "last_s": self._last_s,
            "reference": None if self._reference is None else self._reference.picture,
            "last": self._last,
            "reference_at": self._reference_at,
            "reference_index": self._reference_index,
            "at": self._at,
            "key_at": self._key_at,
            "waiting": [{**c.keyframe.state(), "at": c.at, "sharpness": c.sharpness} for c in self._waiting],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Engine.restore."""
        self.travelled, self._last, self._last_s = state["travelled"], state["last"], state["last_s"]
        self._reference = None if state["reference"] is None else Reference(state["reference"])
        self._reference_at, self._at, self._key_at = state["reference_at"], state["at"], state["key_at"]
        self._reference_index = state["reference_index"]
        waiting = [_Candidate(Keyframe.restored(c), c["at"], c["sharpness"]) for c in state["waiting"]]
        self._waiting = deque(waiting, maxlen=REACH + 1)

    @property
    def earliest(self) -> float:
        """The number of the first frame that may still be chosen."""
        return self._waiting[0].keyframe.index if self._waiting else np.inf

    @property
    def bytes(self) -> int:
        """Of the pictures that wait."""
        last, reference = self._last, self._reference
        greys = (0 if last is None else last.nbytes) + (0 if reference is None else reference.bytes)
        return greys + sum(candidate.keyframe.pixels.nbytes for candidate in self._waiting)


def _grey(keyframe: Keyframe) -> np.ndarray:
    """The small grey frame [H, W] float32 in which motion is measured."""
    size = small_size(*keyframe.size)
    small = Image.fromarray(keyframe.pixels).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(small.convert("L"), np.float32)
