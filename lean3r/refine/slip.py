"""Walks whose scale slips: one part of a video comes out several times larger than the other, although nearly all
matches fit. The network's depth, which errs by much less than that, shows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_FRAMES = 4  # on either side of a slip
LEAST_POINTS = 10  # of a frame with known depth
SLIP = np.log(3.0)  # the network's depth of the parts of right models differed by factors of up to 2.5
STEP = np.log(2.0)  # of the frames beside the cut; by 1.6 in a right model, where the network's depth drifts by 3.2
SLIPPED = "its scale may not be that of the rest: the depth that the network sees changes too much between them"


def slipped(ratios: np.ndarray, view: np.ndarray, sequences: Sequence[Sequence[int]], trusted: np.ndarray) -> list[int]:
    """The trusted views on the shorter side of a slip.

    `ratios` [O] are the network's depths over those of a model's points (NaN: none), `view` [O] the view of each;
    `sequences` are runs of consecutive views of a video, and `trusted` [S] their cameras.
    """
    found: list[int] = []
    for run in sequences:
        usual = {frame: _usual(ratios[view == frame]) for frame in run if trusted[frame]}
        frames = [frame for frame, log in usual.items() if np.isfinite(log)]
        logs = np.array([usual[frame] for frame in frames])
        cuts = range(LEAST_FRAMES, len(frames) - LEAST_FRAMES + 1)
        # Where the sides differ most may be far behind the slip, if the scale drifts there: the cut fits both best.
        best = min(cuts, key=lambda cut: _spread(logs[:cut]) + _spread(logs[cut:]), default=None)
        if best is None or abs(np.median(logs[:best]) - np.median(logs[best:])) < SLIP:
            continue
        beside = logs[best - LEAST_FRAMES : best], logs[best : best + LEAST_FRAMES]
        if abs(np.median(beside[0]) - np.median(beside[1])) < STEP:  # it is the network's that drifts
            continue
        cut = frames[best]
        before, after = ([frame for frame in usual if (frame < cut) == is_first] for is_first in (True, False))
        found += min(before, after, key=len)
    return found


def _spread(logs: np.ndarray) -> float:
    return float(np.abs(logs - np.median(logs)).sum())


def _usual(ratios: np.ndarray) -> float:
    known = ratios[np.isfinite(ratios)]
    return float(np.log(np.median(known))) if len(known) >= LEAST_POINTS else np.nan
