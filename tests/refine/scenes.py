"""A textured corner of a room, photographed from known places: small scenes for the refinement."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from lean3r.types import PointCloud, Reconstruction, Source

WIDTH, HEIGHT, FOCAL = 320, 240, 290.0
STRIDE = 2  # of the network's picture
INTRINSICS = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])
# Planes n . x = d: the wall ahead, the floor, the wall at the right, and a box's front.
PLANES = ((np.array([0, 0, 1.0]), 6.0), (np.array([0, 1.0, 0]), 1.5), (np.array([1.0, 0, 0]), 2.5))
BOX = (np.array([0, 0, 1.0]), 4.5, (-1.2, 0.4, -0.3, 1.5))  # x and y from, to


@lru_cache
def texture(seed: int, size: int = 1024) -> np.ndarray:
    """Noise at several scales [size, size] in 0..1."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size))
    for cells, weight in ((16, 1.0), (48, 1.0), (128, 0.9), (340, 0.7)):
        noise = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        total += weight * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    return np.clip(0.5 + 0.22 * total, 0, 1)


def look(rotation_deg: tuple[float, float, float], centre: tuple[float, float, float]) -> np.ndarray:
    """cam_from_world [4, 4] of a camera at `centre`, turned about y, x and z."""
    y, x, z = np.radians(rotation_deg)
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = (about_y @ about_x @ about_z).T
    pose[:3, 3] = -pose[:3, :3] @ np.array(centre)
    return pose


def arc(views: int, step: float = 0.7) -> np.ndarray:
    """Cameras [S, 4, 4] along an arc that look into the corner."""
    at = (np.arange(views) - (views - 1) / 2) * step
    return np.stack([look((-5 * x, 4.0 + x, 1.5 * x), (x, 0.15 * x**2 - 0.3, 0.1 * x)) for x in at])


def photograph(
    pose: np.ndarray,
    seed: int = 0,
    focal: float = FOCAL,
    is_fisheye: bool = False,
    centre: tuple[float, float] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """(picture [H, W] uint8, z-depth [H, W]) of the corner as a camera sees it; an equidistant one if it is a
    fisheye. The middle of the lens is so far from that of the picture."""
    across, down = (np.arange(size) + 0.5 - size / 2 - away for size, away in zip((WIDTH, HEIGHT), centre, strict=True))
    x, y = np.meshgrid(across / focal, down / focal)
    if is_fisheye:
        angle = np.hypot(x, y)
        x, y = (each * np.tan(angle) / angle for each in (x, y))
    rays = np.stack([x, y, np.ones_like(x)], -1) @ pose[:3, :3]
    origin = -pose[:3, :3].T @ pose[:3, 3]
    depth, value = np.full(x.shape, np.inf), np.zeros(x.shape)
    for index, (normal, distance, *extent) in enumerate((*PLANES, BOX)):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (distance - normal @ origin) / (rays @ normal)
        hit = origin + t[..., None] * rays
        near = (t > 0.05) & (t < depth)
        for x0, x1, y0, y1 in extent:
            near &= (hit[..., 0] > x0) & (hit[..., 0] < x1) & (hit[..., 1] > y0) & (hit[..., 1] < y1)
        u, v = hit[..., np.flatnonzero(normal == 0)][near].T
        picture = texture(10 * seed + index)
        where = (np.stack([u, v]) * 120 + 400) % (len(picture) - 1)
        low, part = np.floor(where).astype(int), where % 1
        corners = [picture[low[0] + i, low[1] + j] for i in (0, 1) for j in (0, 1)]
        weights = [(1 - part[0]) * (1 - part[1]), (1 - part[0]) * part[1], part[0] * (1 - part[1]), part[0] * part[1]]
        value[near] = sum(w * c for w, c in zip(weights, corners, strict=True))
        depth[near] = t[near]
    return (255 * value).astype(np.uint8), np.where(np.isfinite(depth), depth, 0)


def scene(
    poses: np.ndarray, off_deg: float = 2.0, off: float = 0.15, focal: float = 1.1, seed: int = 0
) -> Reconstruction:
    """What a network might say: poses and focal length that are off, depth at half the size with a wrong scale."""
    rng = np.random.default_rng(seed)
    shots = [photograph(pose, seed) for pose in poses]
    half = (WIDTH // STRIDE, HEIGHT // STRIDE)
    images = np.stack([np.asarray(Image.fromarray(image).resize(half, Image.Resampling.BOX)) for image, _ in shots])
    depth = np.stack([z[::STRIDE, ::STRIDE] for _, z in shots]).astype(np.float32)
    moved = [look(tuple(rng.normal(size=3) * off_deg), tuple(rng.normal(size=3) * off)) @ pose for pose in poses]
    intrinsics = np.diag([focal / STRIDE, focal / STRIDE, 1]) @ INTRINSICS
    intrinsics[:2, 2] = WIDTH / 2 / STRIDE, HEIGHT / 2 / STRIDE
    none = np.zeros((0, 3), np.float32)
    return Reconstruction(
        sources=tuple(Source(f"{i:03d}.png", WIDTH, HEIGHT, (STRIDE, STRIDE, 0.0, 0.0)) for i in range(len(poses))),
        images=np.repeat(images[..., None], 3, -1),
        mask=np.ones(depth.shape, bool),
        depth=depth,
        conf=np.full(depth.shape, 2, np.float32),
        cam_from_world=np.stack(moved),
        intrinsics=np.stack([intrinsics] * len(poses)),
        points=PointCloud(none, none.astype(np.uint8), none[:, 0], none[:, 0].astype(np.int32), none[:, :2], none),
    )


def write(poses: np.ndarray, folder: Path, seed: int = 0, focals: Iterable[float] = repeat(FOCAL)) -> None:
    """The photographs as files, by one focal length or by these."""
    for index, (pose, focal) in enumerate(zip(poses, focals, strict=False)):
        Image.fromarray(photograph(pose, seed, focal)[0]).save(folder / f"{index:03d}.png")
