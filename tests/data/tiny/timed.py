"""Writes the layout of the TUM RGB-D benchmark, which Bonn shares; not a set itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from data.tiny import TinyScene, numbers, save_png

from lean3r.geometry.rotation import quaternion_from_matrix

START_S = 1305031102.0


def write_walk(folder: Path, scene: TinyScene, poses: np.ndarray) -> None:
    """A picture each 33 ms, its map 15 ms later; poses [S, 4, 4] 4 ms before, between others.

    The first picture has no pose, and a second picture without a map within 20 ms has no pose either.
    """
    lists: dict[str, list[str]] = {"rgb": ["# color images"], "depth": ["# depth maps"], "groundtruth": ["# poses"]}

    def add(kind: str, time: float, values: np.ndarray) -> None:
        save_png(folder / kind / f"{time:.6f}.png", values)
        lists[kind].append(f"{time:.6f} {kind}/{time:.6f}.png")

    def add_pose(time: float, pose: np.ndarray) -> None:
        x, y, z, w = quaternion_from_matrix(torch.from_numpy(pose[:3, :3])).roll(-1).tolist()
        lists["groundtruth"].append(f"{time:.4f} {numbers(np.array([*pose[:3, 3], x, y, z, w]))}")

    add("rgb", START_S - 0.1, scene.images[0])
    for view, pose in enumerate(poses):
        time = START_S + 0.033 * view
        add("rgb", time, scene.images[view])
        add("depth", time + 0.015, np.rint(scene.depth[view] * 5000).clip(0, 65535).astype(np.uint16))
        add_pose(time - 0.0140, np.eye(4))
        add_pose(time - 0.0040, pose)
    for kind, lines in lists.items():
        (folder / f"{kind}.txt").write_text("\n".join(lines) + "\n")
