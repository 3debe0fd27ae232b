"""What refined cameras of photographs leave open though they fit: the focal length, and two places without a third."""

from __future__ import annotations

import numpy as np

from lean3r.refine.focal_error import FAR
from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of, places
from lean3r.types import Reconstruction, with_warning

FEW = 200  # points that two views share: wrong pairs had 33 to 103, right ones from 39 on
GUESS = (
    "pictures from two places cannot tell their focal length: it is guessed and may be off by {:.0%}, and angles, "
    "distances and depth with it"
)
VAGUE = (
    "the pictures hardly tell their focal length: it may be off by {:.0%}, and angles, distances and depth with it. "
    "More pictures from different directions tell it"
)
STATE = ". State it: keep EXIF data, or pass known intrinsics with --cameras"
ALONE = (
    "only views from two places hold together, by {} points, and none from a third one confirms them: where windows or "
    "tiles repeat, they may be wrong altogether"
)


def with_cautions(reconstruction: Reconstruction, answer: Answer, focal_error: float | None) -> Reconstruction:
    """The reconstruction with warnings of what its trusted views leave open, if that can be told: how far their focal
    length may be off (`focal_error`), and whether no third view confirms them."""
    views = np.flatnonzero(answer.has & answer.trusted)
    if focal_error is None:
        return reconstruction
    are_two = places(centres_of(answer.cam_from_world[views])) <= 2
    if are_two and (points := len(answer.of_trusted().xyz)) < FEW:
        reconstruction = with_warning(reconstruction, "two-views", ALONE.format(points), views.tolist())
    if focal_error <= FAR:
        return reconstruction
    text = (GUESS if are_two else VAGUE).format(focal_error) + STATE
    return with_warning(reconstruction, "focal-length", text, views.tolist())
