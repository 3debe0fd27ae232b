"""What refined cameras of photographs leave open though they fit: the focal length, and a pair without a third view."""

from __future__ import annotations

import numpy as np

from lean3r.refine.focal_error import FAR, focal_error
from lean3r.refine.job import Answer, Job
from lean3r.types import Reconstruction, with_warning

FEW = 200  # points that two views share: wrong pairs had 33 to 103, right ones from 39 on
GUESS = (
    "two pictures cannot tell their focal length: it is the network's guess, which may be off by {:.0%}, and angles, "
    "distances and depth with it"
)
VAGUE = (
    "the pictures hardly tell their focal length: it may be off by {:.0%}, and angles, distances and depth with it. "
    "More pictures from different directions tell it"
)
STATE = ". State it: keep EXIF data, or pass known intrinsics with --cameras"
ALONE = (
    "only two views hold together, by {} points, and no third one confirms them: where a place repeats itself, they "
    "may be wrong altogether"
)


def with_cautions(reconstruction: Reconstruction, job: Job, answer: Answer) -> Reconstruction:
    """The reconstruction with warnings of what its registered views leave open. None for videos, whose frames determine
    their focal length by their number, and for known cameras."""
    views = np.flatnonzero(answer.has & answer.trusted)
    if job.sequences or job.held.any() or len(views) < 2:
        return reconstruction
    if len(views) == 2 and len(answer.of_trusted().xyz) < FEW:
        text = ALONE.format(len(answer.of_trusted().xyz))
        reconstruction = with_warning(reconstruction, "two-views", text, views.tolist())
    error = focal_error(job, answer)
    if error <= FAR:
        return reconstruction
    text = (GUESS if len(views) == 2 else VAGUE).format(error) + STATE
    return with_warning(reconstruction, "focal-length", text, views.tolist())
