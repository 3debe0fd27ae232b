"""Models of a video whose frames fit their matches badly: these are registered again from the others.

A walk may slip: from some frame on, all is smaller by a fifth or more. Adjustment does not undo it, because the points
that say so are gone by then; but the frames there fit their matches worse than the others, or are doubted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine import adjust, matching
from lean3r.refine.built import Built
from lean3r.refine.job import Answer, Job
from lean3r.refine.kinks import fits_badly, kinks, sides_of_kinks
from lean3r.refine.rivals import contested

NEARLY = 0.9  # of the trusted views of one model, that make another its rival
TRUSTED = 5  # trusted views needed to locate doubted ones
SETTLING, AGAIN = 3, 2  # times at most that they are located again, and that any frames are, for each that there is
BADLY = 1.5  # times the usual error of a view's matches; within one model, that of right cameras hardly differs
STILL = 0.9  # of how well matches fit, that must be left where more frames are trusted
CLEARLY = 1.002  # ratio of how well matches fit, that makes a model better
Step = Callable[[Built, int], tuple[Built | None, int]]
LEAST_BAD = 2  # frames behind a past: a single one that fits badly is blurred, or has something in front of it


def agree(job: Job, found: Sequence[Built]) -> bool:
    """Whether the best of several methods' models of a video trusts all frames, without a kink, and no other one, which
    must trust nearly all of them, says that some lie elsewhere."""
    if len(found) < 2:
        return False
    (best,) = soundest(found)
    if not best.answer.trusted.all() or kinks(best.answer, job.sequences):
        return False
    others = [built for built in found if built is not best]
    return all(
        other.answer.trusted.sum() >= NEARLY * len(job.views)
        and not contested(best.answer, other.answer, best.shares, other.shares)
        for other in others
    )


def soundest(found: Sequence[Built]) -> list[Built]:
    """Of the models of a video's frames, the one that fits most matches, among those with nearly as many trusted views
    as any; none of none.

    Methods that slip (see `settle`) or lose frames seldom do so at the same ones.
    """
    most = max((built.answer.trusted.sum() for built in found), default=0)
    rivals = [built for built in found if built.answer.trusted.sum() >= NEARLY * most]
    return sorted(rivals, key=lambda built: built.answer.report["after"]["score"])[-1:]


def settle(job: Job, found: Sequence[tuple[Built, Step]]) -> list[Built]:
    """Models in which the frames of a video that are doubted or fit badly are registered again from the others, as
    long as that makes a model better, and the models do not agree; each by its own step, `settled_once` or what does
    as that elsewhere."""
    models, left = [built for built, _ in found], [most_again(job)] * len(found)
    for _ in range(SETTLING):
        if agree(job, models):
            break
        for number in np.flatnonzero(left).tolist():
            better, left[number] = found[number][1](models[number], left[number])
            models[number] = better or models[number]
    return models


def most_again(job: Job) -> int:
    """How many frames of a model may be registered again in all."""
    return AGAIN * len(job.views)


def settled_once(
    job: Job, matches: matching.Matches, mapper: adjust.Mapper, built: Built, most: int
) -> tuple[Built | None, int]:
    """A better model than this one, in which some of its frames are registered again, at most so many; None if there is
    none. And how many may be registered again after that: none if it cannot be made better."""
    for loose in loose_frames(job, built.answer):
        most -= len(loose)
        if most < 0:
            break
        moved = mapper.reattach(pycolmap.Reconstruction(built.model), loose)
        again = Built.of(job, matches, moved, False)
        if again is not None and is_better(again.answer, built.answer):
            return again, most
    return None, 0


def loose_frames(job: Job, answer: Answer) -> Iterator[set[int]]:
    """Frames to register again from the others, which are a third at least: those that are doubted or fit badly; then
    also all from a doubted one, or the worst, to the nearer end of its video, in case the scale slips there; and those
    on either side of a kink."""
    after = answer.report["after"]
    error = np.array([np.nan if px is None else px for px in after["view_error_px"]])
    usual = float(np.nanmedian(error)) if np.isfinite(error).any() else np.inf
    in_video = np.isin(np.arange(len(job.views)), [view for run in job.sequences for view in run])
    doubted, bad = in_video & ~answer.trusted, in_video & (error > BADLY * usual)
    candidates = [doubted | bad]
    for run in map(np.asarray, job.sequences):
        at = np.flatnonzero(doubted[run])
        if not len(at) and bad[run].any():
            at = np.array([np.nanargmax(error[run])])
        for group in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else ():
            first, last = int(group[0]), int(group[-1])
            side = doubted.copy()
            side[run[: last + 1] if last < len(run) - first else run[first:]] = True
            candidates.append(side)
    candidates += [np.isin(np.arange(len(job.views)), list(side)) for side in sides_of_kinks(answer, job.sequences)]
    for loose in candidates:
        stay = answer.trusted & ~loose
        if (loose & answer.has).any() and stay.sum() >= max(TRUSTED, len(loose) / 3):
            yield set(np.flatnonzero(loose).tolist())


def is_better(again: Answer, answer: Answer, least: float = CLEARLY) -> bool:
    """Whether frames that were registered again made a model better: more are trusted, or clearly more matches fit, by
    this ratio at least."""
    more = int(again.trusted.sum()) - int(answer.trusted.sum())
    score, before = again.report["after"]["score"], answer.report["after"]["score"]
    return score > STILL * before if more > 0 else more == 0 and score > least * before


def refitted(job: Job, matches: matching.Matches, mapper: adjust.Mapper, built: Built) -> Built:
    """A model that goes on from a past, whose own frames that fit fewer matches than usual are registered again, if
    that loses no trusted frame and fits more. They were registered one after another, and the points that would move
    one back are gone. A few frames of a hundred change the sum of all matches by a thousandth: the last three of a walk
    were 20 cm off for it, with a rise of 0.001."""
    own = np.array([view for view in range(job.past, len(job.views)) if built.answer.has[view]], int)
    bad = {int(view) for view in own[fits_badly(built.answer)[own]] if view not in job.joined}
    if len(bad) < LEAST_BAD:
        return built
    again = Built.of(job, matches, mapper.reattach(pycolmap.Reconstruction(built.model), bad), True)
    return again if again is not None and is_better(again.answer, built.answer, least=1.0) else built
