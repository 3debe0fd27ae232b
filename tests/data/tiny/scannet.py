"""A tiny ScanNet: what its SensReader exports, with one frame whose tracking was lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, millimetres, numbers, save_jpeg, save_png

TINY = Tiny(depth_error=2e-3)

BORDER = 3  # the depth sensor sees more than the picture


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """Frames 0, 10, 20...: names are sorted as numbers, not as text; the last one has no pose."""
    for number, scene in enumerate(scenes):
        folder = root / "scans" / f"scene{number:04}_00"
        (folder / "pose").mkdir(parents=True)
        (folder / "intrinsic").mkdir()
        for kind, border in (("color", 0), ("depth", BORDER)):
            matrix = np.eye(4)
            matrix[:3, :3] = scene.intrinsics[0]
            matrix[:2, 2] += border - 0.5
            (folder / "intrinsic" / f"intrinsic_{kind}.txt").write_text(numbers(matrix) + "\n")
        views = len(scene.images)
        for v in range(views + 1):
            source = min(v, views - 1)
            save_jpeg(folder / "color" / f"{10 * v}.jpg", scene.images[source])
            save_png(folder / "depth" / f"{10 * v}.png", np.pad(millimetres(scene.depth[source]), BORDER))
            pose = scene.world_from_cam[source] if v < views else np.full((4, 4), -np.inf)
            (folder / "pose" / f"{10 * v}.txt").write_text(numbers(pose) + "\n")
