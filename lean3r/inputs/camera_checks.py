"""What is wrong with a given camera; `name` is its picture's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lean3r.errors import InputError
from lean3r.geometry.lens import LENSES

if TYPE_CHECKING:
    from lean3r.types import Lens

EXACT = 1e-12  # rounding of a rotation in double precision


def no_pinhole(name: str, kind: str) -> InputError:
    """The error for a camera model that has no pinhole part."""
    return InputError(
        f"the camera model of {name} is {kind}, which is not supported. "
        "Undistort the pictures first (`colmap image_undistorter`), and give the new ones with their cameras."
    )


def check_lens(lens: Lens, name: str) -> None:
    """InputError if the model of a lens is not supported, or its parameters are not those of the model."""
    if lens.model not in LENSES:
        raise no_pinhole(name, lens.model)
    focals, more = LENSES[lens.model]
    if len(lens.params) != focals + 2 + more or not all(map(math.isfinite, lens.params)):
        raise InputError(
            f"the lens of {name} has the parameters {lens.params}; {lens.model} takes {focals + 2 + more} finite ones"
        )


def check_intrinsics(matrix: np.ndarray, name: str) -> None:
    """InputError if a matrix is not a pinhole [3, 3]."""
    zeros = matrix[[0, 1, 2, 2], [1, 0, 0, 1]] if matrix.shape == (3, 3) else np.ones(1)
    sound = not zeros.any() and bool(np.isfinite(matrix).all()) and matrix[2, 2] == 1
    if not sound or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise InputError(
            f"the intrinsics of {name} are not those of a pinhole; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
            "pixels, with fx and fy positive"
        )


def check_pose(matrix: np.ndarray, name: str) -> None:
    """InputError if a matrix is not a rotation and a translation [4, 4], to about three decimals."""
    if matrix.shape == (4, 4) and bool(np.isfinite(matrix).all()) and np.allclose(matrix[3], [0, 0, 0, 1]):
        rotation = matrix[:3, :3]
        if np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0:
            return
    raise InputError(f"the pose of {name} is not a rotation and translation; expected a rigid 4 x 4 matrix")


def rigid(pose: np.ndarray, name: str) -> np.ndarray:
    """A pose [4, 4] whose rotation may be rounded, with an exact one around the same centre: far from the origin, as in
    map coordinates, rounding moves the camera by metres, differently in each formula. InputError if it is no pose."""
    check_pose(pose, name)
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() < EXACT:
        return pose
    left, _, right = np.linalg.svd(rotation)
    exact = np.eye(4)
    exact[:3, :3] = left @ right
    exact[:3, 3] = exact[:3, :3] @ np.linalg.solve(rotation, pose[:3, 3])
    return exact
