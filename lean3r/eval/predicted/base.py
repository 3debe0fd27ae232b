"""What a program says about the pictures of one scene: cameras, depth and points, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
import torch

from lean3r.data.sets.scenes import first_few
from lean3r.errors import InputError

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
    the world. `path` names the files in messages.
    """

    path: Path
    names: tuple[str, ...] | None = None
    times_s: np.ndarray | None = None
    cam_from_world: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    depth: tuple[np.ndarray, ...] | None = None
    original_from_depth: np.ndarray | None = None
    cloud: np.ndarray | None = None

    @property
    def views(self) -> int:
        """Number of pictures; 0 for a cloud alone."""
        parts = (self.names, self.times_s, self.cam_from_world, self.intrinsics, self.depth)
        return next((len(part) for part in parts if part is not None), 0)

    def of(self, names: Sequence[str]) -> Predicted:
        """The predictions for the pictures with these names, in this order; InputError for other pictures.

        Names agree if they are equal, or else if their last parts without suffix are. Without names in the files, their
        order counts, and there must be as many.
        """
        if self.views == 0:
            return self
        if self.names is None:
            if self.views != len(names):
                raise InputError(
                    f"{self.path} has {self.views} frames without names; expected {len(names)}, in the order of the "
                    f"benchmark ({first_few(names)})"
                )
            return self
        for key in (str, _stem):
            places = {key(name): place for place, name in enumerate(self.names)}
            wanted = [key(name) for name in names]
            is_unique = len(places) == len(self.names) and len(set(wanted)) == len(wanted)
            if is_unique and all(name in places for name in wanted):
                return self._select([places[name] for name in wanted])
        have = set(map(_stem, self.names))
        absent = [name for name in names if _stem(name) not in have]
        raise InputError(
            f"{self.path} has predictions for other frames: {len(absent) or 'some'} of {len(names)} are missing or "
            f"ambiguous ({first_few(absent or names)}); it has {first_few(self.names)}"
        )

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

    def _select(self, order: list[int]) -> Predicted:
        assert self.names is not None

        def pick(part: np.ndarray | None) -> np.ndarray | None:
            return None if part is None else part[order]

        return Predicted(
            path=self.path,
            names=tuple(self.names[i] for i in order),
            times_s=pick(self.times_s),
            cam_from_world=pick(self.cam_from_world),
            intrinsics=pick(self.intrinsics),
            depth=None if self.depth is None else tuple(self.depth[i] for i in order),
            original_from_depth=pick(self.original_from_depth),
            cloud=self.cloud,
        )


def _stem(name: str) -> str:
    return PurePath(name.replace("\\", "/")).stem
