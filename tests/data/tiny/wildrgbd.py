"""A tiny WildRGB-D: one category, its videos with colour, depth, masks, metadata and poses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, millimetres, numbers, save_png

TINY = Tiny(depth_error=2e-3)


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """Depth in millimetres, K column by column, poses world_from_cam; masks of the left half."""
    for number, scene in enumerate(scenes):
        folder = root / "apple" / "scenes" / f"scene_{number:03}"
        height, width = scene.depth.shape[1:]
        lines = []
        for view, pose in enumerate(scene.world_from_cam):
            lines.append(f"{view} {numbers(pose.ravel())}")
            mask = np.zeros((height, width), np.uint8)
            mask[:, : width // 2] = 255
            save_png(folder / "rgb" / f"{view:05}.png", scene.images[view])
            save_png(folder / "depth" / f"{view:05}.png", millimetres(scene.depth[view]))
            save_png(folder / "masks" / f"{view:05}.png", mask)
        (folder / "cam_poses.txt").write_text("\n".join(lines) + "\n")
        metadata = {"w": width, "h": height, "fps": 30, "K": scene.intrinsics[0].T.ravel().tolist()}
        (folder / "metadata").write_text(json.dumps(metadata))
