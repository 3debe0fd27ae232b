"""A tiny DTU, as MVSNet prepared it: in millimetres, pictures of 640 x 512, depth of every fourth pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, save_png
from data.tiny.mvsnet import write_camera, write_pairs

from lean3r.data.sets.dtu import SMALL
from lean3r.data.sets.formats.files import write_pfm

TINY = Tiny(depth="spread")

LIGHT = 3


def enlarged(scene: TinyScene) -> TinyScene:
    """The scene in pictures of DTU's size: each pixel a block, the rest without depth."""
    factor = SMALL[0] // scene.depth.shape[2]
    images, depth = (np.repeat(np.repeat(a, factor, 1), factor, 2) for a in (scene.images, scene.depth))
    below = (0, SMALL[1] - depth.shape[1])
    images = np.pad(images, [(0, 0), below, (0, 0), (0, 0)], mode="edge")
    k = np.diag([factor, factor, 1.0]) @ scene.intrinsics
    return TinyScene(images, np.pad(depth, [(0, 0), below, (0, 0)]), np.zeros(0), k, scene.cam_from_world)


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """All scans share the cameras; here each scan has its own stretch of them. What a reader finds."""
    made = [enlarged(scene) for scene in scenes]
    number = 0
    for scan, scene in enumerate(made, 1):
        for image, depth, k, pose in zip(
            scene.images, scene.depth, scene.intrinsics, scene.cam_from_world, strict=True
        ):
            save_png(root / "Rectified" / f"scan{scan}_train" / f"rect_{number + 1:03}_{LIGHT}_r5000.png", image)
            maps = root / "Depths" / f"scan{scan}_train"
            maps.mkdir(parents=True, exist_ok=True)
            write_pfm(maps / f"depth_map_{number:04}.pfm", 1000 * depth[::4, ::4])
            inner = k.copy()
            inner[:2, 2] -= 0.5
            quarter = np.diag([0.25, 0.25, 1.0]) @ inner
            quarter[:2, 2] += 0.5
            moved = pose.copy()
            moved[:3, 3] *= 1000
            write_camera(root / "Cameras" / "train" / f"{number:08}_cam.txt", quarter, moved)
            # Of full size, from which MVSNet takes every second pixel and cuts.
            full = inner.copy()
            full[:2, 2] += (80, 44)
            full = np.diag([2.0, 2.0, 1.0]) @ full
            full[:2, 2] += 0.5
            write_camera(root / "Cameras" / f"{number:08}_cam.txt", full, moved)
            number += 1
    write_pairs(root / "Cameras" / "pair.txt", number)
    return made
