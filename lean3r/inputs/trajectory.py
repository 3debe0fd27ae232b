"""Poses over time: trajectories in TUM's format, and how they are matched to pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from lean3r.errors import InputError
from lean3r.geometry.rotation import matrix_from_quaternion, so3_exp, so3_log

logger = logging.getLogger("lean3r")

SAME_S = 0.005  # a pose this near in time is taken as the picture's
GAP_S = 0.5  # poses further apart are not interpolated
OF_VIEWS = "times are the numbers of the views"  # in the head of a trajectory of pictures without times
UNITS_S = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))  # Unix times above are in nano-, micro- and milliseconds


@dataclass(frozen=True, eq=False)
class Trajectory:
    """N poses: times_s [N], ascending; world_from_cam [N, 4, 4]; lines [N], their line numbers in the file. `of_views`
    says that the times are numbers of pictures in their order, from 0."""

    times_s: np.ndarray
    world_from_cam: np.ndarray
    lines: np.ndarray
    of_views: bool = False

    def match(self, names: Sequence[str], times_s: Sequence[float | None], origin: str) -> list[np.ndarray | None]:
        """cam_from_world [4, 4] of each picture, None where there is none.

        Video frames are matched by their times in seconds, with interpolation between two poses. Pictures are matched
        by their order if the file says so, as lean3r's own do, else by the time in their name (1305031102.175304.png),
        else by the last number in it that differs between them: with the pose's time if all times are whole numbers,
        else with its line, counted from 0 if there is a picture 0, from 1 if there is one with the number of lines.
        InputError if nothing matches, the count is not clear, a pose matches several pictures, or the frames are from
        several videos.
        """
        when = list(times_s) or [None] * len(names)
        timed = [time for time in when if time is not None]
        counts_frames = bool(timed) and self._counts_frames(names, when)
        stamps = [stamp_of(name) for name in names]
        if timed and not counts_frames:
            films = {name.rpartition("_")[0] for name, time in zip(names, when, strict=True) if time is not None}
            if len(set(timed)) < len(timed) or len(films) > 1:
                raise InputError(f"{origin} is one trajectory, but the frames are from several videos; give one video")
            poses = [None if time is None else self.at(time) for time in when]
            what = f"video frames from {min(timed):.3f} to {max(timed):.3f} s"
        elif self.of_views:
            if self.times_s[-1] >= len(names):
                raise InputError(
                    f"{origin} counts its pictures from 0 to {self.times_s[-1]:.0f}, and {len(names)} are here; "
                    "give the pictures of the run that wrote it, or its cameras.json, which has their names."
                )
            poses, what = self._at_rows(range(len(names)), self.times_s, names), "the order of the pictures"
        elif None not in stamps:
            poses = [None if stamp is None else self.at(stamp) for stamp in stamps]
            what = "names that are times"
        else:
            poses, what = self._by_number(names, origin)
        if not any(pose is not None for pose in poses):
            raise InputError(
                f"no pose of {origin} matches a picture: its times run from {self.times_s[0]:.3f} to "
                f"{self.times_s[-1]:.3f}; looked for {what} ({names[0]}, ...)"
            )
        logger.info("poses of %s were matched by %s", origin, what)
        return poses

    def at(self, time_s: float) -> np.ndarray | None:
        """cam_from_world [4, 4] at a time, interpolated between poses at most GAP_S apart; None elsewhere."""
        after = int(np.searchsorted(self.times_s, time_s))
        near = [i for i in (after - 1, after) if 0 <= i < len(self.times_s) and abs(self.times_s[i] - time_s) <= SAME_S]
        if near:
            return np.linalg.inv(self.world_from_cam[min(near, key=lambda i: abs(self.times_s[i] - time_s))])
        if not 0 < after < len(self.times_s) or self.times_s[after] - self.times_s[after - 1] > GAP_S:
            return None
        share = (time_s - self.times_s[after - 1]) / (self.times_s[after] - self.times_s[after - 1])
        first, second = torch.from_numpy(self.world_from_cam[after - 1 : after + 1])
        pose = torch.lerp(first, second, float(share))
        pose[:3, :3] = first[:3, :3] @ so3_exp(share * so3_log(first[:3, :3].mT @ second[:3, :3]))
        return np.linalg.inv(pose.numpy())

    def _counts_frames(self, names: Sequence[str], times_s: Sequence[float | None]) -> bool:
        """Whether whole numbers, which go on after the last frame, are numbers of a video's frames: seconds in steps of
        one fit more frames than that."""
        if not self._is_counted or self.times_s[-1] <= max(time for time in times_s if time is not None) + 1:
            return False
        by_number = sum(number in self.times_s for number in _numbers(names) if number is not None)
        return by_number >= sum(time is not None and self.at(time) is not None for time in times_s)

    @property
    def _is_counted(self) -> bool:
        return bool((self.times_s == np.round(self.times_s)).all())

    def _by_number(self, names: Sequence[str], origin: str) -> tuple[list[np.ndarray | None], str]:
        numbers = _numbers(names)
        stated = [number for number in numbers if number is not None]
        keys, what = (self.times_s, "numbers in names") if self._is_counted else (self.lines, "numbers of lines")
        if not self._is_counted and stated and 0 not in stated:
            if max(stated) != len(keys):
                raise InputError(
                    f"the pictures' numbers {min(stated)} to {max(stated)} may count the {len(keys)} lines of {origin} "
                    "from 0 or from 1. Name the pictures by their times, or write these numbers instead of the times."
                )
            keys, what = keys + 1, "numbers of lines from 1"
        return self._at_rows(numbers, keys, names), what

    def _at_rows(
        self, numbers: Sequence[int | None], keys: np.ndarray, names: Sequence[str]
    ) -> list[np.ndarray | None]:
        """cam_from_world of the pictures whose `numbers` are among the `keys` [N] of the poses."""
        row, taken = {int(key): index for index, key in enumerate(keys)}, dict[int, str]()
        rows = [None if number is None else row.get(number) for number in numbers]
        for index, name in zip(rows, names, strict=True):
            if index is not None and taken.setdefault(index, name) != name:
                raise InputError(
                    f"one pose matches both {taken[index]} and {name}; expected a number of its own in each."
                )
        return [None if index is None else np.linalg.inv(self.world_from_cam[index]) for index in rows]


def read_trajectory(path: Path) -> Trajectory:
    """Read lines `timestamp tx ty tz qx qy qz qw`, camera to world; ValueError with the reason if it is none."""
    try:
        text = path.read_text().splitlines()
        lines = [line for line in text if line.partition("#")[0].strip()]
    except OSError as error:
        raise ValueError(str(error)) from error
    rows = np.loadtxt(lines, dtype=np.float64, ndmin=2) if lines else np.zeros((0, 0))
    if rows.shape[1] != 8:
        raise ValueError(f"{rows.shape[1]} numbers a line; a trajectory has 8: time tx ty tz qx qy qz qw")
    if not np.isfinite(rows).all() or np.abs(np.linalg.norm(rows[:, 4:], axis=1) - 1).max() > 0.01:
        raise ValueError("a line has no quaternion of length 1 after its time and position")
    order = np.argsort(rows[:, 0], kind="stable")
    rows = rows[order]
    unit_s = next((unit for least, unit in UNITS_S if rows[0, 0] > least), 1.0)
    return Trajectory(rows[:, 0] * unit_s, poses_of(rows[:, 1:]), order, any(OF_VIEWS in line for line in text))


def poses_of(rows: np.ndarray) -> np.ndarray:
    """Matrices [N, 4, 4] of rows [N, 7]: a position and a quaternion, x y z and qx qy qz qw."""
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = matrix_from_quaternion(torch.from_numpy(rows[:, [6, 3, 4, 5]])).numpy()
    poses[:, :3, 3] = rows[:, :3]
    return poses


def stamp_of(name: str) -> float | None:
    """The time in seconds in a picture's name: a decimal number, a Unix time with decimals at the end, or as many
    digits as a Unix time in seconds, milli-, micro- or nanoseconds has (zeros in front make it a count)."""
    stem = PurePosixPath(name).stem
    if decimal := re.fullmatch(r"(\d+\.\d+)|.*\D([1-9]\d{9}\.\d+)", stem):
        return float(decimal[1] or decimal[2])
    is_stamp = re.fullmatch(r"[1-9](\d{9}|\d{12}|\d{15}|\d{18})", stem)
    return int(stem) / 10 ** (len(stem) - 10) if is_stamp else None


def _numbers(names: Sequence[str]) -> list[int | None]:
    """The last number in each picture's name, but for those at the end that all of them share (0001_cam2.png)."""
    found = [[int(number[-18:]) for number in re.findall(r"\d+", PurePosixPath(name).stem)] for name in names]
    while len(found) > 1 and min(map(len, found)) > 1 and len({numbers[-1] for numbers in found}) == 1:
        found = [numbers[:-1] for numbers in found]
    return [numbers[-1] if numbers else None for numbers in found]
