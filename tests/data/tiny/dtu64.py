"""A tiny DTU64: cameras of all scans in one folder, in millimetres; no depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.tiny import Tiny, TinyScene, save_png
from data.tiny.mvsnet import write_camera

TINY = Tiny(depth="none")


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """Each scan has its own stretch of the cameras."""
    number = 0
    for scan, scene in enumerate(scenes, 1):
        for image, k, pose in zip(scene.images, scene.intrinsics, scene.cam_from_world, strict=True):
            save_png(root / f"scan{scan}" / "image" / f"{number:06}.png", image)
            moved = pose.copy()
            moved[:3, 3] *= 1000
            write_camera(root / "Cameras" / f"{number:08}_cam.txt", k, moved)
            number += 1
