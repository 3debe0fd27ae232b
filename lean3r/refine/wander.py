"""Films that were steadied by moving their crop over the frames of the camera, as many programs and old phones do.

The middle of the lens then wanders over the picture, and a pinhole that has it in one place can only turn to fit: a
walk whose crop moves by a tenth of its width comes out with cameras 22 cm off (5 without), and as if its lens zoomed.
Where the matches agree much better on a middle for each frame, features are moved to where a crop at rest would have
them. Films that are steadied by turning each frame as a camera would be turned are none of these: they are pinholes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.geometry.lens import LENSES
from lean3r.refine.adjust import error_px
from lean3r.refine.job import Answer, Job
from lean3r.refine.matching import image_ids
from lean3r.refine.rolling import thinned
from lean3r.refine.separate import FIRST, STEPS, adjusted_px, with_a_camera_each

# Share of the mean error that is left with a middle for each frame: 0.85 where a crop moves by a tenth; 0.97 where it
# rests, or frames are read row by row.
LEFT = 0.9
NOTE = (
    "the frames fit clearly better with a middle of the lens each: the film seems to have been steadied by moving its "
    "crop. Each camera has a principal point of its own"
)


def wandering(job: Job, answer: Answer) -> np.ndarray | None:
    """How far [S, 2] pixels the middle of the lens is in each view of a film from where the cameras have it, if its
    matches fit clearly better so, also than with a focal length each; else None."""
    if _with_middles(job, thinned(answer)) is None:
        return None
    moved = _with_middles(job, answer)
    if moved is None:
        return None
    adjusted_px(moved, STEPS, frees_centres=True)  # the focal length of before hangs on where the middles were
    _share_focal(moved, answer)
    adjusted_px(moved, STEPS, frees_focals=False, frees_centres=True)
    away, every = np.full((len(job.views), 2), np.nan), np.arange(len(job.views))
    for number, image in moved.images.items():
        camera = moved.cameras[image.camera_id]
        away[number - 1] = np.array([camera.principal_point_x, camera.principal_point_y]) - _middle(answer, number - 1)
    found = np.isfinite(away[:, 0])
    away -= np.median(away[found], axis=0)  # all by the same: cameras that turn
    away = np.stack([np.interp(every, every[found], away[found, axis]) for axis in range(2)], axis=1)
    return np.where(np.isin(every, [view for run in job.sequences for view in run])[:, None], away, 0)


def _with_middles(job: Job, answer: Answer) -> pycolmap.Reconstruction | None:
    """An answer with a middle for each view, if that fits clearly better: without the bent lens and the focal length
    that shared middles have made up. It is the usual one of those that fit best if each view has its own."""
    model = with_a_camera_each(job, answer)
    before_px = min(error_px(model), adjusted_px(with_a_camera_each(job, answer), FIRST))
    for number, camera in model.cameras.items():
        if job.groups[job.views[number - 1].group].lens_assumed:
            end = LENSES[camera.model.name][0] + 2
            camera.params = [*camera.params[:end], *np.zeros(len(camera.params) - end)]
    adjusted_px(model, FIRST)
    _share_focal(model, answer)
    return model if adjusted_px(model, FIRST, frees_focals=False, frees_centres=True) < LEFT * before_px else None


def _share_focal(model: pycolmap.Reconstruction, answer: Answer) -> None:
    """Give all views whose camera was shared in an answer the usual focal length of these."""
    focals_px: dict[int, list[float]] = {}
    for number, camera in model.cameras.items():
        focals_px.setdefault(answer.camera[number - 1], []).append(camera.mean_focal_length())
    for number, camera in model.cameras.items():
        first, usual_px = LENSES[camera.model.name][0], np.median(focals_px[answer.camera[number - 1]])
        camera.params = [*camera.params[:first] * usual_px / camera.mean_focal_length(), *camera.params[first:]]


def at_rest(job: Job, away: np.ndarray, database: Path) -> None:
    """Move the features in a database to where they would be if the middle of each view were not so far `away`."""
    with pycolmap.Database.open(database) as opened:
        for view, image_id in image_ids(job, database).items():
            keypoints = np.array(opened.read_keypoints(image_id), np.float32)
            if len(keypoints):
                keypoints[:, :2] -= away[view]
                opened.update_keypoints(image_id, keypoints)


def as_taken(answer: Answer, away: np.ndarray) -> Answer:
    """An answer from such features with a camera for each view whose middle is so far `away`, and the features back."""
    params = []
    for number, shift in zip(answer.camera, away.tolist(), strict=True):
        first = LENSES[answer.models[number]][0]
        known = answer.params[number]
        x, y = (value + more for value, more in zip(known[first : first + 2], shift, strict=True))
        params.append((*known[:first], x, y, *known[first + 2 :]))
    models = tuple(answer.models[number] for number in answer.camera)
    views = tuple(range(len(away)))
    return replace(answer, models=models, params=tuple(params), camera=views, xy=answer.xy + away[answer.view])


def _middle(answer: Answer, view: int) -> tuple[float, ...]:
    number = answer.camera[view]
    first = LENSES[answer.models[number]][0]
    return answer.params[number][first : first + 2]
