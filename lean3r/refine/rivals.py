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
    views, apart = np.flatnonzero(answer.trusted), differing(answer, rival)
    same, left = np.setdiff1d(views, apart), []
    at = np.searchsorted(views, apart)
    for run in np.split(np.array(apart, int), np.flatnonzero(np.diff(at) > 1) + 1):
        between = np.ix_(run, same)
        known = np.isfinite(shares[between]) & np.isfinite(others[between])
        if not known.any() or others[between][known].mean() > shares[between][known].mean() - WORSE:
            left += run.tolist()
    return left


def differing(answer: Answer, rival: Answer) -> list[int]:
    """The trusted views of an answer that a rival has elsewhere, and those that it lacks next to these.

    The models are aligned where most of their cameras agree: a slip moves all behind it. None where the rival trusts
    too few views, or fewer than half of those of the answer.
    """
    views = np.flatnonzero(answer.trusted)
    shared = np.flatnonzero(rival.trusted[views])
    if len(shared) < max(LEAST, len(views) / 2):
        return []
    centres, others = (centres_of(x.cam_from_world[views[shared]]) for x in (answer, rival))
    step = np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1))
    length, index = max(LEAST, len(shared) // 4), np.arange(len(shared))
    agree = index < 0
    for start in range(len(shared) - length + 1):
        near = (index >= start) & (index < start + length)
        for _ in range(REPEATS):
            near = np.linalg.norm(_aligned(others, centres, near) - centres, axis=1) < STEPS * step
            if near.sum() < LEAST:
                break
        agree = max(agree, near, key=np.sum)
    nearest = np.abs(np.arange(len(views))[:, None] - shared).argmin(1)
    return views[~agree[nearest]].tolist()


def _aligned(points: np.ndarray, target: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Points [N, 3] after the similarity that takes those `used` to the target (Umeyama's). pycolmap's refuses straight
    walks and level ones; that of geometry/ needs torch, without which the refining process starts."""
    mean, goal = points[used].mean(0), target[used].mean(0)
    source, wanted = points[used] - mean, target[used] - goal
    u, sizes, vt = np.linalg.svd(wanted.T @ source)
    flip = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    scale = (sizes * flip).sum() / max((source**2).sum(), np.finfo(float).tiny)
    return scale * (points - mean) @ (u * flip @ vt).T + goal
