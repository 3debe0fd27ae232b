"""A tiny TUM RGB-D: two sequences of freiburg3, whose lens is a pinhole, at a tenth of their size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, as_seen_with
from data.tiny.timed import write_walk

TINY = Tiny(depth_error=1e-3, focal=0.8)  # wider than K
K = np.array([[53.54, 0.0, 32.06], [0.0, 53.92, 24.81], [0.0, 0.0, 1.0]])


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """World from camera, as in groundtruth.txt."""
    seen = [as_seen_with(scene, K) for scene in scenes]
    for name, scene in zip(("sitting_xyz", "walking_rpy"), seen, strict=True):
        write_walk(root / f"rgbd_dataset_freiburg3_{name}", scene, scene.world_from_cam)
    return seen
