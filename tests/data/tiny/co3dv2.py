"""A tiny CO3Dv2: one category, its sequences and gzipped annotations."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data.tiny import Tiny, TinyScene, save_jpeg, save_png

TINY = Tiny(depth_error=1e-3)

SCALE = 2.0


def write(root: Path, scenes: Sequence[TinyScene], kind: str = "ndc_isotropic") -> None:
    """Cameras of PyTorch3D, depth as the bits of half floats, half as large as it is (scale_adjustment 2).

    A mask tells where depth is known: elsewhere the map holds rubbish. Foreground masks are the left half.
    """
    frames: list[dict[str, Any]] = []
    sequences = []
    for number, scene in enumerate(scenes):
        name = f"110_{13051 + number}_23361"
        folder = root / "apple" / name
        sequences.append({"sequence_name": name, "category": "apple", "viewpoint_quality_score": 1.5})
        for view, (k, pose) in enumerate(zip(scene.intrinsics, scene.cam_from_world, strict=True)):
            depth = scene.depth[view]
            stem = f"frame{view + 1:06}"
            save_jpeg(folder / "images" / f"{stem}.jpg", scene.images[view])
            halves = np.where(depth > 0, depth / SCALE, 0.7).astype(np.float16)
            save_png(folder / "depths" / f"{stem}.jpg.geometric.png", halves.view(np.uint16))
            save_png(folder / "depth_masks" / f"{stem}.png", (depth > 0).astype(np.uint8) * 255)
            left = np.zeros(depth.shape, np.uint8)
            left[:, : depth.shape[1] // 2] = 255
            save_png(folder / "masks" / f"{stem}.png", left)
            base = f"apple/{name}"
            frames.append(
                {
                    "sequence_name": name,
                    "frame_number": view,
                    "frame_timestamp": view / 10,
                    "image": {"path": f"{base}/images/{stem}.jpg", "size": list(depth.shape)},
                    "depth": {
                        "path": f"{base}/depths/{stem}.jpg.geometric.png",
                        "scale_adjustment": SCALE,
                        "mask_path": f"{base}/depth_masks/{stem}.png",
                    },
                    "mask": {"path": f"{base}/masks/{stem}.png", "mass": 100.0},
                    "viewpoint": viewpoint(k, pose, depth.shape, kind),
                    "meta": {},
                }
            )
    with gzip.open(root / "apple" / "frame_annotations.jgz", "wt") as file:
        json.dump(frames[::-1], file)
    with gzip.open(root / "apple" / "sequence_annotations.jgz", "wt") as file:
        json.dump(sequences, file)


def viewpoint(k: np.ndarray, pose: np.ndarray, shape: Sequence[int], kind: str) -> dict[str, Any]:
    """A camera as PyTorch3D has it: axes left, up, forward; x_cam = x_world R + T; x_ndc = f x / z + p."""
    flip = np.diag([-1.0, -1.0, 1.0])
    middle = np.array([shape[1], shape[0]]) / 2
    unit = np.full(2, min(shape) / 2) if kind == "ndc_isotropic" else middle
    return {
        "R": (flip @ pose[:3, :3]).T.tolist(),
        "T": (flip @ pose[:3, 3]).tolist(),
        "focal_length": (k[[0, 1], [0, 1]] / unit).tolist(),
        "principal_point": (-(k[:2, 2] - middle) / unit).tolist(),
        "intrinsics_format": kind,
    }
