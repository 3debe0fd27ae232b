"""A tiny ScanNet-1500: LoFTR's list of pairs and intrinsics, and the walks of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, millimetres, numbers, save_jpeg, save_png

TINY = Tiny(depth_error=2e-3, pixel_error=1e-3, pose_error=1e-5)
BORDER = 3  # the depth sensor sees more than the picture


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """Each pair of following views; the first camera is the world."""
    names, poses, lenses, pairs = [], [], {}, []
    for number, scene in enumerate(scenes):
        walk = f"scene{707 + number:04}_00"
        k = np.eye(4)
        k[:3, :3] = scene.intrinsics[0]
        k[:2, 2] += BORDER - 0.5
        (root / walk / "intrinsic").mkdir(parents=True)
        (root / walk / "intrinsic" / "intrinsic_depth.txt").write_text(numbers(k) + "\n")
        for view, image in enumerate(scene.images):
            save_jpeg(root / walk / "color" / f"{15 * view}.jpg", image)
            save_png(root / walk / "depth" / f"{15 * view}.png", np.pad(millimetres(scene.depth[view]), BORDER))
        height, width = scene.depth.shape[1:]
        # In pixels of 1296 x 968 half a pixel less, then scaled as coordinates to 640 x 480.
        full = np.diag([1296 / width, 968 / height, 1]) @ scene.intrinsics[0] - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        lenses[walk] = np.diag([640 / 1296, 480 / 968, 1]) @ full
        for first in (0, 2, 4):
            two = slice(first, first + 2)
            change = scene.cam_from_world[first + 1] @ scene.world_from_cam[first]
            names.append((707 + number, 0, 15 * first, 15 * (first + 1)))
            poses.append(change[:3].ravel())
            world = np.stack([np.eye(4), change])
            views = scene.images[two], scene.depth[two], scene.normals[two], scene.intrinsics[two]
            pairs.append(TinyScene(*views, world))
    np.savez(root / "test.npz", name=np.array(names, np.uint16), rel_pose=np.array(poses, np.float32))
    np.savez(root / "intrinsics.npz", **lenses)
    return pairs
