"""A tiny Virtual KITTI 2: drives, one rendering and one camera each, as the archives rgb, depth and textgt unpack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, numbers, save_jpeg, save_png

TINY = Tiny(depth_error=2e-2)


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """JPEG pictures, depth in centimetres (65535 where there is none), principal points 0.5 less than ours."""
    for number, scene in enumerate(scenes):
        drive = root / f"Scene{number + 1:02}" / "clone"
        lenses, poses = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"], ["frame cameraID r1,1 r1,2 r1,3 t1 r2,1 ..."]
        for view, (k, pose) in enumerate(zip(scene.intrinsics, scene.cam_from_world, strict=True)):
            lenses.append(f"{view} 0 {numbers(np.array([k[0, 0], k[1, 1], k[0, 2] - 0.5, k[1, 2] - 0.5]))}")
            lenses.append(f"{view} 1 1 1 1 1")  # the other camera of the pair, whose pictures are not there
            poses.append(f"{view} 0 {numbers(pose.ravel())}")
            depth = np.where(scene.depth[view] > 0, np.rint(scene.depth[view] * 100), 65535).astype(np.uint16)
            save_png(drive / "frames" / "depth" / "Camera_0" / f"depth_{view:05}.png", depth)
            save_jpeg(drive / "frames" / "rgb" / "Camera_0" / f"rgb_{view:05}.jpg", scene.images[view])
        (drive / "intrinsic.txt").write_text("\n".join(lenses) + "\n")
        (drive / "extrinsic.txt").write_text("\n".join(poses) + "\n")
