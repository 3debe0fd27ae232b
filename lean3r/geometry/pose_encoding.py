"""The camera encoding of VGGT and Depth Anything 3, nine numbers: translation (3), quaternion x y z w (4), vertical
and horizontal angle of view (2, radians). The model decides whether the pose maps to or from the camera."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.geometry.camera import intrinsics_from_focal, size_of
from lean3r.geometry.pose import make_pose
from lean3r.geometry.rotation import matrix_from_quaternion, quaternion_from_entries

SIZE = 9


def decode_pose(encoding: Tensor) -> Tensor:
    """Pose [..., 4, 4] of an encoding [..., 9]; the quaternion may have any non-zero length."""
    quaternion = torch.cat([encoding[..., 6:7], encoding[..., 3:6]], -1)
    return make_pose(matrix_from_quaternion(quaternion), encoding[..., :3])


def decode_intrinsics(encoding: Tensor, height: int, width: int, min_tangent: float = 0.0) -> Tensor:
    """Intrinsics [..., 3, 3] in pixels of an encoding [..., 9]; an angle of 0 gives an infinite focal length
    unless `min_tangent`, a lower bound of the tangent of half the angle, is above 0."""
    half_size = size_of(width, height, encoding) / 2
    tangent = torch.tan(encoding[..., 7:].flip(-1) / 2).clamp_min(min_tangent)
    return intrinsics_from_focal(half_size / tangent, height, width)


def encode_camera(pose: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Encoding [..., 9] of poses [..., 4, 4] and intrinsics [..., 3, 3]; w >= 0; the principal point is not encoded."""
    half_size = torch.tensor([height / 2, width / 2], dtype=pose.dtype, device=pose.device)
    angles = 2 * torch.atan(half_size / intrinsics[..., [1, 0], [1, 0]])
    quaternion = quaternion_from_entries(pose[..., :3, :3])[..., [1, 2, 3, 0]]
    return torch.cat([pose[..., :3, 3], quaternion, angles], dim=-1)
