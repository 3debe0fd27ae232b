"""Cameras from tokens: encodings in both directions, true rotations, and which views influence which."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.geometry.pose import make_pose
from lean3r.geometry.pose_encoding import decode_intrinsics, decode_pose, encode_camera
from lean3r.geometry.rotation import so3_exp
from lean3r.heads.camera import CameraState, CameraUpdate
from lean3r.heads.iterative import IterativeCamera
from lean3r.heads.pooled import PooledPose
from lean3r.heads.view_camera import CameraDecoder, CameraEncoder, normalise_cameras
from lean3r.testing import assert_rms


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def poses(*lead: int, seed: int = 0) -> Tensor:
    return make_pose(so3_exp(2 * draw(*lead, 3, seed=seed)), draw(*lead, 3, seed=seed + 1))


def is_rotation(matrix: Tensor) -> bool:
    eye = torch.eye(3).expand_as(matrix)
    return torch.allclose(matrix @ matrix.mT, eye, atol=1e-5) and bool((matrix.det() > 0).all())


@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48), (35, 63)])
def test_encodings_can_be_inverted(height: int, width: int) -> None:
    pose, focal = poses(2, 5), 30 + 50 * torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0))
    intrinsics = torch.zeros(2, 5, 3, 3)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1], intrinsics[..., 2, 2] = focal[..., 0], focal[..., 1], 1
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = width / 2, height / 2
    encoding = encode_camera(pose, intrinsics, height, width)
    assert encoding.shape == (2, 5, 9) and bool((encoding[..., 6] >= 0).all())
    torch.testing.assert_close(decode_pose(encoding), pose, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decode_intrinsics(encoding, height, width), intrinsics, atol=1e-3, rtol=1e-5)
    longer = encoding.clone()
    longer[..., 3:7] *= -3.0
    torch.testing.assert_close(decode_pose(longer), pose, atol=1e-5, rtol=1e-5)
    assert decode_intrinsics(torch.zeros(9), height, width, min_tangent=0.1)[0, 0] == pytest.approx(5 * width)


def test_a_state_is_thirteen_numbers_and_its_two_poses_are_inverse() -> None:
    state = CameraState.unpack(draw(2, 3, 13))
    assert torch.equal(state.pack(), draw(2, 3, 13))
    world_from_cam, cam_from_world = state.poses()
    assert is_rotation(world_from_cam[..., :3, :3]) and torch.equal(world_from_cam[..., :3, 3], state.center)
    torch.testing.assert_close(world_from_cam @ cam_from_world, torch.eye(4).expand(2, 3, 4, 4), atol=1e-5, rtol=0)
    start, _ = CameraState.start(2, 3, torch.zeros(1)).poses()
    torch.testing.assert_close(start, torch.eye(4).expand(2, 3, 4, 4))


def test_an_update_corrects_each_view_independently() -> None:
    torch.manual_seed(0)
    head, state = CameraUpdate(16), CameraState.unpack(draw(1, 4, 13).requires_grad_())
    tokens = draw(1, 4, 16)
    found = head(tokens, state).pack()
    other = tokens.clone()
    other[:, 2] = 0
    assert (head(other, state).pack() != found).any(-1)[0].tolist() == [False, False, True, False]
    for layer in (head.mlp.fc2.weight, head.mlp.fc2.bias):
        torch.nn.init.zeros_(layer)
    same = head(tokens, state).pack()
    assert torch.equal(same, state.pack()) and state.matrix.grad_fn is not None
    assert torch.autograd.grad(same.sum(), state.matrix, allow_unused=True) == (None,)


def test_iterations_use_all_views_and_angles_are_not_negative() -> None:
    torch.manual_seed(0)
    head, tokens, order = IterativeCamera(16, 2, depth=1, iterations=3), draw(1, 4, 16), [2, 0, 3, 1]
    with torch.no_grad():
        found, moved, alone = (head(t) for t in (tokens, tokens[:, order], tokens[:, :1]))
    assert len(found) == 3 and all(bool((e[..., 7:] >= 0).all()) for e in found)
    for a, b in zip(found, moved, strict=True):
        assert_rms(b, a[:, order], 1e-5)
    assert not torch.allclose(alone[-1], found[-1][:, :1], atol=1e-6)
    angles = CameraDecoder(16)(draw(2, 5, 16))
    assert angles.shape == (2, 5, 9) and bool((angles[..., 7:] >= 0).all())


def test_a_pooled_pose_is_a_mean_without_padding() -> None:
    torch.manual_seed(0)
    head, patches, valid = PooledPose(16), draw(3, 10, 16), torch.ones(3, 10, dtype=torch.bool)
    valid[:, 7:] = False
    other = patches.clone()
    other[:, 7:] = 40.0
    with torch.no_grad():
        pose = head(patches, valid)
        assert is_rotation(pose[:, :3, :3])
        assert_rms(head(other, valid), pose, 1e-6)
        assert_rms(head(patches[:, :7].flip(1)), pose, 1e-5)


def test_normalised_cameras_start_at_the_first_camera_and_do_not_depend_on_the_unit() -> None:
    cameras = poses(2, 5)
    usual, unit = normalise_cameras(cameras)
    torch.testing.assert_close(usual[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)
    assert is_rotation(usual[..., :3, :3])
    world = make_pose(so3_exp(draw(2, 1, 3, seed=7)), draw(2, 1, 3, seed=8))
    moved = cameras @ world
    moved[..., :3, 3] *= 4
    again, longer = normalise_cameras(moved)
    torch.testing.assert_close(again, usual, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(longer, 4 * unit, atol=1e-4, rtol=1e-4)
    still = cameras[:, :1].expand(-1, 3, -1, -1)
    assert normalise_cameras(still)[1].tolist() == pytest.approx([0.1, 0.1]), "a unit is never zero"
    torch.manual_seed(0)
    encoder, k = CameraEncoder(16, heads=2, depth=1), torch.tensor([[50.0, 0, 40], [0, 50, 30], [0, 0, 1]])
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        tokens, moved_tokens = (encoder(c, k.expand(2, 5, 3, 3), 60, 80) for c in (cameras, cameras[:, order]))
    assert tokens.shape == (2, 5, 16)
    assert_rms(moved_tokens, tokens[:, order], 1e-4)


def test_a_camera_that_is_not_finite_is_nan_and_spoils_no_other() -> None:
    """LAPACK ended trainings with an error of its own, instead of a step that is skipped."""
    matrix = draw(1, 3, 3, 3).index_fill(1, torch.tensor([1]), torch.inf).requires_grad_()
    found, back = CameraState(matrix, draw(1, 3, 3), draw(1, 3)).poses()
    assert found[:, 1].isnan().any() and back[:, 1].isnan().any()
    assert is_rotation(found[:, [0, 2], :3, :3])
    found[:, [0, 2]].square().sum().backward()
    assert matrix.grad is not None and matrix.grad[:, [0, 2]].isfinite().all()
