"""Which frames of a video, and how many pictures, a run takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lean3r.errors import UsageError
from lean3r.options import check_types, option

DEFAULT_FPS = 2.0
DEFAULT_FRAMES = (8, 120)  # least and most frames of a video when no option says otherwise


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Which frames of a video to take: `fps` a second, every `every`-th, or `frames` evenly spaced; at most one of the
    three. By default frames are spaced by image motion, with about the same motion from each to the next (many where
    the camera turns, none where it rests), and the sharpest of neighbouring candidates are taken: at least 8 and at
    most `max_views` (120 if None). More than `max_views` pictures or frames in all are thinned evenly."""

    max_views: int | None = option(None, "Use at most N views, evenly spaced.", "N")
    fps: float | None = option(None, "Video: take N frames a second.", "N")
    every: int | None = option(None, "Video: take every N-th frame.", "N", "--interval")
    frames: int | None = option(None, "Video: take N frames, evenly spaced.", "N")

    def __post_init__(self) -> None:
        check_types(self)
        options = {"--fps": self.fps, "--every": self.every, "--frames": self.frames}
        stated = [name for name, value in options.items() if value is not None]
        if len(stated) > 1:
            raise UsageError(f"{' and '.join(stated)} contradict each other; give one of them")
        for name, value in {**options, "--max-views": self.max_views}.items():
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} must be positive, got {value}")

    @property
    def is_stated(self) -> bool:
        """Whether the user stated which frames."""
        return (self.fps, self.every, self.frames) != (None, None, None)

    def indices(self, times_s: Sequence[float]) -> list[int]:
        """Indices of the frames to take, given their times in seconds (ascending, at least one)."""
        total, duration_s = len(times_s), times_s[-1] - times_s[0]
        if self.every is not None:
            return list(range(0, total, self.every))
        if self.fps is not None:
            steps = int(duration_s * self.fps + 1e-6) + 1
            if steps >= total:
                return _apart(times_s, self.fps)
            middles = [(a + b) / 2 for a, b in pairwise(times_s)]
            return sorted({bisect_left(middles, times_s[0] + k / self.fps) for k in range(steps)})
        if self.frames is not None:
            return evenly(total, self.frames)
        least, most = DEFAULT_FRAMES
        return evenly(total, min(max(round(duration_s * DEFAULT_FPS) + 1, least), self.max_views or most))


def _apart(times_s: Sequence[float], fps: float) -> list[int]:
    """All frames of a film with fewer than `fps` a second, but where they come in bursts those nearest to the steps."""
    if all((b - a) * fps >= 0.5 for a, b in pairwise(times_s)):
        return list(range(len(times_s)))
    nearest: dict[int, tuple[float, int]] = {}
    for index, time_s in enumerate(times_s):
        at = (time_s - times_s[0]) * fps
        off = abs(at - round(at)), index
        nearest[round(at)] = min(nearest.get(round(at), off), off)
    return [index for _, index in nearest.values()]


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of `range(total)`, evenly spread, both ends included (the middle one for a count of 1)."""
    if count >= total:
        return list(range(total))
    return [total // 2] if count == 1 else [round(i * (total - 1) / (count - 1)) for i in range(count)]
