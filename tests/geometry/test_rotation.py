"""Laws of rotations."""

import math

import pytest
import torch

from lean3r.geometry import rotation as R
from lean3r.testing import assert_close, assert_finite_gradient

LEADS = [(), (2,), (1, 2)]
DTYPES = [(torch.float32, 2e-6), (torch.float64, 1e-14)]


def random_vector(lead, dtype, length=1.0):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*lead, 3, generator=generator, dtype=torch.float64).to(dtype) * length


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize(("dtype", "atol"), DTYPES)
def test_representations_are_inverse_pairs(lead, dtype, atol):
    vector = random_vector(lead, dtype)
    matrix = R.so3_exp(vector)
    assert matrix.dtype == dtype and matrix.shape == (*lead, 3, 3)
    assert_close(matrix @ matrix.mT, torch.eye(3, dtype=dtype).expand_as(matrix), atol)
    assert_close(torch.linalg.det(matrix), torch.ones(lead, dtype=dtype), atol)
    assert_close(R.so3_log(matrix), vector, 4 * atol)
    assert_close(R.matrix_from_quaternion(R.quaternion_from_matrix(matrix)), matrix, atol)
    assert_close(R.rotation_from_9d(matrix.flatten(-2)), matrix, 2 * atol)
    assert_close(R.rotation_from_6d(matrix[..., :2].mT.flatten(-2) * 3), matrix, atol)


def test_quaternion_order_and_sign():
    quarter_about_z = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert_close(R.quaternion_from_matrix(quarter_about_z), torch.tensor([0.5**0.5, 0.0, 0.0, 0.5**0.5]), 1e-6)
    assert_close(R.so3_log(quarter_about_z), torch.tensor([0.0, 0.0, math.pi / 2]), 1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-6, math.pi])
def test_angle_is_accurate_everywhere(angle):
    for axis in torch.cat(
        [torch.eye(3, dtype=torch.float64), torch.nn.functional.normalize(random_vector((5,), torch.float64), dim=-1)]
    ):
        matrix = R.so3_exp(axis * angle)
        assert abs(R.rotation_angle(matrix).item() - angle) <= 1e-15 + 1e-10 * min(angle, 1e-3) + 4e-15 * (angle > 1e-3)
        back = R.so3_log(matrix)
        assert min(
            (back - axis * angle).norm().item(), (back + axis * angle).norm().item() + (angle < 3.1)
        ) < 1e-14 + 1e-8 * (angle > 3.14)


def test_angle_composes_about_one_axis():
    axis = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    a, b = R.so3_exp(0.4 * axis), R.so3_exp(1.5 * axis)
    assert R.geodesic_angle(a, b).item() == pytest.approx(1.1, abs=1e-14)
    assert_close(a @ b, R.so3_exp(1.9 * axis), 1e-14)


def test_nearest_rotation_is_nearest_and_never_a_reflection():
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(50, 3, 3, generator=generator, dtype=torch.float64)
    nearest = R.nearest_rotation(matrix)
    assert_close(torch.linalg.det(nearest), torch.ones(50, dtype=torch.float64), 1e-12)
    distance = (nearest - matrix).norm(dim=(-2, -1))
    for _ in range(20):
        other = R.so3_exp(0.3 * torch.randn(50, 3, generator=generator, dtype=torch.float64)) @ nearest
        assert ((other - matrix).norm(dim=(-2, -1)) >= distance).all()


def test_nearest_rotation_commutes_with_rotations():
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)
    turn = R.so3_exp(random_vector((), torch.float64))
    assert_close(R.nearest_rotation(turn @ matrix), turn @ R.nearest_rotation(matrix), 1e-12)


def test_nearest_rotation_has_the_true_gradient():
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(6, 3, 3, generator=generator, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(R.nearest_rotation, matrix)


def test_half_precision_and_autocast_are_computed_in_float32():
    matrix = R.so3_exp(random_vector((4,), torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(R.nearest_rotation(matrix), matrix, 1e-6)
    assert R.nearest_rotation(matrix.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("function", [R.so3_log, R.rotation_angle, R.quaternion_from_matrix, R.nearest_rotation])
def test_gradients_are_finite_at_special_rotations(function):
    for matrix in (torch.eye(3), torch.diag(torch.tensor([1.0, -1.0, -1.0])), torch.zeros(3, 3)):
        if matrix.any() or function is R.nearest_rotation:
            assert_finite_gradient(function, matrix)


def test_gradients_of_vector_parametrisations_are_finite_at_zero():
    gradient = assert_finite_gradient(lambda v: R.so3_exp(v)[2, 1], torch.zeros(3))
    assert_close(gradient, torch.tensor([1.0, 0.0, 0.0]), 1e-6)
    assert_finite_gradient(R.rotation_from_6d, torch.zeros(6))
