"""What refined cameras of photographs leave open though they fit: the focal length, and two places without a third; and
whether they fit badly.
"""

from __future__ import annotations

import numpy as np

from lean3r.refine.focal_error import FAR
from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of, confirmed, places
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
# Median error of a view's matches over that of the usual view, and in pixels, from which it fits badly. Of right views
# of 21 sets of seven scenes it was 2.2 times at most; of one 22 degrees off, where windows repeat, 7.6 times, of copies
# a quarter as large, and of photos with a frame or text over them, 7 to 11 degrees off, 2.6 to 6.9 times.
WORSE, BADLY_PX = 2.4, 0.3
# Share of the matches of the usual view that fit: 0.89 and more of right ones, 0.8 of corrected photos. Of
# an office enlarged threefold, 0.83: soft pictures fit as well for their size. The median error by the longer side is
# 0.0006 at most there, and 0.001 and more of edited ones.
FITTING, BY_SIDE = 0.85, 0.0008
BADLY = (
    "its matches fit several times worse than those of the others: it was edited, is a small copy, has a frame or text "
    "over it, or shows other windows or tiles like them"
)
EDITED = (
    "only {:.0%} of the matches of the usual view fit its camera, and nearly all do if cameras are right: these may be "
    "far off. Something moved, or pictures are not as the camera made them: squeezed, stitched, or with corrected "
    "perspective"
)


def why_unlikely(answer: Answer) -> str | None:
    """Why a model of photographs is likely to be wrong altogether; None if it is not: most views have no place in it,
    and the matches of those that have fit badly. Three of eight before a facade were 135 degrees off."""
    views, trusted = len(answer.has), int((answer.has & answer.trusted).sum())
    if not 0 < 2 * trusted < views or not fits_badly(answer):
        return None
    return f"{trusted} of {views} views would hold together, and only {fitting_share(answer):.0%} of their matches fit"


def with_cautions(reconstruction: Reconstruction, answer: Answer, focal_error: float | None) -> Reconstruction:
    """The reconstruction with warnings of what its trusted views leave open, if that can be told: how far their focal
    length may be off (`focal_error`), whether no third view confirms them, and whether they fit badly."""
    views = np.flatnonzero(answer.has & answer.trusted)
    if focal_error is None:
        return reconstruction
    if fits_badly(answer):
        text = EDITED.format(fitting_share(answer))
        reconstruction = with_warning(reconstruction, "poor-fit", text, views.tolist())
    are_two = places(centres_of(answer.cam_from_world[views])) <= 2
    if are_two and (points := len(answer.of_trusted().xyz)) < FEW:
        reconstruction = with_warning(reconstruction, "two-views", ALONE.format(points), views.tolist())
    if focal_error <= FAR:
        return reconstruction
    text = (GUESS if are_two else VAGUE).format(focal_error) + STATE
    return with_warning(reconstruction, "focal-length", text, views.tolist())


def fitting_badly(answer: Answer) -> list[int]:
    """The trusted views whose matches, and those of whose usual pair, fit their cameras far worse than those of the
    usual trusted view do."""
    error_px = np.array([answer.report["after"][name] for name in ("view_error_px", "view_pair_px")], float)
    told = answer.has & answer.trusted & np.isfinite(error_px).all(axis=0)
    if not told.any():
        return []
    usual_px = np.median(error_px[:, told], axis=1, keepdims=True)
    return np.flatnonzero(told & (error_px > np.maximum(WORSE * usual_px, BADLY_PX)).all(axis=0)).tolist()


def hanging_loosely(answer: Answer) -> list[int]:
    """The trusted views of photographs that too few points tie to the other trusted ones."""
    trusted = answer.has & answer.trusted
    seen = np.zeros((len(answer.xyz), len(trusted)), bool)
    seen[answer.point, answer.view] = True
    again = np.array(answer.report["again"], int).reshape(-1, 2)
    seen[again[:, 0], again[:, 1]] = True
    return np.flatnonzero(trusted & ~confirmed(seen, trusted, np.zeros(len(trusted), bool))).tolist()


def fits_badly(answer: Answer) -> bool:
    """Whether the usual trusted view fits its matches badly."""
    return fitting_share(answer) < FITTING and usual_error(answer) > BY_SIDE


def fitting_share(answer: Answer) -> float:
    """The share of the matches of the usual trusted view that fit its camera; one that is wrong spoils those of others,
    too."""
    views = answer.has & answer.trusted
    inliers, matches = (np.array(answer.report["after"][name])[views] for name in ("view_inliers", "view_matches"))
    return float(np.median(inliers / np.maximum(matches, 1)))


def usual_error(answer: Answer) -> float:
    """The median error of the matches of the usual trusted view, by the longer side of the pictures, which features
    reach."""
    error_px = np.array(answer.report["after"]["view_error_px"], float)[answer.has & answer.trusted]
    return float(np.nanmedian(error_px) / answer.xy.max(initial=1.0))
