"""How the camera turns between keyframes: by the motion of the picture, which is measured to choose keyframes anyway.

Its place between keyframes is on a smooth curve, and what hands shake it by is hardly seen in the picture. But how they
turn it is, and from one keyframe to the next that is known at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lean3r.inputs.flow import nodes_of
from lean3r.inputs.motion import small_size
from lean3r.stream import sim3
from lean3r.stream.between import camera_between, interpolated
from lean3r.stream.looks import Seen
from lean3r.stream.result import Result
from lean3r.types import Lens

STEPS = 5  # of a fit that trusts each ray by how well it fits
SURE_RAD = 0.003  # by which rays may be off that fit: half a pixel of the small frames in which motion is measured
MOST_RAD = 0.05  # by which measured turns may miss the next keyframe; more, and something else has moved


class Turns:
    """The cameras of frames between keyframes, as far as frames in a row say how their pictures moved."""

    def __init__(self, frames: Sequence[Seen]) -> None:
        self._frames = {frame.index: frame for frame in frames}
        self._known: dict[tuple[int, int], dict[int, np.ndarray]] = {}

    def pose(self, frame: Seen, first: Result, second: Result, results: Sequence[Result]) -> np.ndarray:
        """The pose [4, 4] of a frame between two keyframes that follow each other in `results`, in their world."""
        pair = first.keyframe.index, second.keyframe.index
        if pair not in self._known:
            self._known[pair] = self._between(first, second, results)
        known = self._known[pair].get(frame.index)
        return interpolated(results, frame.moving_s) if known is None else known

    def _between(self, first: Result, second: Result, results: Sequence[Result]) -> dict[int, np.ndarray]:
        start, end = first.keyframe.index, second.keyframe.index
        frames = [frame for index, frame in self._frames.items() if start < index <= end]
        known = first.depth[first.depth > 0]
        if not frames or not known.size or any(frame.size != first.keyframe.size for frame in frames):
            return {}
        poses = {frame.index: interpolated(results, frame.moving_s) for frame in frames}
        poses |= {start: first.pose, end: second.pose}
        size = first.keyframe.size
        cameras = {index: camera_between(first, second, index, size) for index in poses}
        turned = _turned(self._frames.get(start), frames, poses, cameras, float(np.median(known)))
        if turned is None:
            return {}
        off = sim3.rotation_vector(poses[end][:3, :3] @ turned[end].T)
        if np.linalg.norm(off) > MOST_RAD:
            return {}
        found = {}
        for frame in frames[:-1]:  # errors add up while the picture moves
            share = (frame.travelled - first.travelled) / max(second.travelled - first.travelled, 1e-9)
            rotation = sim3.exp(np.array([*share * off, 0, 0, 0, 0]))[:3, :3] @ turned[frame.index]
            found[frame.index] = sim3.make(1.0, rotation, -rotation @ sim3.centres(poses[frame.index]))
        return found


def _turned(
    first: Seen | None,
    frames: Sequence[Seen],
    poses: Mapping[int, np.ndarray],
    cameras: Mapping[int, tuple[np.ndarray, Lens | None]],
    depth: float,
) -> dict[int, np.ndarray] | None:
    """Rotations [3, 3] of frames after the keyframe that `first` was, each by its motion from one before, with all that
    they see at a `depth`, and their centres those of `poses`; None where motion is not known all the way."""
    start = next(iter(set(poses) - {frame.index for frame in frames}))
    found = {start: poses[start][:3, :3]}
    for frame in frames:
        if frame.flow is None:
            return None
        before, at = frame.reference, nodes_of(*frame.size)
        if before not in found:  # what the keyframe was compared with, too
            if first is None or first.reference != before or first.flow is None or first.size != frame.size:
                return None
            before, at = start, at + _pixels(first)
        there = depth * _rays(at, frame.size, cameras[before])
        centres = [sim3.centres(poses[index]) for index in (before, frame.index)]
        points = there @ found[before] + centres[0] - centres[1]
        rays = _rays(nodes_of(*frame.size) + _pixels(frame), frame.size, cameras[frame.index])
        if not np.isfinite(points).all() or not np.isfinite(rays).all():
            return None
        found[frame.index] = _rotation_between(points, rays)
    return found


def _pixels(frame: Seen) -> np.ndarray:
    """The motion (x, y) [N, 2] of a frame's picture in pixels. It is measured in a small frame, which has another shape
    where the picture is very wide or high."""
    assert frame.flow is not None
    small = small_size(*frame.size)
    return frame.flow[:, ::-1] * max(small) * np.divide(frame.size, small)


def _rays(at: np.ndarray, size: tuple[int, int], camera: tuple[np.ndarray, Lens | None]) -> np.ndarray:
    """(x / z, y / z, 1) [N, 3] of the rays through places [N, 2] of a picture."""
    matrix, lens = camera
    if lens is None:
        slopes = (at - matrix[:2, 2]) / np.diag(matrix)[:2]
    else:
        from lean3r.geometry.lens import colmap_camera

        slopes = np.asarray(colmap_camera(lens, *size).cam_from_img(at))
    return np.column_stack([slopes, np.ones(len(at))])


def _rotation_between(points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] that turns directions [N, 3] into others, most of which fit."""
    ours, theirs = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (points, rays))
    weights = np.ones(len(ours))
    rotation = np.eye(3)
    for _ in range(STEPS):
        rotation = sim3.nearest_rotation((weights[:, None] * theirs).T @ ours)
        off = np.linalg.norm(ours @ rotation.T - theirs, axis=1)
        weights = 1 / (1 + (off / max(SURE_RAD, float(np.median(off)))) ** 2)
    return rotation
