"""What the frames of a video say about its lens, where it is not one that rests and has square pixels: rows that are
read one after the other, a crop that moves, pixels that are oblong, a zoom."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lean3r.refine import rolling, wander
from lean3r.refine.attempts import Attempt, attempts, of_matches
from lean3r.refine.compare import MOST, is_as_good, is_tighter, value
from lean3r.refine.job import Answer, Job
from lean3r.refine.separate import own_focals
from lean3r.refine.stretched import is_oblong, with_oblong_pixels

STRETCHED = (
    "the pixels of the film are not square, though it does not say so: its cameras have a focal length across and "
    "another one down"
)
ZOOMS = "the frames fit clearly better with a focal length each, as if the lens zoomed, but no such model was found"


class Film(NamedTuple):
    """A video with its best model of one lens that rests, `shared`, whose features are of an octave."""

    job: Job
    folder: Path
    name: str
    octave: int
    shared: Answer

    def models(self, job: Job, name: str) -> list[Answer]:
        """The answers of another job for the same frames."""
        return [each.answer for each in attempts(job, self.folder, self.octave, name)]

    def copied(self, name: str) -> Path:
        """A copy of the database of the model, in a folder of its own."""
        here = self.folder / name
        here.mkdir()
        return Path(shutil.copy(self.folder / f"{self.name}{self.octave}" / "database.db", here))

    def with_moved_features(self, database: Path) -> Attempt | None:
        """The best model of a database whose features were moved since, if it fits better."""
        shared = self.shared
        known = (shared.has & shared.trusted)[:, None, None]
        again = replace(self.job, follows=False, start=np.where(known, shared.cam_from_world, np.nan))
        models = of_matches(again, self.folder, database)
        found = [each for each in models if is_as_good(each.answer, shared) and is_tighter(each.answer, shared)]
        return max(found, key=lambda each: value(each.answer), default=None)


def rolled(film: Film) -> bool:
    """Keep a model of a video whose frames are read row by row, if one fits better; whether it does."""
    found = rolling.readout(film.job, film.shared)
    if found is None:
        return False
    straight = film.copied("rolling")
    rolling.straighten(film.job, film.shared, found, straight)
    best = film.with_moved_features(straight)
    if best is not None:
        best.with_note("rolling-shutter", rolling.NOTE.format(1000 * found.whole_s)).sharpened().write(film.folder)
    return best is not None


def wandered(film: Film) -> bool:
    """Keep a model of a video whose crop moves, if one fits better; whether it does."""
    job = film.job
    away = None if job.held.any() or job.each_alone() is None else wander.wandering(job, film.shared)
    if away is None:
        return False
    resting = film.copied("wander")
    wander.at_rest(job, away, resting)
    best = film.with_moved_features(resting)
    if best is not None:
        wander.as_taken(best.answer, away).with_note("moving-crop", wander.NOTE).write(film.folder)
    return best is not None


def stretched(film: Film) -> bool:
    """Keep a model of a video whose pixels are not square, if one fits better; whether it does."""
    shared = film.shared
    oblong = None if film.job.held.any() else with_oblong_pixels(film.job, shared)
    if oblong is None:
        return False
    models = film.models(oblong, "oblong")
    models = [each for each in models if is_as_good(each, shared) and is_oblong(each) and is_tighter(each, shared)]
    if models:
        max(models, key=value).with_note("stretched", STRETCHED).write(film.folder)
    return bool(models)


def zoomed(film: Film) -> bool:
    """Where frames of a video seem to have different focal lengths, keep a model from the matches alone in which they
    do not, if the network's poses misled this one; or else one in which each frame has its own. Whether they seem to.

    One camera explains the matches nearly as well, with a wrong path (8.8 cm off, or 2.0 with focal lengths of their
    own, where a walk of 60 frames zooms by half; 43 cm off, or 1.5 without the network's poses, in a rendered hall).
    Where neither is found, no frame is trusted.
    """
    job, folder, shared = film.job, film.folder, film.shared
    focals_px = None if job.held.any() else varying_focals(job, shared)
    if focals_px is None:
        return False
    shared.with_zoom().with_doubts(range(len(job.views)), ZOOMS).write(folder)
    if shared.report["start"]:
        free = replace(job, start=np.full_like(job.start, np.nan))
        models = [each for each in film.models(free, "free") if is_as_good(each, shared)]
        models = [each for each in models if varying_focals(job, each) is None]
        if models:
            max(models, key=value).write(folder)
            return True
    if (alone := job.each_alone(focals_px)) is not None:
        models = [each for each in film.models(alone, "alone") if is_as_good(each, shared, MOST)]
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


LENSES = (rolled, wandered, stretched, zoomed)


def has_another_lens(film: Film) -> bool:
    """Keep the first model that fits with another lens than one at rest with square pixels; whether there is one."""
    return any(lens(film) for lens in LENSES)
