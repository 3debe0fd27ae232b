"""Videos whose model has a kink: between two parts that are right by themselves, it turns or moves the wrong way.

A plane, or a repeated pattern, fits two motions of the camera; a few frames that see little else then join two parts
wrongly. Each part fits its own matches well, but for some frames in a row fewer matches fit than elsewhere: those that
cross the kink. A frame that is blurred, or that has something in front of it, is alone with that. Where the video shows
before and behind the kink what it shows on the other side too, the parts hold each other: the frames between are wrong,
unless both parts hold these, too. Then nothing can lie wrong, and the matches that do not fit are bad ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from lean3r.refine.job import Answer
from lean3r.refine.judge import BESIDE, links

DIP = 0.05  # of the matches of a frame, that fit less often than usual
IN_A_ROW = 4  # frames; models that are right had two at most
HELD = 100  # points that hold parts: 83 at most at kinks of walks (one of them was 9 m), 586 at least where none is
SIDE = "it lies behind a frame beside the path, and few points hold it to those before"
FRAYED = "it is at the end of the video, and fits fewer matches than usual"
KINKED = "it lies behind a kink: fewer matches than usual fit the frames that join it to the others"


def kinks(answer: Answer, sequences: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], list[int]]]:
    """The runs of a video's frames in `sequences` that have a kink, each with the frames that fit badly there; frames
    that the model lacks are passed over."""
    found = []
    for run in sequences:
        frames = np.array([frame for frame in run if answer.has[frame]], int)
        low = fits_badly(answer, frames)[frames]
        for group in np.split(np.arange(len(frames)), np.flatnonzero(np.diff(low)) + 1):
            if len(group) >= IN_A_ROW and low[group[0]]:
                found.append((run, frames[group].tolist()))
    return found


def frayed(answer: Answer, sequences: Sequence[Sequence[int]]) -> set[int]:
    """The last frames of each video of which all fit badly: where one in the middle is only blurred, nothing behind
    these tells where they are."""
    doubts: set[int] = set()
    for run in sequences:
        frames = np.array([frame for frame in run if answer.has[frame]], int)
        fit = np.flatnonzero(~fits_badly(answer, frames)[frames])
        doubts |= {*frames[fit[-1] + 1 :].tolist()} if len(fit) else set()
    return doubts


def fits_badly(answer: Answer, among: np.ndarray | None = None) -> np.ndarray:
    """Whether clearly fewer matches of each view [S] fit than is usual `among` some [N], or all that the model has."""
    after = answer.report["after"]
    fitting, matches = (np.array(after[key], float) for key in ("view_inliers", "view_matches"))
    share = fitting / np.maximum(matches, 1)
    usual = share[answer.has if among is None else among]
    return share < (np.median(usual) if len(usual) else 0.0) - DIP


def behind_kinks(answer: Answer, sequences: Sequence[Sequence[int]]) -> set[int]:
    """The frames of each kink, unless both sides hold them and each other, and those on the side of it where fewer are
    trusted, unless both sides hold each other."""
    found = kinks(answer, sequences)
    return _with_sides(answer, [(run, frames) for run, frames in found if not _is_held(answer, run, frames)])


def behind_sidesteps(answer: Answer, sequences: Sequence[Sequence[int]]) -> set[int]:
    """The frames that lie beside the path, and those on the side of them where fewer are trusted, unless both sides
    hold each other. A model that only goes on from what was found before has no rival that tells what is wrong."""
    found = []
    for run in map(np.asarray, sequences):
        beside = np.array([answer.report["doubts"][frame] == BESIDE for frame in run])
        for group in np.split(np.arange(len(run)), np.flatnonzero(np.diff(beside)) + 1):
            if beside[group[0]]:
                found.append((run.tolist(), run[group].tolist()))
    return _with_sides(answer, found)


def _is_held(answer: Answer, run: Sequence[int], frames: Sequence[int]) -> bool:
    parts = {v for v in run if v < frames[0]}, {*frames}, {v for v in run if v > frames[-1]}
    return all(hold_each_other(answer, *two) for two in combinations(parts, 2))


def _with_sides(answer: Answer, breaks: Sequence[tuple[Sequence[int], list[int]]]) -> set[int]:
    doubts: set[int] = set()
    for run, frames in breaks:
        before, after = ({v for v in run if v < frames[0]}, {v for v in run if v > frames[-1]})
        doubts |= {*frames}
        if not hold_each_other(answer, before, after):
            doubts |= min(before, after, key=lambda side: int(answer.trusted[list(side)].sum()))
    return doubts


def sides_of_kinks(answer: Answer, sequences: Sequence[Sequence[int]]) -> list[set[int]]:
    """Frames to register again, so that a kink goes: the frames of one side up to the frame that fits worst, unless
    both sides hold each other, or those of the kink itself."""
    after = answer.report["after"]
    sides = []
    for run, frames in kinks(answer, sequences):
        if not hold_each_other(answer, {v for v in run if v < frames[0]}, {v for v in run if v > frames[-1]}):
            worst = min(frames, key=lambda v: after["view_inliers"][v] / max(1, after["view_matches"][v]))
            sides += [{v for v in run if v <= worst}, {v for v in run if v >= worst}]
        sides.append({*frames})
    return sides


def hold_each_other(answer: Answer, first: set[int], second: set[int]) -> bool:
    """Whether the trusted views of both sets see so many points in common that one cannot lie wrong to the other."""
    counts = []
    for views in (first, second):
        trusted = [view for view in views if answer.trusted[view]]
        counts.append(np.bincount(answer.point[np.isin(answer.view, trusted)], minlength=len(answer.xyz)))
    return links(*counts) >= HELD
