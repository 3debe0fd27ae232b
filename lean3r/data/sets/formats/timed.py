"""The layout of the TUM RGB-D benchmark: pictures, depth maps and poses, each in a list with times of its own.

Two lists are matched as the benchmark's associate.py matches them. Lenses are OpenCV's (k1 k2 p1 p2 k3), for pictures
of 640 x 480 pixels whose centre of the first pixel is (0, 0); depth is registered to the pictures, in 1/5000 m.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lean3r.data.sets.formats.files import image_size, inside, naming, read_depth_png, read_text
from lean3r.data.sets.formats.lens import LensFrame, LensSet, pinhole_of
from lean3r.data.sets.scenes import Camera, folders, invert
from lean3r.errors import InputError
from lean3r.inputs.trajectory import poses_of

if TYPE_CHECKING:
    from lean3r.colmap_library import pycolmap

PER_METRE = 5000.0
APART_S = 0.02  # entries of two lists further apart are not matched; associate.py's default, which papers use
_SIZE = (640, 480)


class TimedSet(LensSet[LensFrame]):
    """Walks of a camera with a depth sensor. A view is a picture with a pose at most APART_S away; its depth map too is
    the nearest within APART_S, and it has no depth without one. Poses that are not finite are left out.

    `folder_name`: what the names of its folders look like; `lens(scene)`: fx fy cx cy k1 k2 p1 p2 k3;
    `world_from_cam(poses)`: of poses [N, 4, 4] of the file. With undistort=False, pictures and maps stay as they are,
    and cameras are pinholes that ignore the distortion.
    """

    folder_name: ClassVar[re.Pattern[str]]
    parts = ("groundtruth.txt", "rgb.txt", "depth.txt", "rgb", "depth")
    is_metric = True
    is_ordered = True

    def __init__(self, root: str | Path, undistort: bool = True, scenes: Sequence[str] | None = None) -> None:
        self.undistort = undistort
        super().__init__(root, scenes)

    @classmethod
    @abstractmethod
    def lens(cls, scene: str) -> tuple[float, ...]:
        """fx fy cx cy k1 k2 p1 p2 k3 of a scene's pictures."""

    @classmethod
    def world_from_cam(cls, poses: np.ndarray) -> np.ndarray:
        """Poses [N, 4, 4] of the camera, in OpenCV's axes, from those of the file."""
        return poses

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Folders named like those of the set, with at least one part."""
        return cls.with_any_part(folder for folder in folders(root) if cls.folder_name.match(folder.name))

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for listed files that are missing, for poses that are not finite, and for fewer than two views."""
        problems = []
        try:
            times, names = read_list(place / "rgb.txt")
            for files in (names, read_list(place / "depth.txt")[1]):
                absent = [name for name in files if not inside(place, name).is_file()]
                if absent:
                    problems.append(f"{len(absent)} of {len(files)} files of {place} are missing, e.g. {absent[0]}")
            pose_times, _, lost = read_poses(place / "groundtruth.txt")
            if lost:
                problems.append(f"{lost} poses of {place / 'groundtruth.txt'} are not finite or no rotations")
            posed = int((associate(times, pose_times, APART_S) >= 0).sum())
            if posed < 2:
                problems.append(f"{posed} pictures of {place} have a pose; a scene needs two")
        except InputError as error:
            problems.append(str(error))
        return problems

    def frames(self, scene: str) -> Sequence[LensFrame]:
        """The pictures with a pose, in the order of their times."""
        folder = self.root / scene
        times, names = read_list(folder / "rgb.txt")
        map_times, maps = read_list(folder / "depth.txt")
        pose_times, poses, _ = read_poses(folder / "groundtruth.txt")
        poses = self.world_from_cam(poses)
        pose_of, map_of = associate(times, pose_times, APART_S), associate(times, map_times, APART_S)
        rows = []
        for time, name, pose, own in zip(times, names, pose_of, map_of, strict=True):
            image, depth = inside(folder, name), inside(folder, maps[own]) if own >= 0 else None
            if pose >= 0 and image.is_file():
                rows.append((image, poses[pose], depth if depth and depth.is_file() else None, float(time)))
        if not rows:
            raise InputError(f"no picture of {folder} has a pose within {APART_S} s; expected {self.layout}")
        return self.make_frames(scene, rows)

    def make_frames(self, scene: str, rows: Sequence[tuple[Path, np.ndarray, Path | None, float]]) -> list[LensFrame]:
        """Frames of pictures, world_from_cam [4, 4], depth maps and times; all have the size of the first picture."""
        lens = _lens(self.lens(scene), self.undistort)
        lens.rescale(*image_size(rows[0][0]))
        plain = pinhole_of(lens)
        k = np.asarray(plain.calibration_matrix())
        return [
            LensFrame(image, Camera(k, invert(pose), plain.width, plain.height), depth, time_s, lens=lens)
            for image, pose, depth, time_s in rows
        ]

    def read_depth(self, frame: LensFrame) -> np.ndarray:
        """Depth in metres, 0 where the sensor has none."""
        assert frame.depth is not None
        return read_depth_png(frame.depth, PER_METRE)


