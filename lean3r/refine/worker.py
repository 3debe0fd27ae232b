"""The refining process: reads a job from the folder named on the command line, and writes its answer there.

It is a separate process because the libraries' calls cannot be interrupted: it is ended when time is up, and the best
answer until then is used. It ends by itself when its standard input closes: nobody waits for it any more.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.processes import end_with_input
from lean3r.refine import adjust, features, fisheye, focal, matching, rolling, wander
from lean3r.refine.aside import incremental_aside
from lean3r.refine.built import Built
from lean3r.refine.compare import (
    ENOUGH,
    WELL,
    fitness,
    fitting,
    is_as_good,
    is_better_alone,
    is_enough,
    is_promising,
    is_sharper,
    is_strong,
    is_tighter,
    share,
    value,
)
from lean3r.refine.job import OUT_OF_TIME, Answer, Job
from lean3r.refine.moving import keep_only, moving
from lean3r.refine.overlay import drop_overlays
from lean3r.refine.separate import ELSEWHERE, are_off_centre, own_focals
from lean3r.refine.settle import NEARLY, refitted, settle, soundest
from lean3r.refine.stretched import is_oblong, with_oblong_pixels
from lean3r.refine.tempered import adjusted_last
from lean3r.refine.tracks import add_tracks

CALIBRATING = 4  # registered views that determine a camera reliably
MANY = 6  # views that determine a camera each
MOST = 2 / 3  # of them, where they fit a focal length that cannot be true
LONG = 128  # frames of a video up to which all methods are used: the seconds of one grow faster than their number
FEW = 6  # with so few views, a wrong model may fit nearly as well: a second method is tried
CROPPED = (
    "the pictures fit clearly better with a middle of the lens each that is not theirs, as if they were cropped, "
    "squeezed or framed: focal lengths, angles and distances may be far off. Take them as the camera made them, or "
    "state their intrinsics"
)
MIRRORED = (
    "{} of {} photos seem to be mirrored, as front cameras save them: they match the others only so, and are left "
    "apart. Mirror them back"
)
HALF = "{} of {} photos are mirror images of the others: which are right cannot be told. Mirror the wrong ones back"
MOVES = "something large moves by itself in {} of {} photos: mask it (--masks), or cameras may be those relative to it"
FOLLOWS = "it follows something that moves by itself in the photos, not the place around that: mask it (--masks)"
THINGS = 2  # that move by themselves, and are left out in turn
ALONE = 3  # views of which a model of what is left must trust so many
STRETCHED = (
    "the pixels of the film are not square, though it does not say so: its cameras have a focal length across and "
    "another one down"
)
ZOOMS = "the frames fit clearly better with a focal length each, as if the lens zoomed, but no such model was found"


class Attempt(NamedTuple):
    """What a model of a job says, and how to have it adjusted at last (tempered.py), which takes some time."""

    answer: Answer
    sharpened: Callable[[], Answer]

    @classmethod
    def of(cls, matches: matching.Matches, mapper: adjust.Mapper, built: Built, found: Sequence[Built]) -> Attempt:
        """The attempt whose best model is `built`, of all that were `found`."""
        job = mapper.job
        return cls(built.judged(job, found), lambda: adjusted_last(matches, mapper, built).judged(job, found, built))

    def with_note(self, code: str, note: str) -> Attempt:
        """The same with one more note for the user."""
        return Attempt(self.answer.with_note(code, note), lambda: self.sharpened().with_note(code, note))

    def doubted(self, reason: str) -> Attempt:
        """The same with no view trusted."""
        views = range(len(self.answer.has))
        return Attempt(self.answer.with_doubts(views, reason), lambda: self.sharpened().with_doubts(views, reason))


def solve(job: Job, folder: Path) -> None:
    """Keep the best answer so far in the folder. Coarse features come first, fine ones if these are not enough, and a
    camera for every view, if shared ones leave many matches or hide different focal lengths."""
    best: Attempt | None = None
    octave = features.COARSE
    for octave in features.octaves(job):
        for attempt in attempts(job, folder, octave):
            if best is None or value(attempt.answer) > value(best.answer):
                best = attempt
                best.answer.write(folder)
        if best is not None and is_strong(best.answer):
            break
    if best is None:
        return
    can_tell, name = best.answer.has.sum() >= CALIBRATING, "shared"
    if can_tell and (wide := fisheye.as_fisheye(job, best.answer)) is not None:
        models = attempts(wide, folder, octave, "fisheye")
        models = (each for each in models if is_as_good(each.answer, best.answer) and fisheye.is_fisheye(each.answer))
        found = [each for each in models if is_sharper(each.answer, best.answer, fisheye.SHARPER)]
        if found:
            job, name = wide, "fisheye"
            best = max(found, key=lambda each: value(each.answer)).with_note("fisheye", fisheye.FISHEYE)
            best.answer.write(folder)
    if job.sequences:
        database = folder / f"{name}{octave}" / "database.db"
        if can_tell and not (
            rolled(job, folder, database, best.answer)
            or wandered(job, folder, database, best.answer)
            or stretched(job, folder, octave, best.answer)
            or zoomed(job, folder, octave, best.answer)
        ):
            best.sharpened().write(folder)
        return
    if can_tell and FOLLOWS not in best.answer.report["doubts"] and job.each_alone() is not None:
        best = apart(job, folder, octave, best)
    with ThreadPoolExecutor(1) as aside:  # both keep one processor busy
        could_be = can_tell and not (job.held.any() or job.knows_focals)
        is_cropped = aside.submit(are_off_centre, job, best.answer) if could_be else None
        last = best.sharpened()
    if is_cropped is not None and is_cropped.result():
        last = last.with_note("cropped", CROPPED)
    last.write(folder)


def apart(job: Job, folder: Path, octave: int, shared: Attempt) -> Attempt:
    """Keep a model of pictures with a camera each, if shared ones leave many matches or cannot be true.

    Where they cannot, the focal lengths with which the shared model fits best are a second start: a part of the matches
    does not survive the network's, where half of the pictures are zoomed twofold. If its cameras lie elsewhere with
    them, it is not trusted; if they then only turn, no other is looked for: a lens that zooms looks like parallax.
    """
    own = own_focals(job, shared.answer)
    if own is None and (shared.answer.has.sum() < MANY or share(shared.answer) >= WELL):
        return shared
    first, least, starts = shared.answer, 1.0, [("alone", None)]
    if own is not None:
        starts = [] if own.only_turns else [*starts, ("again", own.focals_px)]
        if own.contradicts:
            shared, least = shared.doubted(ELSEWHERE), MOST
            shared.answer.write(folder)
    best = shared
    for name, start in starts:
        if best is not shared or (alone := job.each_alone(start)) is None:
            break
        for attempt in attempts(alone, folder, octave, name):
            before = first if best is shared else best.answer
            if is_better_alone(attempt.answer, before, own is not None and best is shared, least):
                best = attempt
                best.answer.write(folder)
    if own is not None and best is shared:
        best = best.with_note("zoom", own.note)
        best.answer.write(folder)
    return best


def rolled(job: Job, folder: Path, database: Path, shared: Answer) -> bool:
    """Keep a model of a video whose frames are read row by row, if one fits better; whether it does."""
    found = rolling.readout(job, shared)
    if found is None:
        return False
    straight = _copied(database, folder / "rolling")
    rolling.straighten(job, shared, found, straight)
    best = _with_moved_features(job, folder, straight, shared)
    if best is not None:
        best.with_note("rolling-shutter", rolling.NOTE.format(1000 * found.whole_s)).sharpened().write(folder)
    return best is not None


def wandered(job: Job, folder: Path, database: Path, shared: Answer) -> bool:
    """Keep a model of a video whose crop moves, if one fits better; whether it does."""
    away = None if job.held.any() or job.each_alone() is None else wander.wandering(job, shared)
    if away is None:
        return False
    resting = _copied(database, folder / "wander")
    wander.at_rest(job, away, resting)
    best = _with_moved_features(job, folder, resting, shared)
    if best is not None:
        wander.as_taken(best.answer, away).with_note("moving-crop", wander.NOTE).write(folder)
    return best is not None


def _copied(database: Path, here: Path) -> Path:
    here.mkdir()
    return Path(shutil.copy(database, here))


def _with_moved_features(job: Job, folder: Path, database: Path, shared: Answer) -> Attempt | None:
    """The best model of a database whose features were moved since there was a shared model, if it fits better."""
    known = (shared.has & shared.trusted)[:, None, None]
    again = replace(job, follows=False, start=np.where(known, shared.cam_from_world, np.nan))
    models = of_matches(again, folder, database)
    found = [each for each in models if is_as_good(each.answer, shared) and is_tighter(each.answer, shared)]
    return max(found, key=lambda each: value(each.answer), default=None)


def stretched(job: Job, folder: Path, octave: int, shared: Answer) -> bool:
    """Keep a model of a video whose pixels are not square, if one fits better; whether it does."""
    oblong = None if job.held.any() else with_oblong_pixels(job, shared)
    if oblong is None:
        return False
    models = [each.answer for each in attempts(oblong, folder, octave, "oblong")]
    models = [each for each in models if is_as_good(each, shared) and is_oblong(each) and is_tighter(each, shared)]
    if models:
        max(models, key=value).with_note("stretched", STRETCHED).write(folder)
    return bool(models)


def zoomed(job: Job, folder: Path, octave: int, shared: Answer) -> bool:
    """Where frames of a video seem to have different focal lengths, keep a model from the matches alone in which they
    do not, if the network's poses misled this one; or else one in which each frame has its own. Whether they seem to.

    One camera explains the matches nearly as well, with a wrong path (8.8 cm off, or 2.0 with focal lengths of their
    own, where a walk of 60 frames zooms by half; 43 cm off, or 1.5 without the network's poses, in a rendered hall).
    Where neither is found, no frame is trusted.
    """
    focals_px = None if job.held.any() else varying_focals(job, shared)
    if focals_px is None:
        return False
    shared.with_zoom().with_doubts(range(len(job.views)), ZOOMS).write(folder)
    if shared.report["start"]:
        free = replace(job, start=np.full_like(job.start, np.nan))
        models = [each.answer for each in attempts(free, folder, octave, "free") if is_as_good(each.answer, shared)]
        models = [each for each in models if varying_focals(job, each) is None]
        if models:
            max(models, key=value).write(folder)
            return True
    if (alone := job.each_alone(focals_px)) is not None:
        models = [each.answer for each in attempts(alone, folder, octave, "alone")]
        models = [each for each in models if is_as_good(each, shared, MOST)]
        if models:
            max(models, key=value).with_zoom().write(folder)
    return True


def varying_focals(job: Job, answer: Answer) -> np.ndarray | None:
    """Focal lengths [S] in pixels of the frames of a video, if they fit clearly better with one each."""
    own = own_focals(job, answer)
    if own is None:
        return None
    views, found = np.arange(len(job.views)), np.isfinite(own.focals_px)
    return np.interp(views, views[found], own.focals_px[found])


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
    """The best model of the matches in a database; if it lacks views, also one from those verified with its cameras."""
    here = database.parent
    if job.follows:
        add_tracks(job, folder, database)
    drop_overlays(job, database)
    if job.sequences:
        job = focal.with_focals(job, database)
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
    if job.sequences and FEW < len(job.views) <= LONG:
        with incremental_aside(job, folder, database) as second:
            first = polished(job, matches, mapper, adjust.global_model(job, folder, database))
            model = second(mapper)
        other = None if model is None else Built.of(job, matches, model, False)
        found = [built for built in (first, other) if built is not None]
    else:
        found = []
        for method in (adjust.global_model, adjust.incremental_model):
            found += filter(None, [polished(job, matches, mapper, method(job, folder, database))])
            if found and found[-1].answer.has.sum() > 2:  # the global mapper cannot do two views
                break
    return settle(job, matches, mapper, found)


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
    return settle(job, matches, mapper, [built])[0]


def _end_in_time(processor_seconds: float) -> None:
    while time.process_time() < processor_seconds:
        time.sleep(0.2)
    os._exit(OUT_OF_TIME)


def main() -> None:
    """Work on the folder named on the command line, for the stated seconds of processor time."""
    end_with_input()
    threading.Thread(target=_end_in_time, args=(float(sys.argv[2]),), daemon=True).start()
    pycolmap.logging.minloglevel = 3
    folder = Path(sys.argv[1])
    solve(Job.read(folder), folder)


if __name__ == "__main__":
    main()
