"""Laws of poses, cameras and projections."""

import math

import pytest
import torch

from lean3r.geometry import camera, pose
from lean3r.geometry.rotation import so3_exp
from lean3r.testing import assert_close, assert_finite_gradient

LEADS = [(), (2,), (1, 2)]


def random_poses(*lead, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(*lead, 6, generator=generator, dtype=torch.float64).to(dtype)
    return pose.make_pose(so3_exp(v[..., :3]), v[..., 3:])


def random_intrinsics(*lead, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    focal = 50 + 20 * torch.rand(*lead, 2, generator=generator, dtype=torch.float64)
    return camera.transform_intrinsics(camera.intrinsics_from_focal(focal, 31, 45).to(dtype), (1.0, 1.0), (1.5, -0.75))


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
def test_inverse_composition_and_action(lead, dtype, atol):
    a, b = random_poses(*lead, dtype=dtype), random_poses(*lead, dtype=dtype, seed=1)
    eye = pose.identity_pose(*lead, dtype=dtype)
    assert_close(pose.compose(a, pose.invert_pose(a)), eye, atol)
    assert_close(pose.invert_pose(pose.compose(a, b)), pose.compose(pose.invert_pose(b), pose.invert_pose(a)), 2 * atol)
    points = torch.linspace(-2, 2, 12, dtype=dtype).reshape(4, 3).expand(*lead, 4, 3)
    assert_close(
        pose.transform_points(a, pose.transform_points(b, points)), pose.transform_points(a @ b, points), 4 * atol
    )
    assert_close(pose.transform_points(a, pose.camera_centers(a)), torch.zeros(*lead, 3, dtype=dtype), 2 * atol)


def test_relative_pose_direction_and_invariance():
    cams = random_poses(2, 4)
    relative = pose.relative_pose(cams)
    assert relative.shape == (2, 4, 4, 4, 4)
    assert_close(relative[:, 1, 3] @ cams[:, 3], cams[:, 1], 1e-13)
    moved = cams @ random_poses(seed=9)
    assert_close(pose.relative_pose(moved), relative, 1e-12)


@pytest.mark.parametrize("size", [(31, 45), (45, 31), (1, 1)])
def test_fov_round_trip(size):
    fov = torch.tensor([[1.2, 0.4], [0.9, 2.0]], dtype=torch.float64)
    assert_close(camera.fov_from_intrinsics(camera.intrinsics_from_fov(fov, *size), *size), fov, 1e-14)
    square = camera.intrinsics_from_fov(torch.tensor([math.pi / 2, math.pi / 2]), 10, 10)
    assert square[0, 0].item() == pytest.approx(5.0, abs=1e-6)


def test_pixel_grid_is_x_y_at_centres():
    grid = camera.pixel_grid(2, 3)
    assert grid.shape == (2, 3, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5] and grid[1, 2].tolist() == [2.5, 1.5]


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("size", [(7, 5), (5, 9)])
def test_project_undoes_unproject_through_the_world(lead, size):
    generator = torch.Generator().manual_seed(3)
    depth = 0.5 + torch.rand(*lead, *size, generator=generator, dtype=torch.float64)
    k, cams = random_intrinsics(*lead), random_poses(*lead)
    world = camera.world_points(depth, k, cams)
    cam = pose.transform_points(cams, world)
    assert_close(cam[..., 2], depth, 1e-13)
    assert_close(camera.project(cam, k), camera.pixel_grid(*size, dtype=torch.float64).expand(*lead, *size, 2), 1e-11)


def test_projection_of_known_points():
    k = camera.intrinsics_from_focal(torch.tensor([100.0, 50.0]), 20, 40)
    xy = camera.project(torch.tensor([[0.0, 0.0, 3.0], [1.0, -1.0, 10.0]]), k)
    assert_close(xy, torch.tensor([[20.0, 10.0], [30.0, 5.0]]), 1e-5)


def test_transformed_intrinsics_project_to_transformed_pixels():
    k, points = random_intrinsics(2), torch.tensor([[[0.3, -0.2, 2.0], [1.0, 0.5, 3.0]]] * 2, dtype=torch.float64)
    scale, offset = (0.5, 2.0), (-3.0, 4.5)
    moved = camera.project(points, camera.transform_intrinsics(k, scale, offset))
    assert_close(moved, camera.project(points, k) * torch.tensor(scale) + torch.tensor(offset), 1e-12)


def test_gradients_are_finite_at_identity_and_on_the_image_plane():
    k = camera.intrinsics_from_focal(torch.tensor([30.0, 30.0]), 4, 6)
    assert_finite_gradient(lambda p: camera.world_points(torch.ones(4, 6), k, p), torch.eye(4))
    assert_finite_gradient(lambda x: camera.project(x, k), torch.zeros(3))