def read_list(path: Path) -> tuple[np.ndarray, list[str]]:
    """Times [N] in seconds, ascending, and file names of lines `time name`; # starts a comment."""
    with naming(path):
        lines = [line.partition("#")[0].split() for line in read_text(path).splitlines()]
        rows = sorted((float(line[0]), line[1]) for line in lines if line)
    times = np.array([time for time, _ in rows])
    if not rows or not np.isfinite(times).all():
        raise InputError(f"{path} has no line, or a time that is not finite; expected lines `time file`")
    return times, [name for _, name in rows]


def read_poses(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Times [N] in seconds, ascending, poses [N, 4, 4] of lines `time tx ty tz qx qy qz qw`, and the number of lines
    left out because they are not finite or have no quaternion of length 1; # starts a comment."""
    with naming(path):
        lines = [line.partition("#")[0].split() for line in read_text(path).splitlines()]
        rows = np.array([[float(word) for word in line] for line in lines if line]).reshape(-1, 8)
    valid = np.isfinite(rows).all(1) & (np.abs(np.linalg.norm(rows[:, 4:], axis=1) - 1) < 0.01)
    if not valid.any():
        raise InputError(f"{path} has no valid pose; expected lines `time tx ty tz qx qy qz qw`")
    known = rows[valid]
    known = known[np.argsort(known[:, 0], kind="stable")]
    return known[:, 0], poses_of(known[:, 1:]), len(rows) - len(known)


def associate(times_s: np.ndarray, others_s: np.ndarray, apart_s: float) -> np.ndarray:
    """[N] int64: for each of N ascending times the index of its match in others, ascending, too; -1 without one.

    The nearest pairs first, each entry once, closer than `apart_s`: as associate.py of the TUM RGB-D benchmark does.
    """
    low, high = (np.searchsorted(others_s, times_s + side) for side in (-apart_s, apart_s))
    near = [(abs(times_s[i] - others_s[j]), i, j) for i in range(len(times_s)) for j in range(low[i], high[i])]
    found, used = np.full(len(times_s), -1), set[int]()
    for gap, i, j in sorted(near):
        if gap < apart_s and found[i] < 0 and j not in used:
            found[i] = j
            used.add(j)
    return found


def _lens(params: tuple[float, ...], with_distortion: bool) -> pycolmap.Camera:
    from lean3r.colmap_library import pycolmap

    fx, fy, cx, cy, *distortion = params
    plain = [fx, fy, cx + 0.5, cy + 0.5]
    if with_distortion and any(distortion):
        return pycolmap.Camera(
            model="FULL_OPENCV", width=_SIZE[0], height=_SIZE[1], params=[*plain, *distortion, 0.0, 0.0, 0.0]
        )
    return pycolmap.Camera(model="PINHOLE", width=_SIZE[0], height=_SIZE[1], params=plain)
