"""Large planes of a scene, and depth that is drawn to them where it is not sure."""

from __future__ import annotations

import numpy as np
import torch

from lean3r.geometry.lens import Optics
from lean3r.stereo.others import surfaces
from lean3r.stereo.planes import AROUND, OFF, REACH, Plane, drawn, planes_of
from lean3r.stereo.posed import Depths, Posed
from lean3r.types import Source

HEIGHT, WIDTH, FOCAL = 60, 80, 70.0
PLANES = np.array([[0, -1.0, 0, -1.2], [0, 0, -1.0, -5.0], [1.0, 0, 0, -2.0]])  # floor, wall ahead, wall at the left


def room(views: int = 3) -> tuple[Posed, torch.Tensor]:
    """Cameras in a corner of a room, and log depth [S, H, W] of it."""
    poses = np.tile(np.eye(4), (views, 1, 1))
    for view in range(views):
        angle = 0.15 * (view - 1)
        poses[view, :3, :3] = [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
        poses[view, :3, 3] = -poses[view, :3, :3] @ [0.3 * view, 0.1 * view, 0.2 * view]
    intrinsics = np.tile([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]], (views, 1, 1))
    y, x = (np.indices((HEIGHT, WIDTH)) + 0.5 - np.array([HEIGHT, WIDTH]).reshape(2, 1, 1) / 2) / FOCAL
    depth = np.empty((views, HEIGHT, WIDTH))
    for view, pose in enumerate(poses):
        rays, centre = np.stack([x, y, np.ones_like(x)], -1) @ pose[:3, :3], -pose[:3, 3] @ pose[:3, :3]
        with np.errstate(divide="ignore"):
            away = (PLANES[:, 3] - PLANES[:, :3] @ centre) / (rays @ PLANES[:, :3].T)
        depth[view] = np.where(away > 0, away, np.inf).min(-1)
    images, mask = np.zeros((views, HEIGHT, WIDTH, 3), np.uint8), np.ones((views, HEIGHT, WIDTH), bool)
    optics = Optics(tuple(Source(f"{view}.png", WIDTH, HEIGHT) for view in range(views)), intrinsics)
    return Posed(images, mask, poses, intrinsics, optics, [np.zeros(0, int)] * views), torch.from_numpy(depth).log()


def found_in(scene: Posed, log_depth: torch.Tensor, b: torch.Tensor) -> tuple[Depths, list[Plane]]:
    found = Depths(log_depth.float(), b.log().float(), np.ones(len(log_depth), bool))
    return found, planes_of(scene, surfaces(scene, found), found)


def test_planes_of_a_room_are_found_and_go_on_where_depth_is_not_sure() -> None:
    scene, exact = room()
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = torch.full_like(exact, 0.003)
    wrong = exact + 0.002 * noise
    b[1, :, 50:], wrong[1, :, 50:] = 0.3, exact[1, :, 50:] + 0.4
    found, planes = found_in(scene, wrong, b)
    likeness = np.abs(np.stack([plane.normal for plane in planes]) @ PLANES[:, :3].T)
    assert len(planes) == 3 and likeness.max(0).min() > 0.9995
    assert np.allclose([planes[n].distance for n in likeness.argmax(0)], PLANES[:, 3], atol=0.02)
    after = drawn(scene, planes, found.log_depth[1], found.log_b[1], 1).double()
    assert (after - exact[1])[:, 50:].abs().median() < 0.01
    assert (after - wrong[1])[:, :50].abs().max() < 0.005, "what is sure stays"


def test_a_plane_ends_where_nobody_measured_it() -> None:
    scene, exact = room()
    sure = torch.full_like(exact, 0.003)
    _, planes = found_in(scene, exact, sure)
    wall = max(planes, key=lambda plane: abs(plane.normal[2]))  # ahead
    left = wall._replace(points=wall.points[wall.points[:, 0] < 0])
    off = exact[0] + 0.1
    moved = (drawn(scene, [left], off, torch.full_like(off, 0.3).log(), 0).double() - off).abs() > 0.05
    x = (
        np.exp(exact[0].numpy()) * (np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    )  # in this view, which is not turned much
    on_wall = np.abs(exact[0].numpy() - np.log(5)) < 0.15
    assert not moved[:, WIDTH // 2 + round((2 * AROUND + 0.2) * FOCAL) :].any(), "far from where it was measured"
    assert moved.numpy()[on_wall & (x < -0.5) & (x > -1.0)].mean() > 0.8


def test_what_stands_before_a_plane_stays() -> None:
    scene, exact = room()
    b = torch.full_like(exact, 0.003)
    thing = exact.clone()
    thing[:, 20:40, 30:50] -= 0.12  # sure of itself
    found, planes = found_in(scene, thing, b)
    after = drawn(scene, planes, found.log_depth[1], found.log_b[1], 1).double()
    assert (after - thing[1]).abs().max() < OFF / 10
    far = found.log_depth[1] - 1.5 * REACH  # not sure, but another surface
    kept = drawn(scene, planes, far, torch.full_like(far, np.log(0.5)), 1)
    assert (kept - far)[20:40, 30:50].abs().max() < 1e-6


def test_without_sure_pixels_there_are_no_planes_and_nothing_moves() -> None:
    scene, exact = room()
    found, planes = found_in(scene, exact, torch.full_like(exact, 0.5))
    assert planes == []
    torch.testing.assert_close(drawn(scene, planes, found.log_depth[0], found.log_b[0], 0), found.log_depth[0])
