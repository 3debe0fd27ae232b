"""When the frames of a video are shown, by the time stamps of its packets: some lack, are wrong, or start anew."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

# FFmpeg makes up the stamps of these from the order of the packets, which is not that of the frames.
UNSTAMPED = ("avi", "h264", "hevc", "ivf", "mpegvideo", "mjpeg")
ENDS_S = 1.0  # by which the last frame of a whole film may lie before its stated end


class Stamp(NamedTuple):
    """Presentation and decoding time of a packet in ticks, None where they are not stated."""

    pts: int | None
    dts: int | None


class Timeline(NamedTuple):
    """The `keys` of frames in display order and their times in seconds from the first one. If the stamps can be
    trusted, a frame's key is its presentation time (`timed`), else its number; `parts`: how often the stamps start."""

    keys: Sequence[int]
    times_s: Sequence[float]
    timed: bool
    parts: int = 1


def timeline(stamps: Sequence[Stamp], container: str, rate: float, tick_s: float) -> Timeline:
    """The timeline of packets in the order of their file; `rate` is the stated one, in frames a second."""
    pts = [stamp.pts for stamp in stamps if stamp.pts is not None]
    if len(pts) < len(stamps):
        return Timeline(range(len(stamps)), [number / rate for number in range(len(stamps))], False)
    parts = _parts(stamps)
    if len(parts) == 1 and len(set(pts)) == len(pts) and not set(container.split(",")) & set(UNSTAMPED):
        keys = sorted(pts)
        return Timeline(keys, [(key - keys[0]) * tick_s for key in keys], True)
    times_s: list[float] = []
    for part in parts:
        shown, step_s = _apart(sorted(stamp.pts for stamp in part if stamp.pts is not None)), tick_s
        if shown is None:  # nothing to go by
            shown, step_s = list(range(len(part))), 1 / rate
        usual = median(b - a for a, b in pairwise(shown)) if len(shown) > 1 else 1 / rate / step_s
        start_s = times_s[-1] + usual * step_s if times_s else 0.0
        times_s += [start_s + (ticks - shown[0]) * step_s for ticks in shown]
    return Timeline(range(len(stamps)), times_s, False, len(parts))


def cut_short(shown_s: Sequence[float], stated: str | None) -> str | None:
    """What to say of a film whose frames are shown at these times, if it ends clearly before the duration `stated` by
    Matroska (hours:minutes:seconds), which does not state the number of frames."""
    try:
        hours, minutes, seconds = map(float, (stated or "").split(":"))
    except ValueError:
        return None
    shown_s, stated_s = sorted(shown_s), 3600 * hours + 60 * minutes + seconds
    longest = max((b - a for a, b in pairwise(shown_s)), default=0.0)  # the last one may be shown as long
    if not shown_s or stated_s - shown_s[-1] <= ENDS_S + longest:
        return None
    return f"incomplete: it ends after {shown_s[-1]:.1f} of {stated_s:.1f} seconds; what there is of it is used"


def _apart(ticks: Sequence[int]) -> list[float] | None:
    """Rising times, of which a few may be equal: these share the time until the next, or that of the frame before; None
    if half of them are equal or more."""
    first = [number for number, tick in enumerate(ticks) if number == 0 or tick > ticks[number - 1]]
    if 2 * len(first) <= len(ticks) or len(first) < 2:
        return None
    times: list[float] = []
    for at, after in pairwise([*first, len(ticks)]):
        step = ticks[after] - ticks[at] if after < len(ticks) else ticks[at] - ticks[first[-2]]
        times += [ticks[at] + step * number / (after - at) for number in range(after - at)]
    return times


def _parts(stamps: Sequence[Stamp]) -> list[Sequence[Stamp]]:
    """Packets between which the decoding time falls: films that were put one behind the other."""
    parts: list[list[Stamp]] = [[]]
    last: int | None = None
    for stamp in stamps:
        if stamp.dts is not None and last is not None and stamp.dts < last:
            parts.append([])
        last = stamp.dts if stamp.dts is not None else last
        parts[-1].append(stamp)
    return [*parts]
