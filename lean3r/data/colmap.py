"""Cameras of a COLMAP model (text or binary), as published with photo sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lean3r.cameras import open_colmap
from lean3r.errors import InputError


@dataclass(frozen=True)
class ColmapCameras:
    """Posed pictures in natural order of the file: names; cam_from_world [S, 4, 4]; intrinsics [S, 3, 3] in pixels
    of the stated size (the pinhole part: distortion is left out); size [S, 2] (width, height); mean_depth,
    the mean z-depth of all observed points, in world units (NaN without points)."""

    names: tuple[str, ...]
    cam_from_world: np.ndarray
    intrinsics: np.ndarray
    size: np.ndarray
    mean_depth: float


def read_cameras(folder: str | Path) -> ColmapCameras:
    """Read a folder with cameras, images and points3D files; InputError when there is no readable model."""
    model = open_colmap(folder)
    names, poses, intrinsics, sizes, depths = [], [], [], [], []
    for image_id in sorted(model.images):
        image = model.images[image_id]
        if not image.has_pose:
            continue
        camera = model.cameras[image.camera_id]
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        names.append(image.name)
        poses.append(pose)
        intrinsics.append(camera.calibration_matrix())
        sizes.append((camera.width, camera.height))
        points = [model.points3D[p.point3D_id].xyz for p in image.points2D if p.has_point3D()]
        if points:
            depths.append(np.stack(points) @ pose[2, :3] + pose[2, 3])
    if not names:
        raise InputError(f"{folder} holds no posed picture.")
    mean = float(np.concatenate(depths).mean()) if depths else float("nan")
    return ColmapCameras(tuple(names), np.stack(poses), np.stack(intrinsics), np.array(sizes), mean)
