"""Tiny valid copies of data sets: scenes of the synthetic world, written in each set's own format.

The module of a set is called as its row of DATASETS: a function `write(root, scenes)` that puts scenes there as the
publisher would, and, where its format does not keep everything, `TINY`, which says what it keeps. Reading a copy back
must give the cameras and the depth that went in.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lean3r.data import DATASETS
from lean3r.data.world.synthetic import SyntheticWorld

VIEWS, HEIGHT, WIDTH = 6, 48, 64
_LEFT, _TOP = 5, 1  # the pictures are cut from larger ones, so that principal points are off the middle


@dataclass(frozen=True, eq=False)
class TinyScene:
    """images [S, H, W, 3] uint8, depth [S, H, W] float32 (0 in holes), normals [S, H, W, 3], intrinsics [S, 3, 3]
    (all the same, pixel centres at 0.5) and cam_from_world [S, 4, 4] float64."""

    images: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    intrinsics: np.ndarray
    cam_from_world: np.ndarray

    @property
    def world_from_cam(self) -> np.ndarray:
        """[S, 4, 4], which many formats store."""
        return np.linalg.inv(self.cam_from_world)


@dataclass(frozen=True)
class Tiny:
    """What survives of a set's copy, and how it is opened: depth "dense" (but for
    `depth_error`, relative, and what lies beyond the format's range), "spread" (every fourth pixel), "sparse" (some
    pixels), or "none"; pose_error and pixel_error bound what rounding in the format does to poses and intrinsics;
    focal is the focal length of the scenes, in widths of their pictures; options are passed to the set's class."""

    depth: Literal["dense", "spread", "sparse", "none"] = "dense"
    depth_error: float = 1e-6
    pose_error: float = 1e-6
    pixel_error: float = 1e-4
    focal: float = 0.9
    options: dict[str, Any] = field(default_factory=dict)


@cache
def scenes(seed: int = 3, count: int = 2, focal: float = 0.9) -> tuple[TinyScene, ...]:
    """Rooms of the synthetic world; metres, say: nothing is farther than a few tens of them. A patch has no depth."""
    world = SyntheticWorld(
        HEIGHT + 4, WIDTH + 8, VIEWS, seed=seed, arena=0, facade=0, terrain=0, distortion=0, focal=(focal, focal),
        tiles=32, tile_size=32, scale=(1.0, 1.0),
    )  # fmt: skip
    batch = world.batch(0, count)
    rows, columns = slice(_TOP, _TOP + HEIGHT), slice(_LEFT, _LEFT + WIDTH)
    k = batch.intrinsics.double().numpy().copy()
    k[..., 0, 2] -= _LEFT
    k[..., 1, 2] -= _TOP
    images = (batch.images * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()[:, :, rows, columns]
    depth = batch.depth.numpy()[:, :, rows, columns].copy()
    depth[:, :, :4, :6] = 0
    assert batch.normals is not None
    normals = batch.normals.permute(0, 1, 3, 4, 2).numpy()[:, :, rows, columns].copy()
    normals[:, :, :4, :6] = 0
    pose = _exact(batch.cam_from_world.double().numpy())
    return tuple(TinyScene(*parts) for parts in zip(images, depth, normals, k, pose, strict=True))


def write(name: str, root: Path, seed: int = 3, count: int = 2) -> tuple[TinyScene, ...]:
    """Write the tiny copy of a set to `root`; what a reader must find there (a writer returns it where it differs)."""
    made = scenes(seed, count, focal=WRITERS[name].focal)
    return tuple(importlib.import_module(f"data.tiny.{name}").write(root, made) or made)


def save_png(path: Path, values: np.ndarray) -> None:
    """A picture [H, W, 3] uint8 or a map [H, W] uint16, without loss; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def save_jpeg(path: Path, values: np.ndarray) -> None:
    """A picture [H, W, 3] uint8, nearly without loss; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, quality=97, subsampling=0)


def millimetres(depth: np.ndarray) -> np.ndarray:
    """uint16 of depth in metres."""
    return np.rint(np.clip(depth * 1000, 0, 65535)).astype(np.uint16)


def numbers(values: np.ndarray) -> str:
    """Rows of a matrix as text, exactly."""
    return "\n".join(" ".join(repr(float(x)) for x in row) for row in np.atleast_2d(values))


def as_seen_with(scene: TinyScene, intrinsics: np.ndarray, height: int = HEIGHT) -> TinyScene:
    """The scene with other intrinsics [3, 3] and height: for sets that state their camera. Colours are those of the
    nearest pixel, depth is on its plane; it is 0 where the pictures of the scene end."""
    y, x = np.mgrid[:height, :WIDTH] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T
    spots = np.floor(rays @ scene.intrinsics[0].T)
    inside = (spots[..., :2] >= 0).all(-1) & (spots[..., :2] < (WIDTH, HEIGHT)).all(-1)
    column, row = spots[..., 0].astype(int).clip(0, WIDTH - 1), spots[..., 1].astype(int).clip(0, HEIGHT - 1)
    images, depth, normals = (values[:, row, column] for values in (scene.images, scene.depth, scene.normals))
    nearest = np.stack([column + 0.5, row + 0.5, np.ones_like(x)], -1) @ np.linalg.inv(scene.intrinsics[0]).T
    facing, before = (normals * rays).sum(-1), (normals * nearest).sum(-1)
    shift = np.divide(before, facing, out=np.ones_like(facing), where=facing < -0.05)
    depth = np.where(inside, depth * shift.clip(0.9, 1.1), 0).astype(np.float32)
    return TinyScene(images, depth, normals, np.tile(intrinsics, (len(images), 1, 1)), scene.cam_from_world)


def _exact(pose: np.ndarray) -> np.ndarray:
    """Rotations of float32 as rotations of float64."""
    u, _, vt = np.linalg.svd(pose[..., :3, :3])
    out = np.zeros_like(pose)
    out[..., :3, :3], out[..., :3, 3], out[..., 3, 3] = u @ vt, pose[..., :3, 3], 1
    return out


def _kept(name: str) -> Tiny:
    return getattr(importlib.import_module(f"data.tiny.{name}"), "TINY", Tiny())


WRITERS = {name: _kept(name) for name in DATASETS if Path(__file__).with_name(f"{name}.py").is_file()}
"""Rows of DATASETS that have a tiny copy, and what it keeps."""
