"""A tiny Tanks and Temples: a training scene with its log, its laser scan and the scan's place and volume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.tiny import Tiny, TinyScene, numbers, save_jpeg
from data.tiny.colmap import write_model
from data.tiny.eth3d import surface

from lean3r.export.ply import ply_bytes

TINY = Tiny(depth="none", pose_error=1e-6)

NAMES = ("Barn", "Ignatius")
SCALE = 4.1  # of the scan's world over the log's


def write(root: Path, scenes: Sequence[TinyScene]) -> None:
    """Pictures, poses in COLMAP's world, and a COLMAP model with the intrinsics; one more picture was not posed."""
    for name, scene in zip(NAMES, scenes, strict=False):
        place = root / name
        write_log(place, scene)
        files = [f"{view + 1:06}.jpg" for view in range(len(scene.images))]
        write_model(place / "sparse" / "0", scene, files)


def write_log(place: Path, scene: TinyScene) -> None:
    """As the benchmark's toolbox writes it, without a model."""
    log_from_world, rows = np.linalg.inv(similarity()), []
    for view, image in enumerate((*scene.images, scene.images[0])):
        save_jpeg(place / f"{view + 1:06}.jpg", image)
        is_posed = view < len(scene.images)
        pose = log_from_world @ scene.world_from_cam[view] if is_posed else np.eye(4)
        pose[:3, :3] *= SCALE if is_posed else 1
        rows.append(
            f"{view} {view if is_posed else -1} 0\n" + "\n".join(" ".join(f"{x:.12f}" for x in r) for r in pose)
        )
    (place / f"{place.name}_COLMAP_SfM.log").write_text("\n".join(rows) + "\n")
    (place / f"{place.name}_trans.txt").write_text(numbers(similarity()) + "\n")
    points = surface(scene)
    (place / f"{place.name}.ply").write_bytes(ply_bytes(points, np.zeros((len(points), 3), np.uint8)))
    (place / f"{place.name}.json").write_text(json.dumps(volume(points)))


def similarity() -> np.ndarray:
    """scan_from_log [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, :3] = SCALE * np.roll(np.eye(3), 1, axis=0)
    matrix[:3, 3] = (-8, 0.7, -20)
    return matrix


def volume(points: np.ndarray) -> dict[str, object]:
    """The half of the points' box with the smaller first coordinate."""
    low, high = points.min(0) - 1, points.max(0) + 1
    middle = float(np.median(points[:, 0]))
    corners = [[low[0], low[1], 0], [middle, low[1], 0], [middle, high[1], 0], [low[0], high[1], 0]]
    return {
        "axis_max": high[2],
        "axis_min": low[2],
        "bounding_polygon": corners,
        "class_name": "SelectionPolygonVolume",
        "orthogonal_axis": "Z",
    }
