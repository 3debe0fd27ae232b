"""Rigid poses as 4x4 matrices: b_from_a maps homogeneous points of frame a into frame b."""

from __future__ import annotations

import torch
from torch import Tensor


def make_pose(rotation: Tensor, translation: Tensor) -> Tensor:
    """Pose [..., 4, 4] from rotation [..., 3, 3] and translation [..., 3] (leading dimensions broadcast)."""
    # torch.broadcast_shapes would import sympy, which takes a second.
    lead = torch.broadcast_tensors(rotation[..., 0, 0], translation[..., 0])[0].shape
    top = torch.cat([rotation.expand(*lead, 3, 3), translation[..., None].expand(*lead, 3, 1)], -1)
    bottom = top.new_zeros(*lead, 1, 4)  # numbers from the processor would be waited for by a GPU
    bottom[..., 3].fill_(1)
    return torch.cat([top, bottom], -2)


def identity_pose(*lead: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """Identity poses [*lead, 4, 4]."""
    return torch.eye(4, dtype=dtype, device=device).expand(*lead, 4, 4).clone()


def invert_pose(b_from_a: Tensor) -> Tensor:
    """a_from_b [..., 4, 4] of a rigid b_from_a [..., 4, 4], by transposition."""
    inverse = b_from_a[..., :3, :3].mT
    return make_pose(inverse, -(inverse @ b_from_a[..., :3, 3:]).squeeze(-1))


def compose(c_from_b: Tensor, b_from_a: Tensor) -> Tensor:
    """c_from_a [..., 4, 4]."""
    return c_from_b @ b_from_a


def relative_pose(cam_from_world: Tensor) -> Tensor:
    """All pairs [..., S, S, 4, 4] of cameras [..., S, 4, 4]; entry [i, j] is cam_i_from_cam_j."""
    return cam_from_world[..., :, None, :, :] @ invert_pose(cam_from_world)[..., None, :, :, :]


def camera_centers(cam_from_world: Tensor) -> Tensor:
    """Optical centres [..., 3] in world coordinates of cameras [..., 4, 4]."""
    return -(cam_from_world[..., :3, :3].mT @ cam_from_world[..., :3, 3:]).squeeze(-1)


def transform_points(b_from_a: Tensor, points_a: Tensor) -> Tensor:
    """Points in frame b of points [*lead, ..., 3] in frame a, for poses [*lead, 4, 4].

    One pose applies to any number of further dimensions of points, for example [S, 4, 4] and [S, H, W, 3].
    """
    extra = points_a.dim() - 1 - (b_from_a.dim() - 2)
    pose = b_from_a.reshape(*b_from_a.shape[:-2], *[1] * extra, 4, 4)
    return (pose[..., :3, :3] @ points_a[..., None]).squeeze(-1) + pose[..., :3, 3]
