"""Bars at the edges of a video: of one colour, the same in all frames, with the picture between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

DIFFERENT = 12  # grey levels between a bar and what is not of it, after compression
CLEAN = 0.02  # share of different pixels in a line of a bar, at most
WRITTEN = 0.35  # the same where something is written on the bar
FILLED = 0.7  # share of different pixels in the lines of the picture on average; fewer may be a thing on a table
SHARP = 3  # lines in which the bar becomes the picture
BLURRED = 2  # lines beside a bar that compression and scaling mix with it
THIN = 0.01  # of a side: thinner edges are left
EVEN = 0.02  # of a side by which the bars at its two ends may differ


class Bars(NamedTuple):
    """Pixels that are cut off at each edge of pictures of `size` (width, height)."""

    left: int = 0
    top: int = 0
    right: int = 0
    lower: int = 0
    size: tuple[int, int] = (0, 0)

    @property
    def content(self) -> tuple[int, int, int, int]:
        """What remains: (left, top, right, lower) in pixels from the top left corner."""
        return self.left, self.top, self.size[0] - self.right, self.size[1] - self.lower

    @property
    def edges(self) -> tuple[int, int, int, int] | None:
        """(left, top, right, lower) in pixels; None if nothing is cut off."""
        return self[:4] if any(self[:4]) else None

    def at_width(self, width: int) -> Bars:
        """The bars of the same pictures, stretched to another width."""
        share = width / self.size[0]
        return Bars(round(self.left * share), self.top, round(self.right * share), self.lower, (width, self.size[1]))

    def turned(self, orientation: int) -> Bars:
        """The bars of the upright picture, if these are of the picture as stored with this EXIF orientation."""
        left, top, right, lower, (width, height) = self
        return {
            2: Bars(right, top, left, lower, (width, height)),
            3: Bars(right, lower, left, top, (width, height)),
            4: Bars(left, lower, right, top, (width, height)),
            5: Bars(top, left, lower, right, (height, width)),
            6: Bars(lower, left, top, right, (height, width)),
            7: Bars(lower, right, top, left, (height, width)),
            8: Bars(top, right, lower, left, (height, width)),
        }.get(orientation, self)


NO_BARS = Bars()


class Found(NamedTuple):
    """The `bars` of a video that are cut off, and those that lie at one edge or `unequal` at two: these stay, since
    they may cover a part of the picture, whose middle would move."""

    bars: Bars = NO_BARS
    unequal: Bars = NO_BARS

    def cut(self, name: str) -> str | None:
        """What to say of the bars that are cut off a video of this name, if any are."""
        if self.bars == NO_BARS:
            return None
        left, top, right, lower = self.bars.content
        remains = f"{right - left}x{lower - top} pixels of {self.bars.size[0]}x{self.bars.size[1]} remain"
        return f"{name} has bars at its edges: they are cut off, {remains}"

    def caution(self, name: str) -> str | None:
        """What to say of the bars that stay, if any do."""
        if self.unequal == NO_BARS:
            return None
        widths = " and ".join(str(width) for width in self.unequal[:4] if width)
        return (
            f"{name} has a bar at one edge, or unequal ones at two ({widths} pixels): they stay, as they may cover a "
            "part of it; if not, its cameras may be far off, as the middle of its pictures is taken for that of "
            "the lens: crop it first"
        )


def find_bars(frames: Iterable[np.ndarray]) -> Found:
    """The bars of a video by some of its frames, grey [H, W] uint8.

    Frames are taken only until one shows that there are none; those of one colour, as before a film is faded in, say
    nothing. Those to cut off lie at both ends of a side and are about equally wide, so that the middle of the picture
    stays where it was: whatever else is of one colour may belong to the picture.
    """
    ends: list[_Ends] = []
    size = (0, 0)
    for frame in frames:
        if _differing(frame, float(np.median(frame))).mean() <= CLEAN:
            continue
        if not ends:
            ends, size = [_Ends(frame), _Ends(frame.T)], frame.shape[::-1]
        if frame.shape[::-1] != size:
            return Found()
        for pair, grey in zip(ends, (frame, frame.T), strict=True):
            pair.add(grey)
        if not any(pair.may_have_bars for pair in ends):
            return Found()
    if not ends:
        return Found()
    found = []
    for is_equal in (True, False):
        (top, lower), (left, right) = (pair.bars(is_equal) for pair in ends)
        found.append(Bars(left, top, right, lower, size) if top or lower or left or right else NO_BARS)
    return Found(*found)


class _Ends:
    """The two ends of the lines [H] of frames [H, W], each with the share of pixels that are not of its colour."""

    def __init__(self, first: np.ndarray) -> None:
        self._colours = float(np.median(first[0])), float(np.median(first[-1]))
        self._most = np.zeros((2, len(first)))
        self._sum = np.zeros((2, len(first)))
        self._frames = 0

    def add(self, frame: np.ndarray) -> None:
        for end, colour in enumerate(self._colours):
            share = _differing(frame, colour).mean(1)
            self._most[end] = np.maximum(self._most[end], share)
            self._sum[end] += share
        self._frames += 1

    @property
    def may_have_bars(self) -> bool:
        return self._most[0, 0] <= CLEAN or self._most[1, -1] <= CLEAN

    def bars(self, is_equal: bool) -> tuple[int, int]:
        """The lines of bars at the two ends, if they are about equally many, or if they are not; else 0."""
        mean = self._sum / self._frames
        first = _width(self._most[0], mean[0])
        last = _width(self._most[1, ::-1], mean[1, ::-1])
        side = self._most.shape[1]
        first, last = (width if width > THIN * side else 0 for width in (first, last))
        if is_equal != (min(first, last) > 0 and abs(first - last) <= max(EVEN * side, SHARP)):
            return 0, 0
        return first and first + BLURRED, last and last + BLURRED


def _differing(frame: np.ndarray, colour: float) -> np.ndarray:
    """Which pixels of a frame [H, W] are not of a colour."""
    return np.abs(frame - np.float32(colour)) > DIFFERENT


def _width(most: np.ndarray, mean: np.ndarray) -> int:
    """The lines of a bar, from the largest and the mean shares of different pixels; 0 for none.

    From the middle of the picture outwards, because a bar may carry a title or the time.
    """
    half = len(most) // 2
    clean = np.flatnonzero(most[:half] <= CLEAN)
    if not len(clean) or most[: clean[-1] + 1].max() > WRITTEN:
        return 0
    width = int(clean[-1]) + 1
    filled = float(np.median(mean[width:half])) if width < half else 0.0
    is_sharp = mean[width : width + SHARP].max(initial=0.0) >= filled / 2
    return width if filled >= FILLED and is_sharp else 0
