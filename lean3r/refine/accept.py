"""How well cameras fit verified matches, and whether refined ones are better than the network's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap
    from lean3r.refine.matching import Matches

INLIER_PX = 2.0  # in the pictures that features were found in
TURNED_PX = 1.0
# Or share of the matches that a rotation fits as well which the better half of them tells. Of a wide turn before a
# facade, whose repeated windows skew one by all matches, it fits that share within 0.4 px; of 196 sets of photographs
# of seven scenes within 6.8 px at best.
TURNED_SHARE, AGAIN = 0.9, 3
AS_MANY = 0.99  # given cameras, in another frame: 276 for 277
CAP_PX = 1000.0  # cap on reported errors: larger values carry no information


@dataclass(frozen=True)
class Fit:
    """Number of verified matches and of their inliers (within INLIER_PX of one point in front of both cameras), the
    inliers weighted by error (1 for exact, 0 at INLIER_PX), and the median error in pixels of the matches between views
    that a model has; the numbers and the error also per view, and the median over its pairs of theirs (`view_pair_px`):
    another view that is wrong spoils few of its pairs, if many of its matches."""

    matches: int
    inliers: int
    score: float
    error_px: float
    view_matches: list[int]
    view_inliers: list[int]
    view_error_px: list[float | None]
    view_pair_px: list[float | None]


def why_not_better(before: Fit, after: Fit, knows_poses: bool = False) -> str | None:
    """The reason to reject refined cameras; None if they improve both error and inliers. With known poses, where
    refinement may only add points, it is enough that they leave as many inliers, but for a few at their bound."""
    if knows_poses and after.inliers >= AS_MANY * before.inliers:
        return None
    if after.inliers <= before.inliers:
        return f"it would fit {after.inliers} of {after.matches} verified matches; {before.inliers} fit before"
    if after.error_px >= before.error_px:
        return f"the reprojection error would be {after.error_px:.2f} px, and was {before.error_px:.2f} px before"
    return None


def fit(matches: Matches, error: np.ndarray, has: np.ndarray) -> Fit:
    """The fit of cameras of S views with these errors [M] (`errors_px`) to verified matches. Errors are those of
    matches between views that the compared model `has` [S]."""
    whole, of_pairs = has[matches.pairs].all(axis=1), np.split(error, np.cumsum(matches.counts))
    usual = np.array([np.median(each) for each in of_pairs[: len(matches.pairs)]])
    told = _median(error[np.repeat(whole, matches.counts)])
    pairs_of: list[list[int]] = [[] for _ in has]
    for pair in np.flatnonzero(whole).tolist():
        for view in matches.pairs[pair]:
            pairs_of[view].append(pair)
    seen = [np.concatenate([np.zeros(0), *(of_pairs[pair] for pair in pairs)]) for pairs in pairs_of]
    return Fit(
        len(error),
        int((error < INLIER_PX).sum()),
        round(float((1 - np.minimum(error / INLIER_PX, 1) ** 2).sum()), 1),
        CAP_PX if told is None else told,
        [len(each) for each in seen],
        [int((each < INLIER_PX).sum()) for each in seen],
        [_median(each) for each in seen],
        [_median(usual[pairs]) for pairs in pairs_of],
    )


def _median(errors_px: np.ndarray) -> float | None:
    """None of none."""
    return round(float(np.median(errors_px)), 4) if len(errors_px) else None


def errors_px(matches: Matches, cameras: Sequence[pycolmap.Camera], cam_from_world: np.ndarray) -> np.ndarray:
    """Reprojection error [M] in pixels of each match: how far a measurement must move for its ray to meet the
    other one in front of both cameras; to first order (Sampson). CAP_PX where they meet behind a camera."""
    rays = [
        np.asarray(camera.cam_from_img(xy)) if len(xy) else np.zeros((0, 2))
        for camera, xy in zip(cameras, matches.keypoints, strict=True)
    ]
    errors = [np.zeros(0)]
    for (i, j), index in zip(matches.pairs, matches.indices, strict=True):
        focal = (cameras[i].mean_focal_length() + cameras[j].mean_focal_length()) / 2
        relative = cam_from_world[j] @ np.linalg.inv(cam_from_world[i])
        errors.append(focal * pair_errors(rays[i][index[:, 0]], rays[j][index[:, 1]], relative))
    return np.minimum(np.nan_to_num(np.concatenate(errors), nan=CAP_PX), CAP_PX)


def pair_shares(matches: Matches, error: np.ndarray, posed: np.ndarray, least: int) -> np.ndarray:
    """Share [S, S] of the verified matches of each pair with an error [M] within INLIER_PX; NaN for fewer than `least`
    matches and for views that are not `posed` [S]."""
    shares = np.full((len(posed), len(posed)), np.nan)
    of_pairs = np.split(error, np.cumsum(matches.counts))
    for (i, j), each in zip(matches.pairs, of_pairs, strict=False):
        if len(each) >= least and posed[i] and posed[j]:
            shares[i, j] = shares[j, i] = (each < INLIER_PX).mean()
    return shares


def turn_only(matches: Matches, cameras: Sequence[pycolmap.Camera]) -> bool:
    """Whether rotation alone explains most matches, and those of most pairs, within TURNED_PX: rotating in place gives
    no parallax, so neither positions nor depths are determined. Most matches may be between copies of photos."""
    rays = [
        np.asarray(camera.cam_from_img(xy)) if len(xy) else np.zeros((0, 2))
        for camera, xy in zip(cameras, matches.keypoints, strict=True)
    ]
    of_pairs = []
    for (i, j), index in zip(matches.pairs, matches.indices, strict=True):
        a, b = rays[i][index[:, 0]], rays[j][index[:, 1]]
        known = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)  # outside the lens's field of view
        if known.any():
            of_pairs.append((a[known], b[known], cameras[i].mean_focal_length()))
    return _are_within(of_pairs, _turned, 0.5) or _are_within(of_pairs, _turned_well, TURNED_SHARE)


def _are_within(
    of_pairs: Sequence[tuple[np.ndarray, np.ndarray, float]],
    turned: Callable[[np.ndarray, np.ndarray], np.ndarray],
    share: float,
) -> bool:
    """Whether such a share of the errors of rays of all pairs that are `turned`, times the focal length, and of those
    of the usual pair, is below TURNED_PX."""
    errors, shares, above = [], [], 0
    for a, b, focal in of_pairs:
        errors.append(np.minimum(focal * turned(a, b), CAP_PX))
        shares.append(np.quantile(errors[-1], share))
        above += shares[-1] >= TURNED_PX
        if 2 * above > len(of_pairs):
            return False  # nor is that of the usual pair, whatever the others have
    return bool(errors) and float(max(np.quantile(np.concatenate(errors), share), np.median(shares))) < TURNED_PX


def _turned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`pair_errors` [M] of the rotation that best aligns rays to others."""
    pose = np.eye(4)
    pose[:3, :3] = best_turn(a, b)
    return pair_errors(a, b, pose)


