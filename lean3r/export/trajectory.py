"""trajectory_tum.txt, trajectory_kitti.txt and times.txt: poses over time, as programs for odometry read them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.export.names import safe_stems
from lean3r.export.options import ExportOptions
from lean3r.inputs.trajectory import OF_VIEWS, stamp_of
from lean3r.types import Reconstruction

TUM, KITTI, TIMES = "trajectory_tum.txt", "trajectory_kitti.txt", "times.txt"
HEAD = "# time_s tx ty tz qx qy qz qw: camera to world\n"


def write(reconstruction: Reconstruction, directory: Path, options: ExportOptions) -> list[Path]:
    """Write the three files, a line a view in the order of time, without uncertain views; of several videos three files
    each, trajectory_tum_CLIP.txt and so on, since each has a time of its own.

    Times are those of video frames, or those in the names of the pictures (1305031102.175304.png); without any, or if
    two are equal, they are the numbers of the views, and the head of the TUM file says so.
    """
    scene, numbers = reconstruction.of_certain(), np.flatnonzero(reconstruction.is_certain)
    times = [source.timestamp_s for source in scene.sources]
    groups: dict[str, list[int]] = {}
    for view, name in enumerate(scene.names):
        groups.setdefault(_video(name) if None not in times else "", []).append(view)
    if None in times:
        times = [stamp_of(name) for name in scene.names]
    paths = []
    for ending, views in zip(_endings(list(groups)), groups.values(), strict=True):
        known, head = [times[view] for view in views], HEAD
        if None in known or len(set(known)) < len(known):
            known, head = [float(numbers[view]) for view in views], HEAD + f"# {OF_VIEWS}, from 0\n"
        ordered = sorted(zip(np.array(known, np.float64).tolist(), views, strict=True))
        rows = [lines(time_s, scene.cam_from_world[view]) for time_s, view in ordered]
        for name, first, column in zip((TUM, KITTI, TIMES), (head, "", ""), zip(*rows, strict=True), strict=True):
            paths.append(directory / name.replace(".txt", f"{ending}.txt"))
            paths[-1].write_text(first + "".join(column), encoding="utf-8")
    return paths


def _video(name: str) -> str:
    """The video of a frame by the name of its view, CLIP_000123.png."""
    match = re.fullmatch(r"(.*)_\d{6,}(~\d+)?\.png", name, re.DOTALL)
    return match[1] if match else ""


def _endings(videos: list[str]) -> list[str]:
    """What tells the files of several videos apart."""
    return [f"_{stem}" for stem in safe_stems(f"{video}.mp4" for video in videos)] if len(videos) > 1 else [""]


def lines(time_s: float, cam_from_world: np.ndarray) -> tuple[str, str, str]:
    """The lines of one pose [4, 4] in TUM's file, in KITTI's, and in that of the times."""
    world = np.linalg.inv(cam_from_world)
    quaternion = pycolmap.Rotation3d(np.ascontiguousarray(world[:3, :3])).quat  # x y z w
    stamp = f"{time_s:.9f}".rstrip("0").rstrip(".")
    tum = " ".join([stamp, *(f"{value:.12g}" for value in (*world[:3, 3], *quaternion))])
    return f"{tum}\n", _row(world[:3].ravel()), f"{stamp}\n"


def _row(values: Iterable[float]) -> str:
    return " ".join(f"{value:.12g}" for value in values) + "\n"
