"""Text files of numbers: trajectories of TUM, KITTI and EuRoC, intrinsics, and times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lean3r.data.sets.formats.files import naming, read_array, read_text
from lean3r.errors import InputError
from lean3r.eval.predicted.base import Predicted
from lean3r.geometry.rotation import matrix_from_quaternion

NANOSECONDS = 1e9
LENGTH_TOLERANCE = 0.01  # of a unit quaternion, for files with few digits
ROWS = (
    "8 numbers a line (TUM: time tx ty tz qx qy qz qw), 12 (KITTI: a 3 x 4 matrix), or at least 8 with commas (EuRoC: "
    "time in ns, x, y, z, qw, qx, qy, qz, ...)"
)


def form_of(path: Path) -> str | None:
    """The name in READERS of the form of a text file, by its first line of numbers; None for any other text."""
    with naming(path), open(path, encoding="utf-8") as file:
        line = next((line for line in file if line.partition("#")[0].strip()), "").partition("#")[0]
    words = line.replace(",", " ").split()
    try:
        _ = [float(word) for word in words]
    except ValueError:
        return None
    if "," in line and len(words) >= 8:
        return "euroc"
    return {8: "tum", 12: "kitti"}.get(len(words))


def read_tum(path: Path) -> Predicted:
    """Lines `time tx ty tz qx qy qz qw`, the camera in the world, in seconds; NaN for a picture without a pose."""
    rows = _numbers(path, 8)
    poses = _world_from_cam(path, rows[:, 1:4], rows[:, [7, 4, 5, 6]])
    return Predicted(path=path, times_s=rows[:, 0], cam_from_world=_inverse(poses))


def read_euroc(path: Path) -> Predicted:
    """Lines `time in ns, x, y, z, qw, qx, qy, qz` and perhaps more, taken as the camera in the world."""
    rows = _numbers(path)[:, :8]
    if rows[0, 0] < 1e12:
        raise InputError(f"{path} has the time {rows[0, 0]:g} in its first line; expected nanoseconds, as in EuRoC")
    poses = _world_from_cam(path, rows[:, 1:4], rows[:, 4:])
    return Predicted(path=path, times_s=rows[:, 0] / NANOSECONDS, cam_from_world=_inverse(poses))


def read_kitti(path: Path) -> Predicted:
    """Lines of 12 numbers, the upper three rows of world_from_cam; NaN for a picture without a pose. A times.txt beside
    it has one time in seconds a line."""
    rows, times = _numbers(path, 12), path.with_name("times.txt")
    times_s = _numbers(times, 1)[:, 0] if times.is_file() else None
    if times_s is not None and len(times_s) != len(rows):
        raise InputError(f"{times} has {len(times_s)} lines; expected {len(rows)}, like {path.name}")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    return Predicted(path=path, times_s=times_s, cam_from_world=_inverse(poses))


def read_intrinsics(path: Path) -> Predicted:
    """K [3, 3] for all pictures, or S of them, from a .npy or a text file of 3 x 3 (4 x 4) numbers or 9 a line."""
    if path.suffix == ".npy":
        with naming(path), open(path, "rb") as file:
            values = np.asarray(read_array(file), np.float64)
    else:
        values = _numbers(path)
        values = values.reshape(-1, 3, 3) if values.shape[1] == 9 else values
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1:] not in ((3, 3), (4, 4)):
        raise InputError(f"{path} has the shape {values.shape}; expected one 3 x 3 matrix, or one for each picture")
    return Predicted(path=path, intrinsics=values[:, :3, :3])


def _numbers(path: Path, columns: int | None = None) -> np.ndarray:
    """The rows of a text file; InputError that names the first line of another length."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not (words := line.partition("#")[0].replace(",", " ").split()):
            continue
        with naming(path):
            rows.append([float(word) for word in words])
        columns = columns or len(words)
        if len(words) != columns:
            raise InputError(f"line {number} of {path} has {len(words)} numbers; expected {columns}, like the others")
    if not rows:
        raise InputError(f"{path} has no numbers; expected some on each line")
    return np.array(rows)


def _world_from_cam(path: Path, position: np.ndarray, quaternion_wxyz: np.ndarray) -> np.ndarray:
    length = np.asarray(np.linalg.norm(quaternion_wxyz, axis=1))
    odd = np.flatnonzero(abs(length - 1) > LENGTH_TOLERANCE)  # never a NaN: that is a picture without a pose
    if len(odd):
        raise InputError(
            f"pose {odd[0]} of {path} has a quaternion of length {length[odd[0]]:g}; expected 1, and NaN without a pose"
        )
    poses = np.tile(np.eye(4), (len(position), 1, 1))
    poses[:, :3, :3] = matrix_from_quaternion(torch.from_numpy(quaternion_wxyz)).numpy()
    poses[:, :3, 3] = position
    return poses


def _inverse(poses: np.ndarray) -> np.ndarray:
    """Inverse of matrices [S, 4, 4]; NaN for those that have none."""
    finite = np.isfinite(poses.sum((1, 2)))
    has_inverse = finite & (np.linalg.matrix_rank(np.where(np.isfinite(poses), poses, 0)) == 4)
    inverse = np.full_like(poses, np.nan)
    inverse[has_inverse] = np.linalg.inv(poses[has_inverse])
    return inverse
