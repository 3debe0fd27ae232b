"""Whether keyframes confirm where a network says that a picture was taken: it says so of any picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lean3r.geometry.consistency import Scene
from lean3r.geometry.lens import Optics
from lean3r.stream.result import Result

CELL = 4  # pixels along either side whose mean brightness is compared
# Of an office walk with its cameras and depth, the best of eight frames before agrees by 0.97 and more (95 %); where
# a picture of elsewhere is said to be, by 0.47 at most; where it is moved by 5 % of the depth, by 0.37 to 0.89.
NEAR, SHARE, ALIKE = 0.1, 0.2, 0.6


def confirmed(asked: Result, keyframes: Sequence[Result]) -> bool:
    """Whether one of the keyframes, of the same size, shows what a picture shows where the camera and the depth of that
    have it: a SHARE of its pixels NEAR the depth there (log), whose brightness correlates by ALIKE."""
    return any(agreement(asked, keyframe) > ALIKE for keyframe in keyframes)


def agreement(asked: Result, keyframe: Result) -> float:
    """The correlation of brightness at pixels that a keyframe has in the same depth; 0 if they are few."""
    optics = Optics([asked.source, keyframe.source], np.stack([asked.intrinsics, keyframe.intrinsics]))
    scene = Scene(np.stack([asked.depth, keyframe.depth]), np.stack([asked.pose, keyframe.pose]), optics)
    height, width = asked.depth.shape
    rows, cols = (each.ravel() for each in np.mgrid[CELL // 2 : height : CELL, CELL // 2 : width : CELL])
    world = scene.world_points(0, rows, cols)
    z, depth = scene.seen(1, world)
    with np.errstate(invalid="ignore", divide="ignore"):
        near = np.abs(np.log(np.where(z > 0, z, np.nan) / depth)) < NEAR  # False where one is unknown
    if near.mean() < SHARE:
        return 0.0
    pose = keyframe.pose
    xy = optics.project(1, world[near] @ pose[:3, :3].T + pose[:3, 3])
    there = tuple(np.floor(xy).astype(int).clip(0, [width - 1, height - 1]).T[::-1])
    own, other = _smooth(asked.image)[rows[near], cols[near]], _smooth(keyframe.image)[there]
    spread = own.std() * other.std()
    return 0.0 if spread == 0 else float(((own - own.mean()) * (other - other.mean())).mean() / spread)


def _smooth(image: np.ndarray) -> np.ndarray:
    """The mean brightness [H, W] around each pixel of a picture [H, W, 3]."""
    half = CELL // 2
    padded = np.pad(image.mean(axis=2), half, mode="edge")
    cells = np.lib.stride_tricks.sliding_window_view(padded, (CELL + 1, CELL + 1))
    return cells.mean(axis=(2, 3))
