"""The page's own coordinates: y up, cameras looking towards -z, the scene around the origin at about size 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lean3r.geometry.up import estimate_up
from lean3r.view.content import Camera, Content

LEVEL = 0.3  # length of a gaze on the ground below which it is no direction
SAMPLE = 100_000
DOWN_IS_Y = np.array([0.0, -1.0, 0.0])  # up, where nothing says which way it is
NEAR = 6.0  # of the size of the scene: what is farther away is not framed


@dataclass(frozen=True)
class Frame:
    """page = rotation [3, 3] @ (world - centre [3]) / unit."""

    rotation: np.ndarray
    centre: np.ndarray
    unit: float

    def place(self, xyz: np.ndarray) -> np.ndarray:
        """World points [P, 3] on the page, float64."""
        return (xyz.astype(np.float64) - self.centre) @ self.rotation.T / self.unit

    def pose(self, cam_from_world: np.ndarray) -> np.ndarray:
        """A camera [4, 4] on the page: cam_from_page, its depth in the page's unit."""
        moved = np.eye(4)
        moved[:3, :3] = cam_from_world[:3, :3] @ self.rotation.T
        centre = -cam_from_world[:3, :3].T @ cam_from_world[:3, 3]
        moved[:3, 3] = -moved[:3, :3] @ self.place(centre[None])[0]
        return moved

    def after(self, scale: float, rotation: np.ndarray, translation: np.ndarray) -> Frame:
        """This frame for a world that a similarity leads to this frame's own: own = scale * rotation @ world +
        translation."""
        return Frame(self.rotation @ rotation, rotation.T @ (self.centre - translation) / scale, self.unit / scale)


def frame_of(content: Content, up: np.ndarray | None = None) -> Frame:
    """The frame of a result, with the up direction that is asked for, else the recorded one, else that of its
    cameras."""
    if up is None:
        up = content.up if content.up is not None else _up_of(content.cameras)
    back = -level_gaze(content.cameras, up)
    rotation = np.stack([np.cross(up, back), up, back])
    centres = np.array([camera.centre for camera in content.cameras]).reshape(-1, 3)
    xyz = content.points.xyz[:: 1 + len(content.points) // SAMPLE].astype(np.float64)
    xyz = xyz[np.isfinite(xyz).all(axis=1)]
    everything = xyz if len(xyz) > 2 else np.concatenate([xyz, centres])
    if not len(everything):
        return Frame(rotation, np.zeros(3), 1.0)
    low, high = np.percentile(everything @ rotation.T, [5, 95], axis=0)
    size = float(np.linalg.norm(high - low)) / 2
    if not np.isfinite(size) or size < 1e-30:
        reach = float(np.abs(centres).max()) if len(centres) else 0.0
        size = reach if reach > 1e-30 else 1.0
    return Frame(rotation, rotation.T @ ((low + high) / 2), size)


def _up_of(cameras: Sequence[Camera]) -> np.ndarray:
    """The unit vector [3] up, by the cameras that are not far off."""
    certain = [camera.pose for camera in cameras if camera.registration != "uncertain"]
    poses = certain or [camera.pose for camera in cameras]
    return np.array(estimate_up(np.stack(poses)).direction) if poses else DOWN_IS_Y


def level_gaze(cameras: Sequence[Camera], up: np.ndarray) -> np.ndarray:
    """The unit vector [3] on the ground in which the cameras look on the whole."""
    gazes = np.array([camera.pose[2, :3] for camera in cameras if camera.registration != "uncertain"]).reshape(-1, 3)
    tops = np.array([-camera.pose[1, :3] for camera in cameras]).reshape(-1, 3)
    candidates = [gazes.mean(axis=0), *gazes, tops.mean(axis=0)] if len(gazes) else []
    for ahead in (*candidates, *np.eye(3)[[2, 0]]):
        level = ahead - up * (ahead @ up)
        if np.linalg.norm(level) > LEVEL:
            return level / np.linalg.norm(level)
    raise AssertionError("two axes cannot both be up")


def home(content: Content, frame: Frame) -> dict:
    """Where the page's view begins: a sample of what to show, as flat lists, and whether to look down on it."""
    xyz = content.points.xyz[:: 1 + len(content.points) // 400]
    sample = frame.place(xyz[np.isfinite(xyz).all(axis=1)])
    sample = sample[np.abs(sample).max(axis=1, initial=0) < NEAR]
    if len(sample) > 20:
        low, high = np.percentile(sample, [4, 96], axis=0)
        room = 0.1 * (high - low)
        sample = sample[((sample >= low - room) & (sample <= high + room)).all(axis=1)]
    eyes = frame.place(np.array([camera.centre for camera in content.cameras]).reshape(-1, 3))
    eyes = eyes[np.abs(eyes).max(axis=1, initial=0) < NEAR]
    gazes = np.array([frame.rotation @ camera.pose[2, :3] for camera in content.cameras]).reshape(-1, 3)
    looks_down = bool(len(gazes)) and float(gazes[:, 1].mean()) < -0.75
    many = frame.place(content.points.xyz[:: 1 + len(content.points) // SAMPLE])
    many = many[np.isfinite(many).all(axis=1)]
    low, high = np.percentile(many, [0.5, 99.5], axis=0).clip(-NEAR, NEAR) if len(many) else (-np.ones(3), np.ones(3))
    ground = float(np.percentile(many[:, 1], 2)) if len(many) else -0.5
    every = 1 + len(eyes) // 200
    return {
        "sample": np.round(np.concatenate([sample, eyes[::every]]), 4).ravel().tolist(),
        "low": np.round(low, 3).tolist(),
        "high": np.round(high, 3).tolist(),
        "looksDown": looks_down,
        "ground": round(float(np.clip(ground, -NEAR, NEAR)), 5),
    }
