"""What a program says about the pictures of one scene: cameras, depth and points, whoever wrote the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lean3r.data.sets.scenes import first_few, is_rotation
from lean3r.errors import InputError
from lean3r.eval.trajectory import associate

MAX_GAP_S = 0.02  # as far as TUM's own tool for associating pictures looks
SUFFIX = re.compile(r"(?<=[^/])\.[a-z]\w*$", re.IGNORECASE)
COUNTED = re.compile(r"(?:frame|depth|pred)?[-_]?(\d+)", re.IGNORECASE)

Resampling = Literal["nearest", "bilinear", "bicubic"]
REACH = {"bilinear": 1, "bicubic": 2}  # pixels around the nearest one that a method mixes


@dataclass(frozen=True, eq=False, kw_only=True)
class Predicted:
    """The predictions for S pictures; parts that the files do not have are None.

    `names` are the pictures' names as the files give them, None where the files only have an order. `times_s` [S] are
    timestamps in seconds. cam_from_world [S, 4, 4] float64, OpenCV axes, NaN for a picture without a pose; intrinsics
    [S, 3, 3] in pixels of the original pictures; `depth`: S maps [h, w] float32 of any size, z-depth in the unit of the
    cameras, 0 or NaN where unknown. A map covers its whole picture, unless `original_from_depth` [S, 4] says otherwise:
    x_original = scale_x x + offset_x, like `original_from_network` (docs/conventions.md). `cloud` [N, 3] are points of
    the world. `path` names the files in messages. `lacks_failures`: files of this form leave out pictures without a
    pose, as COLMAP's do; otherwise a picture that is not there is another frame.
    """

    path: Path
    names: tuple[str, ...] | None = None
    times_s: np.ndarray | None = None
    cam_from_world: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    depth: tuple[np.ndarray, ...] | None = None
    original_from_depth: np.ndarray | None = None
    cloud: np.ndarray | None = None
    lacks_failures: bool = False

    def __post_init__(self) -> None:
        place = self.original_from_depth
        if place is not None and not (np.isfinite(place).all() and (place[:, :2] > 0).all()):
            raise InputError(f"original_from_network of {self.path} has a scale that is not positive, or a NaN")

    @property
    def views(self) -> int:
        """Number of pictures; 0 for a cloud alone."""
        parts = (self.names, self.times_s, self.cam_from_world, self.intrinsics, self.depth)
        return next((len(part) for part in parts if part is not None), 0)

    def of(self, names: Sequence[str]) -> Predicted:
        """The predictions for the pictures with these names, in this order; InputError for other pictures.

        Names agree if they are equal, or else if their paths without suffix are, from as few folders on as give all
        pictures different names; at least their last parts must be. If the files have no names, or
        only numbers from 0 or 1 of which none is the name of a picture, their order counts, and there must be as many.
        """
        if self.views == 0 or (self.names is None and self.views == len(names)):
            return self
        if self.names is None:
            raise InputError(
                f"{self.path} has {self.views} frames without names; expected {len(names)}, in the order of the "
                f"benchmark ({first_few(names)})"
            )
        depth = max(len(_parts(name)) for name in (*self.names, *names))
        for key in (str, *(partial(_tail, parts=parts) for parts in range(depth, 0, -1))):
            places = {key(name): place for place, name in enumerate(self.names)}
            wanted = [key(name) for name in names]
            is_unique = len(places) == len(self.names) and len(set(wanted)) == len(wanted)
            found = [name for name in wanted if name in places]
            if is_unique and (len(found) == len(wanted) or (found and self.lacks_failures)):
                return replace(self._select([places.get(name, -1) for name in wanted]), names=tuple(names))
        have = {_tail(name) for name in self.names}
        absent = [name for name in names if _tail(name) not in have]
        if len(absent) == self.views == len(names) and (order := _counted(self.names)) is not None:
            return replace(self._select(order), names=tuple(names))
        raise InputError(
            f"{self.path} has predictions for other frames: {len(absent) or 'some'} of {len(names)} are missing or "
            f"ambiguous ({first_few(absent or names)}); it has {first_few(self.names)}"
        )

    def at_times(self, times_s: Sequence[float] | np.ndarray, max_gap_s: float = MAX_GAP_S) -> Predicted:
        """The predictions for pictures at these times in seconds: the nearest within `max_gap_s`, else none (NaN pose).

        Times that only count (0, 1, ... or 1, 2, ...), one for each picture, are an order. InputError without times, or
        if none is near a picture's.
        """
        wanted = np.asarray(times_s, np.float64)
        if self.times_s is None:
            raise InputError(f"{self.path} has no timestamps; expected a trajectory with times, or names of pictures")
        counts = np.arange(len(wanted))
        if any(np.array_equal(self.times_s, counts + first) for first in (0, 1)):
            return replace(self, times_s=wanted)
        ours, theirs = associate(self.times_s, wanted, max_gap_s) if len(wanted) and self.views else ((), ())
        if not len(ours):
            raise InputError(
                f"no pose of {self.path} is within {max_gap_s} s of a picture: it has times from "
                f"{self.times_s.min():.3f} to {self.times_s.max():.3f} s; expected {wanted.min():.3f} to "
                f"{wanted.max():.3f} s"
            )
        order = np.full(len(wanted), -1)
        farthest_first = np.argsort(-np.abs(self.times_s[ours] - wanted[theirs]), kind="stable")
        order[theirs[farthest_first]] = ours[farthest_first]
        return replace(self._select(order.tolist()), times_s=wanted)

    def problems(self) -> list[str]:
        """Sentences for what makes scores meaningless or impossible: missing and impossible cameras, empty maps."""
        label = self.names or [f"frame {i}" for i in range(self.views)]

        def some(bad: np.ndarray, what: str) -> list[str]:
            named = [label[i] for i in np.flatnonzero(bad)]
            return [f"{len(named)} of {self.views} pictures {what}: {first_few(named)}"] if named else []

        found: list[str] = []
        known = np.ones(self.views, bool)
        if (pose := self.cam_from_world) is not None:
            known = np.array([np.isfinite(p).all() for p in pose], bool)
            rigid = np.array([is_rotation(p[:3, :3]) and np.allclose(p[3], (0, 0, 0, 1)) for p in pose], bool)
            found += some(~known, "have no pose (NaN)") + some(known & ~rigid, "have a pose that is no rigid motion")
            centres = np.array([-p[:3, :3].T @ p[:3, 3] for p in pose[known & rigid]]).reshape(-1, 3)
            if len(centres) < 2:
                found.append(f"poses need at least two pictures, {len(centres)} of {self.views} has one")
            elif np.ptp(centres, axis=0).max() <= 1e-9 * np.abs(centres).max():
                found.append("all cameras are at one place: the scale of the trajectory is zero")
        if self.intrinsics is not None:
            focal = self.intrinsics[:, [0, 1], [0, 1]]
            sound = np.isfinite(self.intrinsics.sum((1, 2))) & (focal.min(1) > 0)
            found += some(known & ~sound, "have no valid intrinsics")
        if self.depth is not None:
            found += some(np.array([not (m > 0).any() for m in self.depth], bool), "have no positive depth at all")
        if self.cloud is not None and not len(self.cloud):
            found.append("the cloud has no points")
        return found

    def depth_at(
        self,
        view: int,
        height: int,
        width: int,
        method: Resampling = "nearest",
        original_size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Depth [height, width] float32 of a view at the pixels of its whole picture scaled to that size.

        `original_size` (height, width) is that of the original picture, by default the same; only maps with
        `original_from_depth` need it. 0 outside the map and where its nearest pixel is unknown. Next to an unknown
        pixel all methods give the nearest, so that every method knows the same pixels. InputError without depth.
        """
        if self.depth is None:
            raise InputError(f"{self.path} has no depth; expected a map for each picture")
        depth = np.asarray(self.depth[view], np.float32)
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
        rows, columns = depth.shape
        y, x = (np.arange(height) + 0.5) * rows / height, (np.arange(width) + 0.5) * columns / width
        if self.original_from_depth is not None:
            scale_x, scale_y, offset_x, offset_y = self.original_from_depth[view]
            original_height, original_width = original_size or (height, width)
            y = ((np.arange(height) + 0.5) * (original_height / height) - offset_y) / scale_y
            x = ((np.arange(width) + 0.5) * (original_width / width) - offset_x) / scale_x
        row, column = np.floor(y).astype(int), np.floor(x).astype(int)
        inside = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))
        at = np.ix_(row.clip(0, rows - 1), column.clip(0, columns - 1))
        near = np.where(inside, depth[at], 0)
        if method == "nearest":
            return near
        values, size = torch.from_numpy(depth)[None, None], 2 * REACH[method] + 1
        if self.original_from_depth is None:
            smooth = torch.nn.functional.interpolate(values, (height, width), mode=method, align_corners=False)
        else:
            grid = np.stack(np.meshgrid(2 * x / columns - 1, 2 * y / rows - 1), -1)[None]
            smooth = torch.nn.functional.grid_sample(
                values.double(), torch.from_numpy(grid), mode=method, padding_mode="border", align_corners=False
            )
        unknown = torch.nn.functional.max_pool2d((values == 0).float(), size, 1, REACH[method])[0, 0].numpy() > 0
        return np.where(inside & ~unknown[at], smooth[0, 0].numpy(), near).astype(np.float32)

    def _select(self, order: Sequence[int]) -> Predicted:
        """The pictures at these places, -1 for one without a prediction."""
        places = np.asarray(order, int)

        def pick(part: np.ndarray | None, none: float | Sequence[float] = np.nan) -> np.ndarray | None:
            if part is None:
                return None
            picked = np.array(part[places.clip(0)], np.float64)
            picked[places < 0] = none
            return picked

        empty = np.zeros((1, 1), np.float32)
        return replace(
            self,
            names=None if self.names is None else tuple(self.names[i] for i in places),
            times_s=pick(self.times_s),
            cam_from_world=pick(self.cam_from_world),
            intrinsics=pick(self.intrinsics),
            depth=None if self.depth is None else tuple(self.depth[i] if i >= 0 else empty for i in places),
            original_from_depth=pick(self.original_from_depth, (1, 1, 0, 0)),
        )


def _parts(name: str) -> list[str]:
    """The parts of a path; the last one without its suffix, which starts with a letter, unlike that of a time."""
    return SUFFIX.sub("", name.replace("\\", "/")).split("/")


def _tail(name: str, parts: int = 1) -> str:
    """The last parts of a path without its suffix."""
    return "/".join(_parts(name)[-parts:])


def _counted(names: Sequence[str]) -> list[int] | None:
    """The places of names that count from 0 or 1 (frame_0000.npy), in their order; None for other names."""
    matches = [COUNTED.fullmatch(_tail(name)) for name in names]
    numbers = [int(match[1]) for match in matches if match is not None]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    counts = [numbers[i] for i in order]
    return order if counts in (list(range(len(names))), list(range(1, len(names) + 1))) else None
