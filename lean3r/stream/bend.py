"""Windows that bend: cameras that lie otherwise than when their window was made, each by an amount of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lean3r.geometry.rotation import so3_exp, so3_log
from lean3r.stream import sim3


@dataclass(frozen=True, eq=False)
class Bend:
    """In a window's world, the cameras of frames `at` [K], ascending, whose centres were `centre` [K, 3], moved by
    `shift` [K, 3] and turned about themselves by `turn` [K, 3] (axis times angle in radians); frames in between by what
    lies between, others as the nearest one."""

    at: np.ndarray
    centre: np.ndarray
    shift: np.ndarray
    turn: np.ndarray

    @classmethod
    def between(cls, at: Sequence[int], before: np.ndarray, now: np.ndarray) -> Bend:
        """That takes cameras [K, 4, 4] from where they were to where they are now."""
        turn = now[:, :3, :3].transpose(0, 2, 1) @ before[:, :3, :3]
        centre = sim3.centres(before)
        return cls(np.array(at, float), centre, sim3.centres(now) - centre, so3_log(torch.from_numpy(turn)).numpy())

    def move(self, index: int, cam_from_world: np.ndarray) -> np.ndarray:
        """The camera [4, 4] of a frame, moved."""
        return sim3.move_poses(self._about(index, sim3.centres(cam_from_world)), cam_from_world)

    def back(self, index: int, cam_from_world: np.ndarray) -> np.ndarray:
        """The camera [4, 4] of a frame that `move` takes to this one."""
        centre = sim3.centres(cam_from_world) - self._of(index, self.shift)
        return sim3.move_poses(np.linalg.inv(self._about(index, centre)), cam_from_world)

    def matrix(self, keyframe: int) -> np.ndarray:
        """How the points move [4, 4] that a keyframe has seen."""
        return self._about(keyframe, self._of(keyframe, self.centre))

    def _about(self, index: int, centre: np.ndarray) -> np.ndarray:
        rotation = so3_exp(torch.from_numpy(self._of(index, self.turn))).numpy()
        return sim3.make(1.0, rotation, centre + self._of(index, self.shift) - rotation @ centre)

    def _of(self, index: int, values: np.ndarray) -> np.ndarray:
        return np.array([np.interp(index, self.at, column) for column in values.T])

    def state(self) -> dict[str, Any]:
        """As arrays."""
        return dict(vars(self))

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Bend:
        """From `state`."""
        return cls(**state)


def bent(bends: Mapping[int, Bend], window: int, index: int, cam_from_world: np.ndarray) -> np.ndarray:
    """The camera [4, 4] of a frame in its window, as that is bent."""
    bend = bends.get(window)
    return cam_from_world if bend is None else bend.move(index, cam_from_world)
