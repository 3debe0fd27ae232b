"""The camera and pair files of MVSNet, which DTU and BlendedMVS share.

Pixel centres are integers in the files (the top-left one is (0, 0)); the intrinsics returned here are relative to the
corner, 0.5 more.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import read_text
from lean3r.data.sets.scenes import FolderSet, Frame, from_integer_centres
from lean3r.errors import InputError

PLANES = 192  # of a range that does not say how many it has


@dataclass(frozen=True, eq=False, kw_only=True)
class NumberedFrame(Frame):
    """A view with its number in the camera and pair files."""

    number: int


class MvsnetSet(FolderSet[NumberedFrame]):
    """A FolderSet with pair files, which have scores of pairs of views."""

    @abstractmethod
    def pairs(self, scene: str) -> Path:
        """Path of the pair.txt of a scene; the file may be missing."""

    def covisibility(self, scene: int) -> np.ndarray | None:
        """Scores [V, V] of the pair file; None if it is missing."""
        pairs = self.pairs(self.ids[scene])
        if not pairs.is_file():
            return None
        numbers = [frame.number for frame in self._frames_of(scene)]
        return read_pairs(pairs, max(numbers) + 1)[np.ix_(numbers, numbers)]


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics [3, 3] and cam_from_world [4, 4] of a *_cam.txt: "extrinsic", 4 rows, "intrinsic", 3 rows, range."""
    words = read_text(path).split()
    try:
        pose_at, k_at = words.index("extrinsic") + 1, words.index("intrinsic") + 1
        pose = np.array([float(x) for x in words[pose_at : pose_at + 16]]).reshape(4, 4)
        k = np.array([float(x) for x in words[k_at : k_at + 9]]).reshape(3, 3)
    except ValueError as error:
        raise InputError(
            f"{path} is not a camera file of MVSNet ({error}); expected extrinsic and intrinsic"
        ) from error
    return from_integer_centres(k), pose


def read_range(path: Path, as_released: bool = False) -> tuple[float, float] | None:
    """(nearest, farthest) depth at the end of a *_cam.txt: nearest and interval, perhaps the number of planes, perhaps
    the farthest; None if it has no range. `as_released`: of four numbers the third, which is the number of planes, as
    in Lite3R's release."""
    words = read_text(path).split()
    try:
        numbers = [float(word) for word in words[words.index("intrinsic") + 10 :]]
    except ValueError as error:
        raise InputError(f"{path} is not a camera file of MVSNet ({error}); expected intrinsic and a range") from error
    if len(numbers) < 2:
        return None
    near, far = numbers[0], numbers[0] + PLANES * numbers[1]
    if len(numbers) >= 4:
        far = numbers[2 if as_released else 3]
    return (near, far) if 0 < far < math.inf else None


def read_pairs(path: Path, views: int) -> np.ndarray:
    """Scores [V, V] of a pair.txt: number of views, then for each its number and a line "count (number score)..."."""
    score = np.zeros((views, views), np.float32)
    lines = [line.split() for line in read_text(path).splitlines()[1:] if line.strip()]
    try:
        for number, row in zip(lines[::2], lines[1::2], strict=True):
            one = int(number[0])
            for other, value in zip(row[1::2], row[2::2], strict=True):
                if one < views and int(other) < views:
                    score[one, int(other)] = float(value)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is not a pair file of MVSNet ({error})") from error
    return np.maximum(score, score.T)
