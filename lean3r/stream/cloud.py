"""A cloud of bounded size that grows with a stream: one point a voxel, voxels that grow when there are too many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from lean3r.geometry.points import edge_mask
from lean3r.stream import sim3
from lean3r.stream.bend import Bend
from lean3r.stream.engine import Estimate

GROWTH = 1.25
PER_PIXEL = 1.0  # side of the first voxels, in pixels at the median depth of the first keyframe
_SPAN = 1 << 20  # voxels along each axis that have numbers of their own, on both sides of the origin
_ARRAYS = ("key", "xyz", "rgb", "conf", "window", "frame")


class Cloud:
    """The most confident point of each voxel, at most `most` of them; `side` is the voxels' side in world units.

    key [P] int64 is a voxel's number, ascending; xyz [P, 3] float32; rgb [P, 3] uint8; conf [P] float32; window [P]
    int32 is the number of the window that placed the point; frame [P] int32 is the index of the keyframe that saw it.
    `bent` are the windows whose points have followed their bend.
    """

    def __init__(self, most: int, percentile: float) -> None:
        self.most, self.percentile, self.side = most, percentile, 0.0
        self.key, self.conf, self.window = np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int32)
        self.xyz, self.rgb = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
        self.frame = np.zeros(0, np.int32)
        self.bent = set[int]()

    def __len__(self) -> int:
        return len(self.key)

    def add(self, estimates: Iterable[Estimate]) -> None:
        """The points of keyframes whose cameras are trusted; other frames add nothing."""
        parts = [part for each in estimates if (part := self._points(each)) is not None]
        if parts:
            self._merge(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _points(self, estimate: Estimate) -> tuple[np.ndarray, ...] | None:
        """World points of one keyframe, their colours, confidence, window and frame."""
        flags = estimate.flags
        if estimate.depth is None or not self.most or "keyframe" not in flags or flags & {"uncertain", "lost"}:
            return None
        assert estimate.conf is not None and estimate.image is not None and estimate.source is not None
        depth, conf = estimate.depth, estimate.conf
        keep = (depth > 0) & np.isfinite(depth) & (conf > 0)
        if not keep.any():
            return None
        keep &= conf >= np.percentile(conf[keep], self.percentile, method="lower")
        keep &= ~edge_mask(torch.from_numpy(np.where(keep, depth, 0))).numpy()
        slopes = estimate.slopes
        keep &= np.isfinite(slopes).all(axis=-1)
        rows, cols = np.nonzero(keep)
        if not len(rows):
            return None
        z = depth[rows, cols].astype(np.float64)
        cam = np.concatenate([slopes[rows, cols] * z[:, None], z[:, None]], axis=1)
        pose = estimate.cam_from_world
        xyz = ((cam - pose[:3, 3]) @ pose[:3, :3]).astype(np.float32)
        if not self.side:
            wide = estimate.source.original_from_network[0]
            self.side = float(PER_PIXEL * np.median(z) * wide / estimate.intrinsics[0, 0])
        window, frame = (np.full(len(xyz), number, np.int32) for number in (estimate.window, estimate.index))
        return xyz, estimate.image[rows, cols], conf[rows, cols].astype(np.float32), window, frame

    def _merge(self, xyz: np.ndarray, *more: np.ndarray) -> None:
        """Take points and `more`, their other columns."""
        near = (np.abs(xyz) < self.side * _SPAN).all(axis=1)  # also drops what is not finite
        new = _thinned(self._keys(xyz[near]), xyz[near], *(column[near] for column in more))
        self._set(_thinned(*(np.concatenate(pair) for pair in zip(self._arrays, new, strict=True))))
        while len(self) > self.most:
            self.side *= GROWTH
            self._set(_thinned(self._keys(self.xyz), *self._arrays[1:]))

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self, name) for name in _ARRAYS)

    def _set(self, arrays: tuple[np.ndarray, ...]) -> None:
        for name, array in zip(_ARRAYS, arrays, strict=True):
            setattr(self, name, array)

    def _keys(self, xyz: np.ndarray) -> np.ndarray:
        cell = np.floor(xyz.astype(np.float64) / self.side).astype(np.int64) + _SPAN
        return (cell[:, 0] * 2 * _SPAN + cell[:, 1]) * 2 * _SPAN + cell[:, 2]

    def move(self, before: np.ndarray, after: np.ndarray, bends: Mapping[int, Bend]) -> None:
        """Follow windows [W, 4, 4] that have moved from one placement to another, and those that bend now."""
        xyz = self.xyz.astype(np.float64)
        for window in np.unique(self.window):
            back, mine = np.linalg.inv(before[window]), self.window == window
            if window in bends and window not in self.bent:
                for frame in np.unique(self.frame[mine]):
                    seen = mine & (self.frame == frame)
                    change = after[window] @ bends[window].matrix(frame) @ back
                    xyz[seen] = sim3.move_points(change, xyz[seen])
            elif not np.allclose(after[window] @ back, np.eye(4), atol=1e-12):
                xyz[mine] = sim3.move_points(after[window] @ back, xyz[mine])
        self.bent |= bends.keys()
        more = self._arrays[2:]
        self._set(tuple(array[:0] for array in self._arrays))
        self._merge(xyz.astype(np.float32), *more)

    @property
    def bytes(self) -> int:
        """Of its arrays."""
        return sum(array.nbytes for array in self._arrays)

    def state(self) -> dict[str, Any]:
        """See Engine.state."""
        return {"side": self.side, "bent": sorted(self.bent), **dict(zip(_ARRAYS, self._arrays, strict=True))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Engine.restore."""
        self.side, self.bent = state["side"], set(state["bent"])
        for name in _ARRAYS:
            setattr(self, name, state[name])


def _thinned(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The most confident of the points of each key, by ascending key; of equally confident ones the first."""
    key, conf = arrays[0], arrays[3]
    order = np.argsort(key, kind="stable")  # fast where two parts are in order already
    key, conf = key[order], conf[order]
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    if not len(starts):
        return tuple(array[:0] for array in arrays)
    best = np.repeat(np.maximum.reduceat(conf, starts), np.diff(np.append(starts, len(key))))
    place = np.flatnonzero(conf == best)
    of_key = key[place]
    place = place[np.concatenate([[True], of_key[1:] != of_key[:-1]])]
    return tuple(array[order[place]] for array in arrays)
