"""Frames of a video that two models of the same matches put in different places: one of the two slips there."""

from __future__ import annotations

import numpy as np

from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of

STEPS = 0.5  # median steps from frame to frame: models of 48 frames that were right were 0.08 apart at most
REPEATS = 3
LEAST = 5  # views that determine how two models lie to each other
WORSE = 0.05  # share of matches by which a rival fits worse where it differs, that tells it wrong there
ELSEWHERE = "another model that fits nearly as well has it in another place"


def contested(answer: Answer, rival: Answer, shares: np.ndarray, others: np.ndarray) -> list[int]:
    """The views that a rival has elsewhere (see `differing`), without those where it is the rival that slips: the
    matches between them and the views that both models have in the same place tell, by the share of each pair that
    fits the answer, `shares` [S, S], and the rival, `others` [S, S] (NaN: not known)."""
    views = np.flatnonzero(answer.trusted)
    apart = differing(answer.cam_from_world, answer.trusted, rival.cam_from_world, rival.trusted)
    same, left = np.setdiff1d(views, apart), []
    at = np.searchsorted(views, apart)
    for run in np.split(np.array(apart, int), np.flatnonzero(np.diff(at) > 1) + 1):
        between = np.ix_(run, same)
        known = np.isfinite(shares[between]) & np.isfinite(others[between])
        if not known.any() or others[between][known].mean() > shares[between][known].mean() - WORSE:
            left += run.tolist()
    return left


def differing(poses: np.ndarray, trusted: np.ndarray, others: np.ndarray, trusted_others: np.ndarray) -> list[int]:
    """The `trusted` [S] views of a model with these poses [S, 4, 4] that a rival has elsewhere, and those that it lacks
    before and behind these.

    The models are aligned where most of their cameras agree: a slip moves all behind it. None where the rival trusts
    too few views, or fewer than half of those of the first.
    """
    views = np.flatnonzero(trusted)
    shared = np.flatnonzero(trusted_others[views])
    if len(shared) < max(LEAST, len(views) / 2):
        return []
    centres, places = (centres_of(each[views[shared]]) for each in (poses, others))
    step = np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1))
    length, index = max(LEAST, len(shared) // 4), np.arange(len(shared))
    agree = index < 0
    for start in range(len(shared) - length + 1):
        near = (index >= start) & (index < start + length)
        for _ in range(REPEATS):
            near = np.linalg.norm(_aligned(places, centres, near) - centres, axis=1) < STEPS * step
            if near.sum() < LEAST:
                break
        agree = max(agree, near, key=np.sum)
    every = np.arange(len(views))
    before, after = np.searchsorted(shared, every, "right") - 1, np.searchsorted(shared, every)
    is_same = agree[np.maximum(before, 0)] & agree[np.minimum(after, len(shared) - 1)]
    return views[~is_same].tolist()


def _aligned(points: np.ndarray, target: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Points [N, 3] after the similarity that takes those `used` to the target (Umeyama's). pycolmap's refuses straight
    walks and level ones; that of geometry/ needs torch, without which the refining process starts."""
    mean, goal = points[used].mean(0), target[used].mean(0)
    source, wanted = points[used] - mean, target[used] - goal
    u, sizes, vt = np.linalg.svd(wanted.T @ source)
    flip = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    scale = (sizes * flip).sum() / max((source**2).sum(), np.finfo(float).tiny)
    return scale * (points - mean) @ (u * flip @ vt).T + goal
