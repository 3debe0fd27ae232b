"""The film that a stream shows, as far as it is remembered: windows go on from what was found of it.

A window knows its own keyframes only. Where few of them see the same, those before may: a window whose cameras are not
all trusted tries to go on from them. At the end of a film few others see the last ones, while a walk often ends where
it began: the last window goes on from all that is remembered, which is all of a short film (an office walk: its last
frames are 28 cm off at most by themselves, or 10). What came earlier is left to loops (loops.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lean3r.inputs.past import Past
from lean3r.refine.pictures import FRAME_SIDE, scale_of, shrunk
from lean3r.refine.rivals import STEPS
from lean3r.stream import sim3
from lean3r.stream.bend import Bend
from lean3r.stream.pictures import Keyframe
from lean3r.stream.result import Result

# Keyframes of a window and its past, which refinement takes together: its time grows with their number. The last window
# of a film gets more, since nothing knows its end better later.
MOST, MOST_AT_END = 128, 160
MOST_BYTES = 100_000_000  # of the pictures of a past
LEAST, GROWN = 3, np.log(1.25)  # keyframes that place a window; times its size by which they and its join may differ


@dataclass(frozen=True, eq=False)
class Shown:
    """A keyframe whose camera is certain: its number, time and (width, height), the grey picture [H, W] uint8 in which
    refinement finds features, and its pose [4, 4] in window number `window`."""

    index: int
    timestamp_s: float
    size: tuple[int, int]
    picture: np.ndarray
    window: int
    pose: np.ndarray


class Film:
    """The last keyframes of a film that have their estimates, at most so many. Their pictures are at most `side`
    pixels long."""

    def __init__(self, side: int, most: int) -> None:
        self.side, self.most = side, most
        self.begin()

    def begin(self) -> None:
        """A film begins."""
        self._shown: list[Shown] = []
        self._is_over = self.most <= 0  # nothing of it is remembered
        self._is_whole = True  # nothing was forgotten

    def end(self) -> None:
        """Forget the film, whose frames do not share a camera."""
        self._shown, self._is_over = [], True

    def add(self, results: Sequence[Result], window: int) -> None:
        """Keyframes have their estimates by this window."""
        if self._is_over:
            return
        for result in results:
            if not (result.is_certain and result.is_registered):
                continue
            keyframe = result.keyframe
            grey = shrunk(
                Image.fromarray(keyframe.pixels), result.source, scale_of(result.source, self.side), keyframe.factor
            )
            at = keyframe.index, keyframe.timestamp_s, keyframe.size
            self._shown.append(Shown(*at, np.asarray(grey), window, result.pose))
        sizes = {shown.size for shown in self._shown}
        if len(sizes) > 1:
            self.end()
        while len(self._shown) > self.most or self.bytes > MOST_BYTES:
            del self._shown[0]
            self._is_whole = False

    def past(
        self,
        carried: Sequence[Result],
        placements: Sequence[np.ndarray],
        keyframes: Sequence[Keyframe],
        is_last: bool = False,
    ) -> Past | None:
        """What is known of the film before a window of these keyframes, or all that is if it is the last one, in the
        world of the window before, whose results are `carried`; None if that is nothing, or if its frames differ in
        size."""
        before = [shown for shown in self._shown if shown.index < keyframes[0].index]
        excess = max(0, len(before) - max(0, (MOST_AT_END if is_last else MOST) - len(keyframes)))
        before = before[excess:]
        if is_last and excess:  # what it does not go on from, it does not settle
            del self._shown[:excess]
            self._is_whole = False
        sizes = {each.size for each in [*before, *keyframes]}
        if not before or len(sizes) > 1:
            return None
        into = np.linalg.inv(placements[-1])
        return Past(
            tuple(shown.timestamp_s for shown in before),
            tuple(shown.picture for shown in before),
            np.stack([sim3.move_poses(into @ placements[shown.window], shown.pose) for shown in before]),
            {result.keyframe.name: result.pose for result in carried if result.is_certain and result.is_registered},
            is_last,
        )

    def settled(
        self,
        placements: Sequence[np.ndarray],
        past: Sequence[np.ndarray | None],
        shared: Sequence[tuple[Result, Result]],
    ) -> tuple[list[np.ndarray], dict[int, Bend]]:
        """The placements after a window that went on from the past, and how windows bend: so that keyframes lie as it
        has them, at poses `past` [4, 4] in its world (None where it doubts them), and windows as the frames that it has
        `shared` with the one before. The first window of the film stays, and does not bend if only its end is
        remembered."""
        told = [(shown, pose) for shown, pose in zip(self._shown, past, strict=False) if pose is not None]
        last, first = len(placements) - 1, self._shown[0].window
        of_window = {w: [(each.pose, pose) for each, pose in told if each.window == w] for w in range(first, last)}
        of_window[last - 1] += [(before.pose, now.pose) for before, now in shared]
        into = {last: np.eye(4)}  # the world of the last window
        for window in range(last - 1, first - 1, -1):
            poses = np.array(of_window[window]).reshape(-1, 2, 4, 4)
            fit = sim3.fitted(poses[:, 0], poses[:, 1]) if len(poses) >= LEAST else None
            beside = into[window + 1] @ np.linalg.inv(placements[window + 1]) @ placements[window]
            if fit is None or abs(np.log(sim3.parts(fit)[0] / sim3.parts(beside)[0])) > GROWN:
                into[window] = beside  # as it was joined
            else:
                into[window] = fit
        world = placements[first] @ np.linalg.inv(into[first])
        fresh = {now.keyframe.index: now.pose for _, now in shared}  # frames of the window before reach up to them
        told += [(shown, fresh[shown.index]) for shown in self._shown if shown.index in fresh]
        settled = [world @ into[i] if i > first else placement for i, placement in enumerate(placements)]
        bends = {}
        for window in range(first if self._is_whole else first + 1, last):
            mine = [(each, pose) for each, pose in told if each.window == window]
            if mine:
                before, now = np.stack([each.pose for each, _ in mine]), np.stack([pose for _, pose in mine])
                now = sim3.move_poses(np.linalg.inv(into[window]), now)
                if _differ(before, now):
                    bends[window] = Bend.between([each.index for each, _ in mine], before, now)
        return settled, bends

    @property
    def window(self) -> int:
        """The number of the first window that is remembered."""
        return self._shown[0].window

    @property
    def first(self) -> int:
        """The number of the first keyframe that is remembered."""
        return self._shown[0].index

    @property
    def bytes(self) -> int:
        """Of the pictures."""
        return sum(shown.picture.nbytes for shown in self._shown)

    def state(self) -> dict[str, Any]:
        """See Engine.state."""
        shown = [dict(vars(each)) for each in self._shown]
        return {"shown": shown, "is_over": self._is_over, "is_whole": self._is_whole}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Engine.restore."""
        self._shown = [Shown(**{**each, "size": tuple(each["size"])}) for each in state["shown"]]
        self._is_over, self._is_whole = state["is_over"], state["is_whole"]


def _differ(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether two models have any of consecutive cameras [K, 4, 4] in different places (see rivals.py). Otherwise none
    of the two is the better one, and what lies between keyframes stays as smooth as it was."""
    centres, others = sim3.centres(before), sim3.centres(now)
    step = np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1)) if len(centres) > 1 else 0.0
    return bool(np.linalg.norm(centres - others, axis=1).max() > STEPS * step)


def most_bytes(side: int, height: int, width: int) -> int:
    """Of a film's keyframes, at most, of frames of this size."""
    scale = min(1.0, min(side, FRAME_SIDE) / max(height, width))
    return min(MOST_BYTES, round(MOST_AT_END * scale**2 * height * width))
