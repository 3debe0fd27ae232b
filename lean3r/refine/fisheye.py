"""Fisheye lenses, as action cameras and dash cameras have: they see more than the polynomials of a usual lens can say.

A model with these explains most matches of their pictures too, with twice the focal length and cameras that are turned
wrongly (14 pictures of a hall, 118 degrees across: by 18 degrees, and every camera was trusted; 0.2 as a fisheye). What
gives it away is how strongly lines bend.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lean3r.refine.adjust import pincushion
from lean3r.refine.features import camera_of
from lean3r.refine.job import Answer, Group, Job

MODEL = "FOV"  # Devernay and Faugeras, "Straight lines have to be straight", 2001: one parameter, an angle
EQUIDISTANT = 2 * np.arctan(0.5)  # with this, the distance from the middle of a picture grows as the angle
FOCAL = 0.5  # in longer sides of the picture: 115 degrees across
BARREL = -0.08  # share by which the corner moves; -0.055 in the real photos whose lens bends lines most
# Ratio of the errors of a model with fisheye cameras and one without: 0.85 where pictures are 70 degrees across (and
# usual cameras are turned by 3), 0.6 at 118. Of a lens that a polynomial describes, it is the other way round.
SHARPER = 0.95
# Of the parameters of a fisheye: how far its focal lengths across and down may be apart (a film with oblong pixels has
# two, which fit no other model), and its least angle; 0.93 where it is equidistant.
ALIKE, LEAST_ANGLE = 0.05, 0.4
FISHEYE = (
    "the lens is a fisheye: its cameras have COLMAP's FOV model, and depth is less sure towards the edges. Programs "
    "that know pinholes only need undistorted pictures (--undistort)"
)


def as_fisheye(job: Job, answer: Answer) -> Job | None:
    """The job with fisheye cameras, if those of an answer bend lines as only such lenses do, and nothing is known of
    them; else None."""
    if job.held.any() or not all(group.lens_assumed and not group.focal_fixed for group in job.groups):
        return None
    cameras = [
        camera_of(replace(group, model=model, params=params))
        for group, model, params in zip(job.groups, answer.models, answer.params, strict=True)
    ]
    used = sorted({job.views[view].group for view in np.flatnonzero(answer.has).tolist()})
    if np.median([pincushion(cameras[number]) for number in used]) > BARREL:
        return None
    return replace(job, groups=tuple(map(_wide, job.groups)))


def is_fisheye(answer: Answer) -> bool:
    """Whether the cameras of an answer are those of a fisheye indeed."""
    found = [params for model, params in zip(answer.models, answer.params, strict=True) if model == MODEL]
    return bool(found) and all(abs(np.log(p[0] / p[1])) < ALIKE and p[-1] > LEAST_ANGLE for p in found)


def _wide(group: Group) -> Group:
    focal, centre = FOCAL * max(group.width, group.height), (group.width / 2, group.height / 2)
    return replace(
        group, model=MODEL, params=(focal, focal, *centre, float(EQUIDISTANT)), trusted=True, lens_assumed=False
    )
