"""A tiny KITTI depth, as MonST3R's prepare_kitti.py arranges it: two drives with sparse maps, and no cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from data.tiny import WIDTH, Tiny, TinyScene, as_seen_with, save_png

HEIGHT = 19
TINY = Tiny(depth_error=5e-3)


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """Pictures of 64 x 19 pixels; maps in 1/256 m."""
    base = root / "depth_selection" / "val_selection_cropped"
    x, y = WIDTH / 1242, HEIGHT / 375
    k = np.array([[721.5377 * x, 0, 610.0593 * x], [0, 721.5377 * y, 173.354 * y], [0, 0, 1]])
    seen = [as_seen_with(scene, k, HEIGHT) for scene in scenes]
    for drive, scene in zip(("0002", "0005"), seen, strict=True):
        for view, image in enumerate(scene.images):
            name = f"2011_09_26_drive_{drive}_sync_02/{view + 5:010}.png"
            save_png(base / "image_gathered" / name, image)
            depth = np.rint(scene.depth[view] * 256).clip(0, 65535).astype(np.uint16)
            save_png(base / "groundtruth_depth_gathered" / name, depth)
    return [replace(scene, cam_from_world=np.tile(np.eye(4), (len(scene.images), 1, 1))) for scene in seen]
