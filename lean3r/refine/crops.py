"""Frames that show parts of one flat picture: a still one that is shaken, scrolled, panned or zoomed into, as in slide
shows, title cards and recordings of a screen, or a thing that is moved over most of the picture.

A flat wall and a camera that slides along it, without the least turn, fit their matches to perfection: a tenth of the
error of a scene. Nothing in them tells depth or the lens. What else moves, as behind such a thing, is left to be found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOVED_PX = 4.0  # median move of the matches of a pair that tells
# A move and a change of size bring half of the matches of a pair so near: within 0.2 px in slide shows, 0.1 px where a
# picture is shaken. In pairs of frames of a walk it is 4 px and more: no hand holds a camera without roll.
NEAR_PX = 0.4
FLAT_PX = 1.5  # within which matches are of the flat picture
ROUNDS = 4


def of_crops(pairs: Sequence[tuple[int, int]], before: list[np.ndarray], after: list[np.ndarray]) -> list[np.ndarray]:
    """Which matches of each pair of frames, pixels [M, 2] in both, are of a flat picture [M] bool: in frames of which
    most matches are with such that are alike but for a move and a change of size."""
    both = list(zip(before, after, strict=True))
    left = [_left_px(old, new) for old, new in both]
    moves = [bool(np.median(np.linalg.norm(new - old, axis=1)) >= MOVED_PX) for old, new in both]
    alike = [moved and bool(np.median(px) < NEAR_PX) for moved, px in zip(moves, left, strict=True)]
    counts: dict[int, list[int]] = {}  # of the matches of a frame, those with frames that are alike, and others
    for pair, moved, is_alike, px in zip(pairs, moves, alike, left, strict=True):
        for frame in pair if moved else ():
            counts.setdefault(frame, [0, 0])[not is_alike] += len(px)
    flat = {frame for frame, (mine, others) in counts.items() if mine > others}
    return [
        (px < FLAT_PX) & (is_alike and flat.issuperset(pair))
        for pair, is_alike, px in zip(pairs, alike, left, strict=True)
    ]


def _left_px(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """How far pixels [M, 2] are from others [M] after the move and change of size that fit the better half of them."""
    good = np.ones(len(old), bool)
    left = np.zeros(len(old))
    for _ in range(ROUNDS):
        middle, goal = old[good].mean(0), new[good].mean(0)
        spread, wanted = old[good] - middle, new[good] - goal
        size = (spread * wanted).sum() / max((spread**2).sum(), np.finfo(float).tiny)
        left = np.linalg.norm(new - goal - size * (old - middle), axis=1)
        good = left <= np.median(left)
    return left
