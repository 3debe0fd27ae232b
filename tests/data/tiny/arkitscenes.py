"""A tiny ARKitScenes, raw: videos of colour, depth, intrinsics a frame, and one trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from data.tiny import Tiny, TinyScene, millimetres, numbers, save_png

from lean3r.geometry.rotation import so3_log

TINY = Tiny(depth_error=2e-3, options={"upright": False})


def write(root: Path, scenes: Sequence[TinyScene], inner: str = "") -> None:
    """Poses are cam_from_world at times a little off the pictures'; a picture without a pose lies between the others.

    `inner`: what follows the video's number in the name of a folder in its folder, as in 3dod ("_frames").
    """
    for number, scene in enumerate(scenes):
        video = f"4104819{number}"
        folder = root / "Training" / video
        folder = folder / f"{video}{inner}" if inner else folder
        height, width = scene.depth.shape[1:]
        lines = []
        for view, (k, pose) in enumerate(zip(scene.intrinsics, scene.cam_from_world, strict=True)):
            time = 3414.917 + 0.1 * view
            name = f"{video}_{time:.3f}"
            save_png(folder / "lowres_wide" / f"{name}.png", scene.images[view])
            save_png(folder / "lowres_wide" / f"{video}_{time + 0.05:.3f}.png", scene.images[view])
            save_png(folder / "lowres_depth" / f"{name}.png", millimetres(scene.depth[view]))
            lens = folder / "lowres_wide_intrinsics" / f"{video}_{time + 0.001 * (view % 2):.3f}.pincam"
            lens.parent.mkdir(exist_ok=True)
            lens.write_text(f"{width} {height} {numbers(np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]))}\n")
            turn = so3_log(torch.from_numpy(pose[:3, :3])).numpy()
            lines.append(f"{time + 0.0004!r} {numbers(turn)} {numbers(pose[:3, 3])}")
        (folder / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
