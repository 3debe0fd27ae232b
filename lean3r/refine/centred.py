"""The last adjustment of films: with the middle of the lens where the matches have it, as far as they tell it.

It is near the middle of the pictures, but seldom there: sensors lie a little beside their lenses, and films are
cropped. A few per cent of the height turn the cameras by as much, and bend the path. An adjustment that frees it finds
it roughly, as turning all cameras changes the matches nearly alike; so it is moved by a part of that, by the inverses
of the variances of what the matches say and of what is usual.
"""

from __future__ import annotations

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.geometry.lens import LENSES
from lean3r.refine.adjust import Mapper
from lean3r.refine.built import Built
from lean3r.refine.focal_error import expected_variances
from lean3r.refine.intrinsics import DECENTRING
from lean3r.refine.matching import Matches
from lean3r.refine.rolling import shared_model, thinned
from lean3r.refine.separate import STEPS, adjusted_px
from lean3r.refine.settle import is_better
from lean3r.refine.sharpen import adjust_robustly, errors_px

USUAL = 0.015  # of the focal length: how far the middle of a lens is from that of the pictures
# What adjustments of films are off by, over what is expected of them as of photos: 0.5 in the root mean square, in
# windows of a walk.
OF_FILMS = 0.5
LEAST_SHIFT = 0.002  # of the focal length: less changes hardly anything


def centred(matches: Matches, mapper: Mapper, built: Built) -> Built:
    """The model of a film with the middle of its lens moved, or as it was, if that is known or hardly moves, or if the
    model fits no better. Where it moved, matches may fit that did not before: tracks are completed with them."""
    job, answer = mapper.job, built.answer
    used = {answer.camera[view] for view in np.flatnonzero(answer.has)}
    if len(used) != 1 or job.held.any() or job.past:
        return built
    (number,) = used
    group = job.groups[number]
    if group.fixed or group.focal_fixed or answer.models[number] in DECENTRING:
        return built
    shift_px = _likely_shift_px(built, number, mapper)
    if not np.abs(shift_px).max() >= LEAST_SHIFT * answer.params[number][0]:
        return built
    moved = Built.of(job, matches, _moved(mapper, built.model, shift_px), answer.report["start"])
    is_as_good = moved is not None and moved.answer.trusted.sum() >= answer.trusted.sum()
    if moved is None or not is_as_good or _score(moved) <= _score(built):
        return built
    again = Built.of(job, matches, mapper.polish(pycolmap.Reconstruction(moved.model)), answer.report["start"])
    return again if again is not None and is_better(again.answer, moved.answer) else moved


def _likely_shift_px(built: Built, number: int, mapper: Mapper) -> np.ndarray:
    """How far [2] the principal point of the only camera, that of a group of this number, probably is from where it
    was assumed."""
    answer = built.answer
    first = LENSES[answer.models[number]][0]
    free = shared_model(mapper.job, thinned(answer))
    adjusted_px(free, STEPS, frees_centres=True)
    (camera,) = free.cameras.values()
    found_px = np.array(camera.params[first : first + 2]) - answer.params[number][first : first + 2]
    deviation = OF_FILMS * np.sqrt(expected_variances(answer, frees_centres=True)[1:, 0])
    return found_px / (1 + (deviation / USUAL) ** 2)


def _moved(mapper: Mapper, model: pycolmap.Reconstruction, shift_px: np.ndarray) -> pycolmap.Reconstruction:
    """A copy of the model, adjusted with the middle of its lens moved by this."""
    model = pycolmap.Reconstruction(model)
    median_px = float(np.median(errors_px(model)))
    for camera_id in {image.camera_id for image in model.images.values() if image.has_pose}:
        camera = model.cameras[camera_id]
        params = np.array(camera.params)
        params[camera.principal_point_idxs()] += shift_px
        camera.params = params.tolist()
    adjust_robustly(mapper, model, median_px)
    return model


def _score(built: Built) -> float:
    return built.answer.report["after"]["score"]
