"""Which of two answers to a job is the better one, and whether one is good enough."""

from __future__ import annotations

import numpy as np

from lean3r.refine.job import Answer, Job
from lean3r.refine.settle import NEARLY

ENOUGH = 0.8  # if a model fits this share of the verified matches, no other method is tried
WELL, GAIN = 0.9, 0.05  # share of matches that truly shared cameras fit; gain that separate cameras must bring
# Ratio of fitting matches: wrong shared cameras verify a tenth fewer, true ones as many. Before facades these do, too:
# there, cameras of their own take in wrong matches, and a smaller share of all fits (0.90 for 0.94, 0.75 for 0.82).
MORE = 1.08
SHARPER = 0.8  # or ratio of their errors; 0.3 to 0.6 where half of the photos are zoomed, if EXIF hides it
ALMOST = 0.98  # of the matches that a model fits, that another one must fit
MOST = 2 / 3  # of the views that shared cameras trust, where they fit a focal length that cannot be true
STRONG = 150  # measurements of the weaker views of a model above which finer features are not needed


def value(answer: Answer) -> tuple[int, int, int]:
    """Key to compare answers: trusted views, then registered ones, then measurements."""
    return int(answer.trusted.sum()), int(answer.has.sum()), len(answer.point)


def fitting(answer: Answer) -> int:
    """The number of matches that an answer fits."""
    return answer.report["after"]["inliers"]


def share(answer: Answer) -> float:
    """The share of the verified matches that an answer fits."""
    return fitting(answer) / max(answer.report["matches"], 1)


def is_enough(answer: Answer, matched: float) -> bool:
    """Whether a model explains the matches."""
    return answer.has.sum() >= matched and fitting(answer) >= ENOUGH * answer.report["matches"]


def is_strong(answer: Answer) -> bool:
    """Whether all views are registered and trusted, and nearly all see many points."""
    seen = np.bincount(answer.view, minlength=len(answer.has))
    return bool(answer.trusted.all()) and float(np.quantile(seen, 0.1)) >= STRONG


def is_as_good(answer: Answer, shared: Answer, trusted: float = NEARLY) -> bool:
    """Whether a model fits as many matches as another, or nearly so, and trusts such a part of its views."""
    fits = fitting(answer) >= ALMOST * fitting(shared)
    return fits and answer.trusted.sum() >= trusted * shared.trusted.sum()


def is_better_alone(alone: Answer, shared: Answer, are_apart: bool, trusted: float = 1.0) -> bool:
    """Whether a camera for every view fits so much better than shared ones that these cannot be true, and such a part
    of their views is trusted."""
    fits_more = fitting(alone) > MORE * fitting(shared) and share(alone) >= ALMOST * share(shared)
    if are_apart and (fits_more or is_sharper(alone, shared) or not shared.trusted.any()):
        return alone.trusted.sum() >= max(trusted * shared.trusted.sum(), 1)
    return value(alone)[:2] >= value(shared)[:2] and share(alone) > max(WELL, share(shared) + GAIN)


def is_sharper(answer: Answer, other: Answer, ratio: float = SHARPER) -> bool:
    """Whether a model fits nearly as many matches as another, and with less than such a part of its error. Verified
    with stated focal lengths, matches are as many for both."""
    errors = [each.report["after"]["error_px"] for each in (answer, other)]
    return fitting(answer) >= ALMOST * fitting(other) and errors[0] < ratio * errors[1]


def is_tighter(answer: Answer, other: Answer) -> bool:
    """Whether matches fit a model better than another: as many with a smaller error, or more."""
    return answer.report["after"]["score"] > other.report["after"]["score"]


def is_promising(again: Answer, answer: Answer) -> bool:
    """Whether it is worth to settle another model of the frames: it trusts more of them, or fits many more matches."""
    return again.trusted.sum() > answer.trusted.sum() or fitting(again) > (1 + GAIN) * fitting(answer)


def fitness(job: Job, answer: Answer) -> tuple[int, float]:
    """Key to compare models of the same matches: trusted views of a video, then how well matches fit."""
    return int(answer.trusted.sum()) if job.sequences else 0, answer.report["after"]["score"]
