"""A mirror shows a place that is not there, the same in all views: its depth must not be sure."""

from __future__ import annotations

import numpy as np
import torch
from stereo.rendered import bent

from lean3r.pipeline.trust import no_points
from lean3r.stereo.dense import densify
from lean3r.types import Reconstruction, Source

ROOM = np.array([3.0, 1.5, 3.0])  # half extents in metres
MIRROR = (0.9, 0.6)  # half extents, in the middle of the wall z = 3
VIEWS, HEIGHT, WIDTH, FOCAL = 6, 120, 160, 136.0


def seen(origin: np.ndarray, rays: np.ndarray, paint: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance along rays [N, 3] to the walls of the room, the grey of these [N] (paint [6, 64, 64], between whose
    pixels it is interpolated), and the places [N, 3]."""
    far = ((np.sign(rays) * ROOM - origin) / rays).min(1)
    place = origin + far[:, None] * rays
    axis = ((np.sign(rays) * ROOM - origin) / rays).argmin(1)
    along = np.take_along_axis(place, np.array([[1, 2], [0, 2], [0, 1]])[axis], 1) * 10 + 32
    row, col = np.floor(along).astype(int).T
    down, right = (along % 1).T
    wall = 2 * axis + (np.take_along_axis(rays, axis[:, None], 1)[:, 0] > 0)
    corners = (paint[wall, (row + i) % 64, (col + j) % 64] for i in (0, 1) for j in (0, 1))
    shares = ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
    return far, sum(s * c for s, c in zip(shares, corners, strict=True)), place


def room() -> tuple[Reconstruction, np.ndarray, np.ndarray]:
    """The scene with bent depth, its true depth [S, H, W], and where the mirror is [S, H, W]."""
    rng = np.random.default_rng(0)
    paint = rng.uniform(20, 235, (6, 64, 64))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)], -1).reshape(-1, 3)
    images, depth, mirror, poses = [], [], [], []
    for view in range(VIEWS):
        centre = np.array([-1.2 + 2.4 * view / (VIEWS - 1), rng.uniform(-0.3, 0.3), rng.uniform(-1.6, -0.8)])
        pose = np.eye(4)
        pose[:3, 3] = -centre
        far, grey, place = seen(centre, rays, paint)
        inside = (place[:, 2] > ROOM[2] - 1e-6) & (abs(place[:, 0]) < MIRROR[0]) & (abs(place[:, 1]) < MIRROR[1])
        back = np.where(inside[:, None], place - 1e-6 * rays, 0)
        grey = np.where(inside, seen(back, rays * [1, 1, -1], paint)[1], grey)
        images.append(np.repeat(grey.reshape(HEIGHT, WIDTH, 1), 3, 2).round().astype(np.uint8))
        depth.append(far.reshape(HEIGHT, WIDTH))
        mirror.append(inside.reshape(HEIGHT, WIDTH))
        poses.append(pose)
    true = np.stack(depth)
    scene = Reconstruction(
        sources=tuple(Source(f"{n}.png", WIDTH, HEIGHT) for n in range(VIEWS)),
        images=np.stack(images),
        mask=np.ones_like(true, bool),
        depth=bent(torch.from_numpy(true), 0.05).float().numpy(),
        conf=np.ones_like(true, np.float32),
        cam_from_world=np.stack(poses),
        intrinsics=np.tile([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]], (VIEWS, 1, 1)),
        points=no_points(),
        registration=("refined",) * VIEWS,
    )
    return scene, true, np.stack(mirror)


def test_a_mirror_is_not_sure() -> None:
    start, true, mirror = room()
    found = densify(start)
    error = np.abs(found.depth / true - 1)
    assert mirror.mean() > 0.1 and np.median(error[~mirror]) < 0.01
    assert np.median(found.conf[mirror]) < np.median(found.conf[~mirror]) / 2
    sure = found.conf > np.quantile(found.conf, 0.5)
    assert sure[mirror].mean() < sure[~mirror].mean() / 2
