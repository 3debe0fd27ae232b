"""Cameras in COLMAP models and JSON files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lean3r.data.sets.formats.files import naming
from lean3r.errors import InputError
from lean3r.eval.predicted.base import Predicted
from lean3r.inputs.cameras import open_colmap, read_given

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap


def read_colmap(folder: Path) -> Predicted:
    """Poses, the pinhole parts of the cameras, and the points of a COLMAP model, text or binary, with rigs or not."""
    model = open_colmap(folder)
    images = [model.images[i] for i in sorted(model.images)]
    if not images:
        raise InputError(f"{folder} has no pictures; expected a model with the poses of some")
    with naming(folder):
        return Predicted(
            path=folder,
            names=tuple(image.name for image in images),
            cam_from_world=_stacked([_pose(image) for image in images], 4),
            intrinsics=np.stack([model.cameras[image.camera_id].calibration_matrix() for image in images]),
            cloud=np.array([point.xyz for point in model.points3D.values()]) if model.points3D else None,
            lacks_failures=True,
        )


def read_json(path: Path) -> Predicted:
    """lean3r's cameras.json, nerfstudio's transforms.json, or fx, fy, cx, cy for all pictures."""
    given = read_given(path)
    if given.shared is not None:
        assert given.shared.intrinsics is not None
        return Predicted(path=path, intrinsics=given.shared.intrinsics[None])
    poses = [camera.cam_from_world for camera in given.cameras]
    intrinsics = [camera.intrinsics for camera in given.cameras]
    return Predicted(
        path=path,
        names=tuple(camera.name for camera in given.cameras),
        cam_from_world=_stacked(poses, 4),
        intrinsics=_stacked(intrinsics, 3),
    )


def _pose(image: pycolmap.Image) -> np.ndarray | None:
    return np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]) if image.has_pose else None


def _stacked(matrices: Sequence[np.ndarray | None], side: int) -> np.ndarray | None:
    """[S, side, side], NaN for a picture without a matrix; None if none has one."""
    none = np.full((side, side), np.nan)
    has_any = any(matrix is not None for matrix in matrices)
    return np.stack([none if matrix is None else matrix for matrix in matrices]) if has_any else None
