"""trajectory_tum.txt, trajectory_kitti.txt and times.txt: poses over time, as programs for odometry read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.export.options import ExportOptions
from lean3r.inputs.trajectory import OF_VIEWS, stamp_of
from lean3r.types import Reconstruction

TUM, KITTI, TIMES = "trajectory_tum.txt", "trajectory_kitti.txt", "times.txt"
HEAD = "# time_s tx ty tz qx qy qz qw: camera to world\n"


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write the three files, a line a view in the order of time, without uncertain views.

    Times are those of video frames, or those in the names of the pictures (1305031102.175304.png); without any, they
    are the numbers of the views, and the head of the TUM file says so.
    """
    scene = reconstruction.of_certain()
    times = [source.timestamp_s for source in scene.sources]
    head = HEAD
    if None in times:
        times = [stamp_of(name) for name in scene.names]
    if None in times:
        numbers = np.flatnonzero(reconstruction.is_certain)
        times, head = [float(number) for number in numbers], HEAD + f"# {OF_VIEWS}, from 0\n"
    known = np.array(times, np.float64)
    order = np.argsort(known, kind="stable")
    rows = [lines(float(known[view]), scene.cam_from_world[view]) for view in order]
    paths = [directory / name for name in (TUM, KITTI, TIMES)]
    for path, first, column in zip(paths, (head, "", ""), zip(*rows, strict=True), strict=True):
        path.write_text(first + "".join(column))
    return paths


def lines(time_s: float, cam_from_world: np.ndarray) -> tuple[str, str, str]:
    """The lines of one pose [4, 4] in TUM's file, in KITTI's, and in that of the times."""
    world = np.linalg.inv(cam_from_world)
    quaternion = pycolmap.Rotation3d(np.ascontiguousarray(world[:3, :3])).quat  # x y z w
    stamp = f"{time_s:.9f}".rstrip("0").rstrip(".")
    tum = " ".join([stamp, *(f"{value:.9g}" for value in (*world[:3, 3], *quaternion))])
    return f"{tum}\n", _row(world[:3].ravel()), f"{stamp}\n"


def _row(values: Iterable[float]) -> str:
    return " ".join(f"{value:.9g}" for value in values) + "\n"
