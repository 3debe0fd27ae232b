"""Videos whose model has a kink: between two parts that are right by themselves, it turns or moves the wrong way.

A plane, or a repeated pattern, fits two motions of the camera; a few frames that see little else then join two parts
wrongly. Each part fits its own matches well, but for some frames in a row fewer matches fit than elsewhere: those that
cross the kink. A frame that is blurred, or that has something in front of it, is alone with that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lean3r.refine.job import Answer

DIP = 0.05  # of the matches of a frame, that fit less often than usual
IN_A_ROW = 4  # frames; models that are right had two at most
KINKED = "it lies behind a kink: fewer matches than usual fit the frames that join it to the others"


def kinks(answer: Answer, sequences: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], list[int]]]:
    """The runs of a video's frames in `sequences` that have a kink, each with the frames that fit badly there; frames
    that the model lacks are passed over."""
    after = answer.report["after"]
    fitting, matches = (np.array(after[key], float) for key in ("view_inliers", "view_matches"))
    share = fitting / np.maximum(matches, 1)
    found = []
    for run in sequences:
        frames = np.array([frame for frame in run if answer.has[frame]], int)
        low = share[frames] < np.median(share[frames]) - DIP if len(frames) else np.zeros(0, bool)
        for group in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(low)) + 1):
            if len(group) >= IN_A_ROW and low[group[0]]:
                found.append((run, frames[group].tolist()))
    return found


def behind_kinks(answer: Answer, sequences: Sequence[Sequence[int]]) -> set[int]:
    """The frames of each kink, and those on the side of it where fewer are trusted."""
    doubts: set[int] = set()
    for run, frames in kinks(answer, sequences):
        before, after = ({v for v in run if v < frames[0]}, {v for v in run if v > frames[-1]})
        doubts |= {*frames} | min(before, after, key=lambda side: int(answer.trusted[list(side)].sum()))
    return doubts


def sides_of_kinks(answer: Answer, sequences: Sequence[Sequence[int]]) -> list[set[int]]:
    """Frames to register again, so that a kink goes: the frames of one side up to the frame that fits worst, or those
    of the kink itself."""
    after = answer.report["after"]
    sides = []
    for run, frames in kinks(answer, sequences):
        worst = min(frames, key=lambda v: after["view_inliers"][v] / max(1, after["view_matches"][v]))
        sides += [{v for v in run if v <= worst}, {v for v in run if v >= worst}, {*frames}]
    return sides
