"""A tiny KITTI odometry: two sequences with poses of camera 0, pictures of camera 2, and one without public poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, numbers, save_png

TINY = Tiny(depth="none")
SHIFT = np.array([0.06, -0.0003, 0.0027])  # of points from camera 0 to camera 2, in metres


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """Rows of [3, 4]; times of a tenth of a second."""
    (root / "poses").mkdir(parents=True)
    cam_from_0 = np.eye(4)
    cam_from_0[:3, 3] = SHIFT
    for number, scene in enumerate(scenes):
        sequence = root / "sequences" / f"{number:02}"
        for view, image in enumerate(scene.images):
            save_png(sequence / "image_2" / f"{view:06}.png", image)
        k = scene.intrinsics[0] - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        projections = {name: np.hstack([k, np.zeros((3, 1))]) for name in ("P0", "P1", "P3", "Tr")}
        projections["P2"] = k @ cam_from_0[:3]
        lines = [f"{name}: {numbers(projections[name].ravel())}" for name in sorted(projections)]
        (sequence / "calib.txt").write_text("\n".join(lines) + "\n")
        (sequence / "times.txt").write_text("".join(f"{0.1 * view:.6e}\n" for view in range(len(scene.images))))
        poses = scene.world_from_cam @ cam_from_0
        (root / "poses" / f"{number:02}.txt").write_text(numbers(poses[:, :3].reshape(-1, 12)) + "\n")
    save_png(root / "sequences" / "11" / "image_2" / "000000.png", scenes[0].images[0])
