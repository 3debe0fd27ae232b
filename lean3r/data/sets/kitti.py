"""KITTI odometry: drives of a car through a town, with poses from GPS and inertial sensors; no depth.

poses/NN.txt has world_from_cam of camera 0, the left grey one, as 3 x 4 rows; the pictures here are those of camera 2,
the left colour one. Its projection P2 = K [I | t] in calib.txt is that of points in the axes of camera 0, so that t is
the small shift between the two (devkit_odometry/readme.txt). Centres of pixels are integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import image_size, naming, read_text
from lean3r.data.sets.scenes import Camera, FolderSet, Frame, folders, from_integer_centres, invert
from lean3r.errors import InputError

LAST_WITH_POSES = 10  # the poses of sequences 11 to 21 are not public


class Kitti(FolderSet[Frame]):
    """One scene per sequence with public poses ("sequences/00"), in metres, with the times of its frames."""

    name = "kitti"
    title = "KITTI odometry"
    licence = "CC BY-NC-SA 3.0 as far as known; see the set's page: KITTI, Karlsruhe Institute of Technology"
    source = "https://www.cvlibs.net/datasets/kitti/eval_odometry.php: data_odometry_{color,calib,poses}.zip"
    layout = (
        "sequences/NN/ with image_2/*.png, calib.txt, times.txt; poses/NN.txt (the folder dataset/ of the archives)"
    )
    parts = ("image_2", "calib.txt", "times.txt")
    is_metric = True
    has_depth = False
    is_ordered = True

    @classmethod
    def places(cls, root: Path) -> list[Path]:
        """Numbered sequences, without those whose poses are not public."""
        numbered = [folder for folder in folders(root / "sequences") if folder.name.isdigit()]
        public = [folder for folder in numbered if int(folder.name) <= LAST_WITH_POSES or _poses(folder).is_file()]
        return cls.with_any_part(public)

    @classmethod
    def missing(cls, place: Path) -> list[str]:
        """Sentences for missing parts of a sequence, its poses among them."""
        return super().missing(place) + ([] if _poses(place).is_file() else [f"{_poses(place)} is missing"])

    @classmethod
    def incomplete(cls, place: Path) -> list[str]:
        """Sentences for pictures that are missing, or poses that are not finite."""
        try:
            poses, times = read_rows(_poses(place), 12), read_rows(place / "times.txt", 1)
        except InputError as error:
            return [str(error)]
        problems, there = [], _numbers(place)
        absent = [number for number in range(len(poses)) if number not in there]
        lost = int((~np.isfinite(poses).all(1)).sum())
        if len(times) != len(poses):
            problems.append(f"{_poses(place)} has {len(poses)} poses for {len(times)} times")
        if lost:
            problems.append(f"{lost} of {len(poses)} poses of {_poses(place)} are not finite")
        if absent:
            where = place / "image_2"
            problems.append(f"{len(absent)} of {len(poses)} pictures of {where} are missing, e.g. {absent[0]:06}.png")
        return problems

    def frames(self, scene: str) -> Sequence[Frame]:
        """The pictures with a finite pose, in order."""
        folder = self.root / scene
        k, cam_from_0 = read_calib(folder / "calib.txt", "P2")
        poses, times = read_rows(_poses(folder), 12).reshape(-1, 3, 4), read_rows(folder / "times.txt", 1)[:, 0]
        images, frames, size = _numbers(folder), [], None
        for number in sorted(images):
            if number < min(len(poses), len(times)) and np.isfinite(poses[number]).all():
                size = size or image_size(images[number])
                world_from_0 = np.vstack([poses[number], [0.0, 0.0, 0.0, 1.0]])
                camera = Camera(k, cam_from_0 @ invert(world_from_0), *size)
                frames.append(Frame(images[number], camera, time_s=float(times[number])))
        if not frames:
            raise InputError(f"{folder / 'image_2'} has no picture with a pose; expected {self.layout}")
        return frames


def read_calib(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics [3, 3] and cam_from_0 [4, 4] of the projection `name`, such as P2, of a calib.txt."""
    with naming(path):
        lines = (line.partition(":") for line in read_text(path).splitlines())
        values = {key.strip(): numbers for key, _, numbers in lines}
        projection = np.array([float(word) for word in values[name].split()]).reshape(3, 4)
        cam_from_0 = np.eye(4)
        cam_from_0[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    return from_integer_centres(projection[:, :3]), cam_from_0


def read_rows(path: Path, columns: int) -> np.ndarray:
    """[N, columns] float64 of the lines of a text file."""
    with naming(path):
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
        return np.array([[float(word) for word in line] for line in lines]).reshape(len(lines), columns)


def _poses(sequence: Path) -> Path:
    return sequence.parent.parent / "poses" / f"{sequence.name}.txt"


def _numbers(sequence: Path) -> dict[int, Path]:
    """Pictures of a sequence by their numbers."""
    return {int(path.stem): path for path in (sequence / "image_2").glob("*.png") if path.stem.isdigit()}
