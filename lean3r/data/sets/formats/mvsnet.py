"""The camera and pair files of MVSNet, which DTU and BlendedMVS share.

Their pixels have integer centres (the top-left one at (0, 0)); what is returned counts from the corner, 0.5 more.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lean3r.data.sets.formats.files import read_text
from lean3r.data.sets.scenes import FolderSet, Frame, from_integer_centres
from lean3r.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class NumberedFrame(Frame):
    """A view by the number that the files of cameras and pairs call it."""

    number: int


class MvsnetSet(FolderSet[NumberedFrame]):
    """A FolderSet with a file of pairs, which says how well each view fits the others."""

    @abstractmethod
    def pairs(self, scene: str) -> Path:
        """The pair.txt of a scene, be it there or not."""

    def covisibility(self, scene: int) -> np.ndarray | None:
        """[V, V] scores of the file of pairs."""
        pairs = self.pairs(self.ids[scene])
        if not pairs.is_file():
            return None
        numbers = [frame.number for frame in self._cached(scene)]
        return read_pairs(pairs, max(numbers) + 1)[np.ix_(numbers, numbers)]


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(intrinsics [3, 3], cam_from_world [4, 4]) of a *_cam.txt: "extrinsic", 4 rows, "intrinsic", 3 rows, range."""
    words = read_text(path).split()
    try:
        pose_at, k_at = words.index("extrinsic") + 1, words.index("intrinsic") + 1
        pose = np.array([float(x) for x in words[pose_at : pose_at + 16]]).reshape(4, 4)
        k = np.array([float(x) for x in words[k_at : k_at + 9]]).reshape(3, 3)
    except ValueError as error:
        raise InputError(f"{path} is no camera file of MVSNet ({error}); expected extrinsic, intrinsic") from error
    return from_integer_centres(k), pose


def read_pairs(path: Path, views: int) -> np.ndarray:
    """[V, V] scores of a pair.txt: how many views, then for each its number and a line "count (number score)..."."""
    score = np.zeros((views, views), np.float32)
    lines = [line.split() for line in read_text(path).splitlines()[1:] if line.strip()]
    try:
        for number, row in zip(lines[::2], lines[1::2], strict=True):
            one = int(number[0])
            for other, value in zip(row[1::2], row[2::2], strict=True):
                if one < views and int(other) < views:
                    score[one, int(other)] = float(value)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is no pair file of MVSNet ({error})") from error
    return np.maximum(score, score.T)
