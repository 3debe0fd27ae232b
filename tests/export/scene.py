"""A small world with exact answers for the tests of the output side: the inside of a room with a box in it."""

from __future__ import annotations

import numpy as np

from lean3r.geometry.fusion import fuse
from lean3r.types import Reconstruction, Source

ROOM = np.array([[-3.0, -2.0, -4.0], [3.0, 1.5, 4.0]])  # y points down: the floor is at 1.5
BOX = np.array([[-0.8, 0.5, -0.6], [0.6, 1.5, 0.7]])


def look_at(eye, target) -> np.ndarray:
    """cam_from_world [4, 4] of an upright camera at `eye` that looks at `target`."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ np.asarray(eye, dtype=float)
    return pose


def orbit(views: int) -> np.ndarray:
    """cam_from_world [S, 4, 4] of cameras on an arc in front of the box."""
    angles = np.linspace(-0.6, 0.6, views) if views > 1 else np.zeros(1)
    return np.stack(
        [look_at((2.4 * np.sin(a), -0.3 + 0.2 * np.cos(3 * a), -3.2 * np.cos(a)), (0, 0.6, 0)) for a in angles]
    )


def render(
    cam_from_world: np.ndarray, intrinsics: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exact z-depth [H, W] and RGB uint8 [H, W, 3] of the room, by ray and box intersection in float64."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return cast(cam_from_world, np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T)


def cast(cam_from_world: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same along any rays [H, W, 3] of the camera, whose z is 1."""
    rays = rays @ cam_from_world[:3, :3]
    eye = -cam_from_world[:3, :3].T @ cam_from_world[:3, 3]
    with np.errstate(divide="ignore"):
        room, box = ((bounds[:, None, None] - eye) / rays for bounds in (ROOM, BOX))
    depth = room.max(axis=0).min(axis=-1)
    enter, leave = box.min(axis=0).max(axis=-1), box.max(axis=0).min(axis=-1)
    depth = np.where((enter > 0) & (enter < leave), enter, depth)
    return depth, colours(eye + rays * depth[..., None])


def colours(points: np.ndarray) -> np.ndarray:
    """The colours [..., 3] uint8 of points [..., 3] on the surfaces."""
    colour = 140 + 60 * np.sin(points * [5.0, 4.0, 3.0]) + 40 * (np.floor(points * 2).sum(-1, keepdims=True) % 2)
    return colour.clip(0, 255).astype(np.uint8)


def make_scene(
    views: int = 4,
    *,
    height: int = 72,
    width: int = 96,
    originals: list[tuple[int, int]] | None = None,
    names: list[str] | None = None,
    **changes,
) -> Reconstruction:
    """The room as a Reconstruction with exact depth.

    `originals` are (width, height) of the pictures: each is scaled to fit the network image, in its middle,
    and what remains is padding. Without it the pictures have ten times the size of the network image.
    """
    originals = originals or [(10 * width, 10 * height)] * views
    names = names or [f"IMG_{i:03d}.jpg" for i in range(views)]
    poses = orbit(views)
    arrays = {k: [] for k in ("images", "mask", "depth", "conf", "intrinsics")}
    sources = []
    for view, (full_width, full_height) in enumerate(originals):
        scale = min(width / full_width, height / full_height)
        x, y = (width - scale * full_width) / 2, (height - scale * full_height) / 2
        mask = np.zeros((height, width), bool)
        mask[int(np.ceil(y)) : int(height - np.ceil(y)), int(np.ceil(x)) : int(width - np.ceil(x))] = True
        focal = 0.8 * max(width, height) + view
        intrinsics = np.array([[focal, 0, width / 2 + 1], [0, focal * 1.01, height / 2 - 1], [0, 0, 1.0]])
        depth, image = render(poses[view], intrinsics, height, width)
        sources.append(Source(names[view], full_width, full_height, (1 / scale, 1 / scale, -x / scale, -y / scale)))
        arrays["images"].append(image * mask[..., None])
        arrays["mask"].append(mask)
        arrays["depth"].append((depth * mask).astype(np.float32))
        arrays["conf"].append((1 + 1 / depth).astype(np.float32))
        arrays["intrinsics"].append(intrinsics)
    stacked = {k: np.stack(v) for k, v in arrays.items()} | {"cam_from_world": poses}
    return reconstruction(tuple(sources), stacked | changes)


def reconstruction(sources: tuple[Source, ...], arrays: dict[str, np.ndarray]) -> Reconstruction:
    """A Reconstruction of these arrays with their fused points."""
    info = {"model": "exact", "config": {"seed": 0, "resolution": 96}, "seconds": {"network": 0.5}}
    return Reconstruction(sources, **arrays, points=fuse(**arrays, conf_percentile=5), info=info)
