"""Films whose pixels are not square, though nothing says so: stored in another width than they were taken in.

Square pixels explain most of their matches too, with bent paths, and frames then may fit better with a focal length
each, as if the lens zoomed. What gives it away is that the error falls as soon as the camera that they share may have
two focal lengths, across and down.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lean3r.geometry.lens import LENSES
from lean3r.refine.adjust import error_px
from lean3r.refine.features import camera_of
from lean3r.refine.job import Answer, Group, Job
from lean3r.refine.separate import FIRST, STEPS, adjusted_px, model_of

LEFT, HOPELESS = 0.94, 0.965  # share of the error; in windows of a walk with square pixels, 0.975 and more
UNLIKE = 0.09  # logarithm of the ratio of the focal lengths: 0.037 in such a window, 0.11 where 540 pixels became 640


def with_oblong_pixels(job: Job, answer: Answer) -> Job | None:
    """The job of a video with a focal length across and one down for each of its cameras, if an answer's views fit
    clearly better so; else None."""
    used = sorted({job.views[view].group for view in np.flatnonzero(answer.has).tolist()})
    if not all(job.groups[number].lens_assumed and not job.groups[number].focal_fixed for number in used):
        return None
    groups = {number: _oblong(job.groups[number], answer, number) for number in used}
    shared = {number: camera_of(group, number + 1) for number, group in groups.items()}
    model = model_of(answer, {view: shared[job.views[view].group] for view in np.flatnonzero(answer.has).tolist()})
    before = error_px(model)
    for steps, most in ((FIRST, HOPELESS), (STEPS, LEFT)):
        if not adjusted_px(model, steps) < most * before:
            return None
    found = {number: model.cameras[number + 1].params for number in used}
    if not any(_are_unlike(*params[:2]) for params in found.values()):
        return None
    trusted = {n: replace(group, params=tuple(map(float, found[n])), trusted=True) for n, group in groups.items()}
    return replace(job, groups=tuple(trusted.get(number, group) for number, group in enumerate(job.groups)))


def is_oblong(answer: Answer) -> bool:
    """Whether a model's cameras have clearly different focal lengths across and down."""
    cameras = zip(answer.models, answer.params, strict=True)
    return any(LENSES[model][0] == 2 and _are_unlike(*params[:2]) for model, params in cameras)


def _are_unlike(across: float, down: float) -> bool:
    return abs(np.log(across / down)) >= UNLIKE


def _oblong(group: Group, answer: Answer, number: int) -> Group:
    """A group with the camera that an answer has for it, as one with two focal lengths."""
    focal, *centre, bend = answer.params[number]
    return replace(group, model="OPENCV", params=(focal, focal, *centre, bend, 0.0, 0.0, 0.0))
