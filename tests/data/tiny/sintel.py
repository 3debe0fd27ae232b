"""A tiny MPI Sintel: one shot in both renderings, and its cameras and depth."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from data.tiny import TinyScene, save_png

TAG = struct.pack("<f", 202021.25)


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """`final` is darker than `clean`; frames count from 1, pixels' centres from 0."""
    scene = scenes[0]
    training = root / "training"
    for kind in ("camdata_left", "depth"):
        (training / kind / "alley_2").mkdir(parents=True)
    for view, image in enumerate(scene.images):
        stem = f"alley_2/frame_{view + 1:04}"
        save_png(training / "clean" / f"{stem}.png", image)
        save_png(training / "final" / f"{stem}.png", image // 2)
        m = scene.intrinsics[view] - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        camera = TAG + m.astype("<f8").tobytes() + scene.cam_from_world[view, :3].astype("<f8").tobytes()
        (training / "camdata_left" / f"{stem}.cam").write_bytes(camera)
        height, width = scene.depth[view].shape
        depth = TAG + struct.pack("<ii", width, height) + scene.depth[view].astype("<f4").tobytes()
        (training / "depth" / f"{stem}.dpt").write_bytes(depth)
    final = TinyScene(scene.images // 2, scene.depth, scene.normals, scene.intrinsics, scene.cam_from_world)
    return [final, scene]