def _turned_well(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same of the rotation that does so for the better half of them."""
    error = _turned(a, b)
    for _ in range(AGAIN):
        good = error <= np.median(error)
        pose = np.eye(4)
        pose[:3, :3] = best_turn(a[good], b[good])
        error = pair_errors(a, b, pose)
    return error


def best_turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] that best aligns rays (x, y, 1), [M, 2], to others."""
    a, b = (np.hstack([xy, np.ones((len(xy), 1))]) for xy in (a, b))
    a, b = (xyz / np.linalg.norm(xyz, axis=1, keepdims=True) for xyz in (a, b))
    u, _, v = np.linalg.svd(b.T @ a)
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ v)]) @ v


def pair_errors(a: np.ndarray, b: np.ndarray, b_from_a: np.ndarray) -> np.ndarray:
    """`errors_px` in units of the focal length, for rays (x, y, 1), given as [M, 2] in the frames of two cameras.

    Without a baseline, this is the distance to the rotated ray.
    """
    rotation, shift = b_from_a[:3, :3], b_from_a[:3, 3]
    a, b = (np.hstack([xy, np.ones((len(xy), 1))]) for xy in (a, b))
    turned = a @ rotation.T
    with np.errstate(divide="ignore", invalid="ignore"):
        if np.linalg.norm(shift) < 1e-9:
            away = np.linalg.norm(turned[:, :2] / turned[:, 2:] - b[:, :2], axis=1) / np.sqrt(2)
            return np.where(turned[:, 2] > 0, away, np.inf)
        unit = shift / np.linalg.norm(shift)
        essential = np.cross(np.eye(3), unit) @ rotation  # np.cross(np.eye(3), t) @ v is t x v
        along_b, along_a = a @ essential.T, b @ essential
        value = (b * along_b).sum(1)
        sampson = np.abs(value) / np.sqrt((along_b[:, :2] ** 2).sum(1) + (along_a[:, :2] ** 2).sum(1))
        # Depths where both rays are closest: in front of both cameras, or nearly parallel rays (far away).
        aa, bb, ab = (turned * turned).sum(1), (b * b).sum(1), (turned * b).sum(1)
        at, bt = turned @ unit, b @ unit
        determinant = aa * bb - ab**2
        depth_a, depth_b = ab * bt - bb * at, aa * bt - ab * at
        parallel = determinant < 1e-7 * aa * bb
    return np.where(((depth_a > 0) & (depth_b > 0)) | parallel, sampson, np.inf)
