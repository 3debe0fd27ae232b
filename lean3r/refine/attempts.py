"""Attempts at a job: models of its pictures from features of one size, with what they say, and how to have each
adjusted at last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine import adjust, features, focal, matching
from lean3r.refine.aside import incremental_aside
from lean3r.refine.built import Built
from lean3r.refine.compare import ENOUGH, fitness, fitting, is_enough, is_promising
from lean3r.refine.inset import drop_insets
from lean3r.refine.job import Answer, Job
from lean3r.refine.moving import keep_only, moving
from lean3r.refine.overlay import RESTS, drop_overlays
from lean3r.refine.settle import NEARLY, refitted, settle, settled_once, soundest
from lean3r.refine.tempered import adjusted_last
from lean3r.refine.tracks import add_tracks

CALIBRATING = 4  # registered views that determine a camera reliably
LONG = 128  # frames of a video up to which all methods are used: the seconds of one grow faster than their number
FEW = 6  # with so few views, a wrong model may fit nearly as well: a second method is tried
MIRRORED = (
    "{} of {} photos seem to be mirrored, as front cameras save them: they match the others only so, and are left "
    "apart. Mirror them back"
)
HALF = "{} of {} photos are mirror images of the others: which are right cannot be told. Mirror the wrong ones back"
MOVES = "something large moves by itself in {} of {} photos: mask it (--masks), or cameras may be those relative to it"
FOLLOWS = "it follows something that moves by itself in the photos, not the place around that: mask it (--masks)"
THINGS = 2  # that move by themselves, and are left out in turn
ALONE = 3  # views of which a model of what is left must trust so many


class Attempt(NamedTuple):
    """What a model of a job says, and how to have it adjusted at last (tempered.py), which takes some time."""

    answer: Answer
    sharpened: Callable[[], Answer]

    @classmethod
    def of(cls, matches: matching.Matches, mapper: adjust.Mapper, built: Built, found: Sequence[Built]) -> Attempt:
        """The attempt whose best model is `built`, of all that were `found`."""
        job = mapper.job
        answer = built.judged(job, found)

        def sharpened() -> Answer:
            last = adjusted_last(matches, mapper, built)
            return answer if last is built else last.judged(job, found, built)

        return cls(answer, sharpened)

    def with_note(self, code: str, note: str) -> Attempt:
        """The same with one more note for the user."""
        return Attempt(self.answer.with_note(code, note), lambda: self.sharpened().with_note(code, note))

    def doubted(self, reason: str) -> Attempt:
        """The same with no view trusted."""
        views = range(len(self.answer.has))
        return Attempt(self.answer.with_doubts(views, reason), lambda: self.sharpened().with_doubts(views, reason))


def attempts(job: Job, folder: Path, octave: int, name: str = "shared") -> Iterator[Attempt]:
    """Features, matches, and the models of these."""
    here = folder / f"{name}{octave}"
    here.mkdir()
    database = here / "database.db"
    odd = matching.find(job, folder, database, octave)
    for attempt in of_place(job, folder, database):
        text = (HALF if 2 * len(odd) == len(job.views) else MIRRORED).format(len(odd), len(job.views))
        yield attempt.with_note("mirrored", text) if odd else attempt


def of_place(job: Job, folder: Path, database: Path) -> Iterator[Attempt]:
    """The models of the matches in a database. Those of photos that follow something that moves by itself are doubted,
    and others come from the matches that it leaves."""
    note = None
    for _ in range(1 + THINGS):
        found = None
        for attempt in of_matches(job, folder, database):
            found = None if job.sequences or job.held.any() else moving(job, attempt.answer, database)
            if found is not None:
                note = MOVES.format(len(found.views), len(job.views))
                attempt = attempt.doubted(FOLLOWS) if found.is_thing else attempt
            elif note is not None and attempt.answer.trusted.sum() < ALONE:  # too few, of the rest
                attempt = attempt.doubted(FOLLOWS)
            yield attempt if note is None else attempt.with_note("moving", note)
        if found is None or not found.is_thing:
            return
        keep_only(found.others, database)


def of_matches(job: Job, folder: Path, database: Path) -> Iterator[Attempt]:
    """The models of the matches in a database that are not of something on the pictures."""
    if job.follows:
        add_tracks(job, folder, database)
    rests = drop_overlays(job, database)
    for attempt in of_scene(job, folder, database):
        yield attempt.with_note("background-rests", RESTS) if rests else attempt


def of_scene(job: Job, folder: Path, database: Path) -> Iterator[Attempt]:
    """The best model of the matches in a database; if it lacks views, also one from those verified with its cameras."""
    here = database.parent
    if job.sequences:
        given, job = job, focal.with_focals(job, database)
        matches = matching.verify_again(job, database)
        if drop_insets(job, database, matches):
            job = focal.with_focals(given, database)
            matches = matching.verify_again(job, database)
    else:
        matches = matching.verify(job, database)
    if not len(matches.pairs) or (job.meeting and not matches.meet(job.meeting)):
        return
    mapper = adjust.Mapper(job, database)
    if job.held.any():
        held = Built.of(job, matches, mapper.from_poses(job.start, np.flatnonzero(job.held).tolist()), True)
        if held is not None:
            yield Attempt.of(matches, mapper, held, [])
        return
    candidates: list[Built] = []
    views = adjust.consistent_views(matches, job.start)
    matched = len(np.unique(matches.pairs))
    if len(views) >= max(2, matched / 2):
        candidates += filter(None, [Built.of(job, matches, mapper.from_poses(job.start, views), True)])
    found: list[Built] = []
    if job.past:  # whoever has a past compares with the model that its frames have without it
        models = [refitted(job, matches, mapper, built) for built in candidates]
        if job.ends and not any(is_enough(built.answer, NEARLY * matched) for built in models):
            found = by_methods(job, matches, mapper, here, database)
            models += soundest(found)
        good = [built for built in models if fitting(built.answer) >= ENOUGH * built.answer.report["matches"]]
        if good:
            yield Attempt.of(matches, mapper, max(good, key=lambda built: fitness(job, built.answer)), found)
        return
    if not candidates or len(job.views) <= FEW or not is_enough(candidates[0].answer, matched):
        found = by_methods(job, matches, mapper, here, database)
        candidates += soundest(found) if job.sequences else found
    best = max(candidates, key=lambda built: fitness(job, built.answer), default=None)
    if best is None:
        return
    yield Attempt.of(matches, mapper, best, found)
    enough = (NEARLY if job.sequences else 1.0) * len(features.files_to_view(job))
    if CALIBRATING <= best.answer.trusted.sum() < enough:
        again = recalibrate(job, here, database, best.answer)
        if again is not None and again.answer.trusted.sum() > best.answer.trusted.sum():
            yield Attempt.of(matches, mapper, again, found)


def by_methods(job: Job, matches: matching.Matches, mapper: adjust.Mapper, folder: Path, database: Path) -> list[Built]:
    """The models of all methods that the job needs, the global one first. Of a short video both, side by side: either
    may lose frames that the other has, or slip, which only the other tells."""
    once = partial(settled_once, job, matches, mapper)
    if job.sequences and FEW < len(job.views) <= LONG:
        with incremental_aside(job, matches, mapper, folder, database) as aside:
            models = [(polished(job, matches, mapper, adjust.global_model(job, folder, database)), once)]
            models += [(aside.made(), aside.settled)]
            return settle(job, [(built, step) for built, step in models if built is not None])
    found = []
    for method in (adjust.global_model, adjust.incremental_model):
        found += filter(None, [polished(job, matches, mapper, method(job, folder, database))])
        if found and found[-1].answer.has.sum() > 2:  # the global mapper cannot do two views
            break
    return settle(job, [(built, once) for built in found])


def polished(
    job: Job, matches: matching.Matches, mapper: adjust.Mapper, model: pycolmap.Reconstruction | None
) -> Built | None:
    """A method's model with the views that it lacks, if they fit, and with known cameras as they were given."""
    if model is None:
        return None
    adjust.restore_known(job, model)
    return Built.of(job, matches, mapper.polish(model), False)


def recalibrate(job: Job, folder: Path, database: Path, answer: Answer) -> Built | None:
    """A model from the matches verified again with an answer's cameras: known cameras separate inliers from outliers
    where the matches are too few to estimate the cameras as well."""
    groups = [
        group if group.fixed or model != group.model else replace(group, params=params, trusted=True)
        for group, model, params in zip(job.groups, answer.models, answer.params, strict=True)
    ]
    job = replace(job, groups=tuple(groups))
    matches = matching.verify_again(job, database)
    mapper = adjust.Mapper(job, database)
    built = polished(job, matches, mapper, adjust.global_model(job, folder, database))
    if built is None or not is_promising(built.answer, answer):
        return None
    return settle(job, [(built, partial(settled_once, job, matches, mapper))])[0]
