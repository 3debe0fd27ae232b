"""A tiny DL3DV-10K: transforms.json of nerfstudio, for pictures four times as large as those that are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data.tiny import Tiny, TinyScene, save_png

TINY = Tiny(depth="none")

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write(root: Path, scenes: Sequence[TinyScene], subset: str = "1K") -> None:
    """One folder a scene below a subset; lenses of OPENCV that bend nothing."""
    for number, scene in enumerate(scenes):
        folder = root / subset / f"{number:064x}"
        for view, image in enumerate(scene.images):
            save_png(folder / "images_4" / f"frame_{view + 1:05}.png", image)
        lens = {"camera_model": "OPENCV", "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
        (folder / "transforms.json").write_text(json.dumps(transforms(scene, 4, lens, "images/frame_{:05}.png", 1)))


def transforms(scene: TinyScene, factor: int, lens: dict[str, Any], name: str, first: int) -> dict[str, Any]:
    """Content of a transforms.json of pictures `factor` times as large; `name` makes names of numbers from `first`."""
    k, (height, width) = scene.intrinsics[0] * factor, scene.depth.shape[1:]
    size = {"w": width * factor, "h": height * factor}
    numbers = {"fl_x": k[0, 0], "fl_y": k[1, 1], "cx": k[0, 2], "cy": k[1, 2]}
    frames = [
        {"file_path": name.format(first + view), "transform_matrix": (pose @ OPENGL).tolist()}
        for view, pose in enumerate(scene.world_from_cam)
    ]
    return {**size, **numbers, **lens, "frames": frames}
