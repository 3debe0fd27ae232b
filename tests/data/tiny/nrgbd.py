"""A tiny NRGBD: poses in OpenGL's axes, depth in millimetres, and the surface as a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, millimetres, numbers, save_png
from data.tiny.eth3d import surface

from lean3r.export.ply import ply_bytes

TINY = Tiny(depth_error=2e-3)


def write(root: Path, scenes: Sequence[TinyScene]) -> list[TinyScene]:
    """Frames 0, 1...10...: numbers are not padded. Before the last frame, one was lost. What a reader finds."""
    made = []
    for number, scene in enumerate(scenes):
        scene = centred(scene)
        place, lost = root / ("kitchen", "whiteroom")[number], len(scene.images) - 1
        poses = []
        for frame in range(lost + 2):
            view = frame - (frame > lost)
            view = min(view, lost)
            pose = scene.world_from_cam[view] @ np.diag([1.0, -1.0, -1.0, 1.0])
            poses.append(np.full((4, 4), np.nan) if frame == lost else pose)
            save_png(place / "images" / f"img{frame}.png", scene.images[view])
            save_png(place / "depth" / f"depth{frame}.png", millimetres(scene.depth[view]))
            save_png(place / "depth_with_noise" / f"depth{frame}.png", millimetres(1.5 * scene.depth[view]))
        (place / "poses.txt").write_text("\n".join(numbers(pose) for pose in poses) + "\n")
        (place / "focal.txt").write_text(f"{float(scene.intrinsics[0, 0, 0])!r}\n")
        points = surface(scene)
        faces = np.arange(len(points) // 3 * 3).reshape(-1, 3)
        (place / "gt_mesh.ply").write_bytes(ply_bytes(points, np.zeros((len(points), 3), np.uint8), faces))
        made.append(scene)
    return made


def centred(scene: TinyScene) -> TinyScene:
    """The scene in pictures that are cut so that the principal point is their middle."""
    k = scene.intrinsics[0]
    height, width = scene.depth.shape[1:]
    left, top = round(2 * k[0, 2]) - width, round(2 * k[1, 2]) - height
    rows = slice(max(top, 0), height + min(top, 0))
    columns = slice(max(left, 0), width + min(left, 0))
    intrinsics = scene.intrinsics.copy()
    intrinsics[:, :2, 2] -= (columns.start, rows.start)
    images, depth = scene.images[:, rows, columns], scene.depth[:, rows, columns]
    return replace(scene, images=images, depth=depth, intrinsics=intrinsics)
