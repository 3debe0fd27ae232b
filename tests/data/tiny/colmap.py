"""A tiny COLMAP folder: images/ and sparse/0/ as text, with points of the first view's depth that others see too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
from data.tiny import Tiny, TinyScene, save_png

TINY = Tiny(depth="sparse")


def write(root: Path, scenes: Sequence[TinyScene], lens: tuple[float, ...] = ()) -> None:
    """One folder a scene; `lens` are the parameters after fx, fy, cx, cy of an OPENCV camera (none: a pinhole)."""
    for number, scene in enumerate(scenes):
        folder = root / f"scene_{number}"
        names = [f"{view:03}.png" for view in range(len(scene.images))]
        for name, image in zip(names, scene.images, strict=True):
            save_png(folder / "images" / name, image)
        write_model(folder / "sparse" / "0", scene, names, "OPENCV" if lens else "PINHOLE", lens)


def write_model(
    model: Path, scene: TinyScene, names: Sequence[str], kind: str = "PINHOLE", lens: tuple[float, ...] = ()
) -> None:
    """The text model of a scene with one camera; `lens` are its parameters after fx, fy, cx, cy."""
    model.mkdir(parents=True)
    height, width = scene.depth.shape[1:]
    k = scene.intrinsics[0]
    params = " ".join(repr(float(x)) for x in (k[0, 0], k[1, 1], k[0, 2], k[1, 2], *lens))
    (model / "cameras.txt").write_text(f"1 {kind} {width} {height} {params}\n")
    tracks = points(scene)
    lines, seen = [], {}
    for view, pose in enumerate(scene.cam_from_world):
        quaternion = pycolmap.Rotation3d(np.ascontiguousarray(pose[:3, :3])).quat  # x, y, z, w
        numbers = [quaternion[3], *quaternion[:3], *pose[:3, 3]]
        lines.append(f"{view + 1} {' '.join(repr(float(x)) for x in numbers)} 1 {names[view]}")
        found = []
        for point, (_, where) in enumerate(tracks):
            if view in where:
                seen.setdefault(point, []).append((view + 1, len(found)))
                found.append(f"{where[view][0]!r} {where[view][1]!r} {point + 1}")
        lines.append(" ".join(found))
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [
        f"{point + 1} {' '.join(repr(float(x)) for x in xyz)} 128 128 128 0.1 "
        + " ".join(f"{image} {index}" for image, index in seen[point])
        for point, (xyz, _) in enumerate(tracks)
    ]
    (model / "points3D.txt").write_text("\n".join(rows) + "\n")


def points(scene: TinyScene) -> list[tuple[np.ndarray, dict[int, tuple[float, float]]]]:
    """World points, each with the pixels of the views that see it: its depth there is what the picture's map says."""
    found = []
    height, width = scene.depth.shape[1:]
    for one in range(len(scene.depth)):
        for y, x in ((y, x) for y in range(2, height, 7) for x in range(3, width, 7)):
            z = float(scene.depth[one, y, x])
            if z <= 0:
                continue
            ray = np.linalg.inv(scene.intrinsics[one]) @ (x + 0.5, y + 0.5, 1)
            xyz = scene.world_from_cam[one] @ (*(ray * z), 1)
            where = {}
            for other in range(len(scene.depth)):
                there = scene.cam_from_world[other] @ xyz
                if there[2] <= 1e-3:
                    continue
                u, v = (scene.intrinsics[other] @ (there[:3] / there[2]))[:2]
                if 0 <= u < width and 0 <= v < height:
                    seen = float(scene.depth[other, int(v), int(u)])
                    if abs(seen - there[2]) < 0.01 * there[2]:
                        where[other] = (float(u), float(v))
            if len(where) >= 2:
                found.append((xyz[:3], where))
    return found
