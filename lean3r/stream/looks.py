"""What is known of frames before anything is reconstructed: their motion, and which of them become keyframes.

It depends on nothing but the frames, which may be looked at long before their turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lean3r.stream.engine import Frame
from lean3r.stream.keyframes import Selector
from lean3r.stream.pictures import Keyframe, has_content

REPEATED = 1e-4  # of the picture's longer side: a frame that has moved by less is the one before once more


class Seen(NamedTuple):
    """A frame that has been looked at: `travelled` says how far the picture had moved by then, `moving_s` for how many
    seconds it had been moving; `flow` [N, 2] float32 says how the nodes of frame number `reference` have moved (see
    inputs/flow.py), if that was measured."""

    index: int
    timestamp_s: float
    size: tuple[int, int]
    travelled: float
    moving_s: float
    has_content: bool
    reference: int = 0
    flow: np.ndarray | None = None

    @classmethod
    def restored(cls, state: Sequence[Any]) -> Seen:
        """From a list of its values."""
        index, timestamp_s, (width, height), *more = state
        return cls(index, timestamp_s, (width, height), *more)


class Look(NamedTuple):
    """A frame that has been looked at, and the frames that are `chosen` as keyframes since. Where it begins a film of
    its own, those with which the film before it has `ended`; else None."""

    seen: Seen
    chosen: list[Keyframe]
    ended: list[Keyframe] | None

    def state(self) -> dict[str, Any]:
        """As arrays and plain values."""
        ended = None if self.ended is None else [each.state() for each in self.ended]
        return {"seen": list(self.seen), "chosen": [each.state() for each in self.chosen], "ended": ended}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Look:
        """From `state`."""
        ended = None if state["ended"] is None else [Keyframe.restored(each) for each in state["ended"]]
        return cls(Seen.restored(state["seen"]), [Keyframe.restored(each) for each in state["chosen"]], ended)


class Looks:
    """Looks at frames in their order; `step` is that of keyframes."""

    def __init__(self, step: float) -> None:
        self._selector = Selector(step)
        self._last_s = self._moving_s = self._travelled = 0.0  # of the last frame

    def at(self, frame: Frame) -> Look:
        """One frame more."""
        ended = None
        if frame.is_cut:
            ended = self._selector.end()
            self._selector = Selector(self._selector.step)
            self._selector.travelled = self._travelled
        keyframe = Keyframe.of(frame)
        shows = has_content(keyframe)
        # The camera goes on while nothing is seen: what was seen last is kept.
        chosen = self._selector.add(keyframe) if shows else self._selector.end()
        travelled = self._selector.travelled
        if travelled - self._travelled > REPEATED:
            self._moving_s += frame.timestamp_s - self._last_s
        self._last_s, self._travelled = frame.timestamp_s, travelled
        way = travelled, self._moving_s, shows
        flow = self._selector.flow if shows else None
        flow = None if flow is None else flow.astype(np.float32)
        seen = Seen(frame.index, frame.timestamp_s, keyframe.size, *way, self._selector.reference, flow)
        return Look(seen, chosen, ended)

    def end(self) -> list[Keyframe]:
        """The keyframes that are still to come, if no frame follows."""
        return self._selector.end()

    @property
    def earliest(self) -> float:
        """The number of the first frame that may still become a keyframe."""
        return self._selector.earliest

    @property
    def bytes(self) -> int:
        """Of the pictures that wait."""
        return self._selector.bytes

    def state(self) -> dict[str, Any]:
        """See Engine.state."""
        last = [self._last_s, self._travelled, self._moving_s]
        return {"selector": self._selector.state(), "last": last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Engine.restore."""
        self._selector.restore(state["selector"])
        self._last_s, self._travelled, self._moving_s = state["last"]
