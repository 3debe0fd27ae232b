"""A tiny Bonn RGB-D Dynamic: two sequences at a tenth of their size, seen through a pinhole; poses of the markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, as_seen_with
from data.tiny.timed import write_walk

TINY = Tiny(depth_error=1e-3, focal=0.8, options={"undistort": False})  # wider than K
K = np.array([[54.2822841, 0.0, 31.6093520], [0.0, 54.2576870, 23.8256098], [0.0, 0.0, 1.0]])
SWAPPED = np.array([[-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
TURN = np.array([[1.0157, 0.1828, -0.2389], [0.0009, -0.8431, -0.6413], [-0.3009, 0.6147, -0.8085]])


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """The markers are at (-1.13, 0.98, 1.11) cm from the camera's centre, before the axes are swapped."""
    marker_from_cam = np.eye(4)
    u, _, vt = np.linalg.svd(TURN)
    marker_from_cam[:3, :3], marker_from_cam[:3, 3] = u @ vt, [0.0113, -0.0098, 0.0111]
    seen = [as_seen_with(scene, K) for scene in scenes]
    for name, scene in zip(("balloon2", "synchronous"), seen, strict=True):
        poses = SWAPPED @ scene.world_from_cam @ np.linalg.inv(SWAPPED @ marker_from_cam)
        write_walk(root / f"rgbd_bonn_{name}", scene, poses)
    return seen
