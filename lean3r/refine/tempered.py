"""Focal lengths that photographs hardly tell stay near what was known of them: EXIF data, or what the network sees.

A free adjustment takes the one that fits best, were it by a hair: of level flights, twice or half the true one.
"""

from __future__ import annotations

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.adjust import Mapper
from lean3r.refine.built import Built
from lean3r.refine.centred import centred
from lean3r.refine.focal_error import FAR, deviation, of_known
from lean3r.refine.judge import centres_of, places
from lean3r.refine.matching import Matches
from lean3r.refine.sharpen import adjust_robustly, errors_px, sharpened

USUAL = 0.5  # of a deviation to expect, what focal lengths were off by, in the root mean square
TIMES = 2  # adjustments, since poses and points move far


def adjusted_last(matches: Matches, mapper: Mapper, built: Built) -> Built:
    """The model of a film centred (centred.py); of photos sharpened (sharpen.py), and then tempered."""
    if mapper.job.sequences:
        return centred(matches, mapper, built)
    return tempered(matches, mapper, sharpened(matches, mapper, built))


def tempered(matches: Matches, mapper: Mapper, built: Built) -> Built:
    """The model with its focal lengths held at the mean of what the pictures say and what was known, by the inverses of
    their variances; as it was, if the pictures tell them, or if fewer views would be trusted."""
    job, answer = mapper.job, built.answer
    if job.held.any() or job.knows_focals or places(centres_of(answer.cam_from_world[answer.trusted])) < 3:
        return built
    of_pictures = deviation(answer)
    if of_pictures <= FAR:
        return built
    of_views = [(answer.camera[view], job.groups[job.views[view].group]) for view in np.flatnonzero(answer.has)]
    groups = {camera: group for camera, group in of_views if not group.fixed}
    known = np.log([group.params[0] / answer.params[camera][0] for camera, group in groups.items()])
    share = 1 / (1 + (of_known(groups.values()) / (USUAL * of_pictures)) ** 2)
    model = with_focals(mapper, built.model, float(np.exp(share * np.median(known))))
    again = Built.of(job, matches, model, answer.report["start"])
    is_as_good = again is not None and again.answer.trusted.sum() >= answer.trusted.sum()
    return again if again is not None and is_as_good else built


def with_focals(mapper: Mapper, model: pycolmap.Reconstruction, factor: float) -> pycolmap.Reconstruction:
    """A copy of the model, adjusted with so many times its focal lengths, from cameras as many times as far away."""
    model = pycolmap.Reconstruction(model)
    median_px = float(np.median(errors_px(model)))
    for camera_id in {image.camera_id for image in model.images.values() if image.has_pose} - mapper.known(model):
        camera = model.cameras[camera_id]
        params = np.array(camera.params)
        params[camera.focal_length_idxs()] *= factor
        camera.params = params.tolist()
    for image in model.images.values():
        if image.has_pose and (seen := image.get_observation_points2D()):
            pose = image.cam_from_world()
            depth = np.median([(pose * model.points3D[point.point3D_id].xyz)[2] for point in seen])
            shift = np.array(pose.translation) + np.array([0, 0, (factor - 1) * depth])
            moved = pycolmap.Rigid3d(pose.rotation, shift)
            model.frames[image.frame_id].set_cam_from_world(image.camera_id, moved)
    for _ in range(TIMES):
        adjust_robustly(mapper, model, median_px, keep_focals=True)
    return model
