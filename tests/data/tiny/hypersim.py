"""A tiny Hypersim: one camera path a scene, distances in half floats, lenses tilted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from data.tiny import Tiny, TinyScene, save_jpeg

from lean3r.geometry.rotation import so3_exp

TINY = Tiny(depth_error=1e-3)

METRES = 0.0254
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write(root: Path, scenes: Sequence[TinyScene], tilt_rad: float = 0.05) -> None:
    """Positions are in inches; cameras are turned by `tilt_rad` about x against the pinhole that the lens is."""
    columns = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    lines = [",".join(["scene_name", "settings_output_img_height", "settings_output_img_width", *columns])]
    turn = np.eye(4)
    turn[:3, :3] = so3_exp(torch.tensor([tilt_rad, 0.0, 0.0], dtype=torch.float64)).numpy()
    for number, scene in enumerate(scenes):
        place = root / f"ai_001_{number + 1:03}"
        height, width = scene.depth.shape[1:]
        world_from_cam = scene.world_from_cam @ turn @ OPENGL
        save_hdf5(place / "_detail" / "cam_00" / "camera_keyframe_orientations.hdf5", world_from_cam[:, :3, :3])
        save_hdf5(place / "_detail" / "cam_00" / "camera_keyframe_positions.hdf5", world_from_cam[:, :3, 3] / METRES)
        (place / "_detail" / "metadata_scene.csv").write_text(
            f"parameter_name,parameter_value\nmeters_per_asset_unit,{METRES}\n"
        )
        rays = np.linalg.inv(scene.intrinsics[0]) @ pixels(height, width)
        for view, depth in enumerate(scene.depth):
            distance = depth * np.linalg.norm(rays, axis=0).reshape(height, width)
            geometry = place / "images" / "scene_cam_00_geometry_hdf5" / f"frame.{view:04}.depth_meters.hdf5"
            save_hdf5(geometry, np.where(depth > 0, distance, np.nan).astype(np.float16))
            preview = place / "images" / "scene_cam_00_final_preview" / f"frame.{view:04}.tonemap.jpg"
            save_jpeg(preview, scene.images[view])
        uv_from_pixel = np.array([[2 / width, 0, -1], [0, -2 / height, 1], [0, 0, 1]])
        cam_from_pixel = turn[:3, :3].T @ np.linalg.inv(scene.intrinsics[0])
        matrix = OPENGL[:3, :3] @ cam_from_pixel @ np.linalg.inv(uv_from_pixel)
        lines.append(",".join([place.name, f"{height}.0", f"{width}.0", *(repr(float(x)) for x in matrix.ravel())]))
    (root / "metadata_camera_parameters.csv").write_text("\n".join(lines) + "\n")


def pixels(height: int, width: int) -> np.ndarray:
    """Homogeneous centres [3, H * W]."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x.ravel(), y.ravel(), np.ones(height * width)])


def save_hdf5(path: Path, values: np.ndarray) -> None:
    """One array, called "dataset", as all files of the set; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = values
