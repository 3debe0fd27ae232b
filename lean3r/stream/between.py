"""Cameras of frames between the keyframes of a window, and behind them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lean3r.geometry.lens import scale_lens
from lean3r.inputs.motion import small_size
from lean3r.stream import sim3
from lean3r.stream.keyframes import APART_S
from lean3r.stream.looks import REPEATED, Seen
from lean3r.stream.result import Result
from lean3r.types import Lens

JERK = 2.0  # times the motion just before and after: pictures of a quick turn, too, have at most 1.5
REPEATS = 6  # frames in a row that show the same, in films whose rate was made higher by repeating them


def interpolated(results: Sequence[Result], moving_s: float) -> np.ndarray:
    """A pose between those of keyframes, by the time for which the picture has been moving."""
    at = np.maximum.accumulate([result.moving_s for result in results]) + 1e-9 * np.arange(len(results))
    return sim3.between(np.stack([result.pose for result in results]), at, moving_s)


def camera_at(result: Result, size: tuple[int, int]) -> tuple[np.ndarray, Lens | None]:
    """Intrinsics and lens of a keyframe in pixels of a frame of this size: a source may change it as it goes."""
    matrix, lens = result.camera
    if size == result.keyframe.size:
        return matrix, lens
    across, down = np.divide(size, result.keyframe.size)
    return np.diag([across, down, 1]) @ matrix, None if lens is None else scale_lens(lens, across, down)


def camera_between(first: Result, second: Result, index: int, size: tuple[int, int]) -> tuple[np.ndarray, Lens | None]:
    """Intrinsics and lens of a frame of this size between two keyframes, while the lens may zoom; those of one of them,
    if only that has the frame's shape."""
    alike = [small_size(*each.keyframe.size) == small_size(*size) for each in (first, second)]
    if sum(alike) == 1:
        return camera_at(first if alike[0] else second, size)
    share = (index - first.keyframe.index) / (second.keyframe.index - first.keyframe.index)
    (matrix, lens), (other, other_lens) = camera_at(first, size), camera_at(second, size)
    if (lens and lens.model) != (other_lens and other_lens.model):
        return (other, other_lens) if share > 0.5 else (matrix, lens)
    if lens is not None and other_lens is not None:
        params = np.array(lens.params) + share * (np.array(other_lens.params) - lens.params)
        lens = Lens(lens.model, tuple(map(float, params)))
    return matrix + share * (other - matrix), lens


def beyond(results: Sequence[Result], moved: float) -> np.ndarray:
    """The pose of a frame after the last of these, whose picture has `moved` from that one: as the way there went."""
    if len(results) < 2:
        return results[-1].pose
    first, second = results[-2:]
    share = moved / max(second.travelled - first.travelled, moved)
    return sim3.beyond(first.pose, second.pose, share)


def skips(first: Result, second: Result, results: Sequence[Result], gaps: Sequence[int]) -> bool:
    """Whether keyframes without a trusted camera lie between two, or `gaps`: frames that show nothing, or before
    which the camera jumps, so that it may have been anywhere."""
    between = range(first.keyframe.index + 1, second.keyframe.index)
    return any(r.keyframe.index in between for r in results) or any(gap in between for gap in gaps)


def jumps(frames: Sequence[Seen], least: float) -> list[int]:
    """The numbers of those frames, in a row, before which the camera jumps in sight: the picture moves by `least` or
    more, and JERK times as fast as before and after, or after APART_S without a frame. A frame that repeats the one
    before says nothing of how fast the camera is."""
    moved = [after.travelled - before.travelled for before, after in pairwise(frames)]
    passed_s = [after.timestamp_s - before.timestamp_s for before, after in pairwise(frames)]
    speeds = [far / time_s for far, time_s in zip(moved, passed_s, strict=True)]

    def last(near: range) -> float:
        return next((speeds[i] for i in near if 0 <= i < len(speeds) and moved[i] > REPEATED), 0.0)

    return [
        after.index
        for i, (before, after) in enumerate(pairwise(frames))
        if before.has_content
        and moved[i] >= least
        and (
            passed_s[i] >= APART_S
            or speeds[i] > JERK * max(last(range(i - 1, i - 1 - REPEATS, -1)), last(range(i + 1, i + 1 + REPEATS)))
        )
    ]


def beside(results: Sequence[Result], index: int, cuts: Sequence[int]) -> Sequence[Result]:
    """Those of the keyframes that no jump parts from a frame, if there are any: a camera that jumps was nowhere
    between."""
    first = max((cut for cut in cuts if cut <= index), default=-1)
    end = min((cut for cut in cuts if cut > index), default=np.inf)
    return [r for r in results if first <= r.keyframe.index < end] or results


def bridge(result: Result, results: Sequence[Result]) -> np.ndarray:
    """A pose for a keyframe that refinement did not register: between those around it that it did, or behind them."""
    registered = [r for r in results if r.is_registered]
    if not registered:
        return result.pose
    moved = result.travelled - registered[-1].travelled
    return beyond(registered, moved) if moved > 0 else interpolated(registered, result.moving_s)
