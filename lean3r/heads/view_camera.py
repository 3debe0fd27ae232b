"""Decoder and encoder between cameras and the camera tokens of Depth Anything 3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.geometry.pose import camera_centers, invert_pose, make_pose
from lean3r.geometry.pose_encoding import SIZE, encode_camera
from lean3r.layers.block import Block
from lean3r.layers.mlp import Mlp
from lean3r.types import TokenLayout

MIN_BASELINE = 0.1


class CameraDecoder(nn.Module):
    """Camera token -> world-from-camera encoding (geometry/pose_encoding.py)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim)
        self.translation = nn.Linear(dim, 3)
        self.quaternion = nn.Linear(dim, 4)
        self.angles = nn.Linear(dim, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] -> [..., 9]; angles of view are at least 0."""
        x = F.relu(self.fc2(F.relu(self.fc1(tokens))))
        return torch.cat([self.translation(x), self.quaternion(x), F.relu(self.angles(x))], dim=-1)


class CameraEncoder(nn.Module):
    """Known cameras -> camera tokens, with attention between views."""

    def __init__(self, dim: int, heads: int = 16, depth: int = 4, eps: float = 1e-5):
        super().__init__()
        self.pose_branch = Mlp(SIZE, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim, eps=eps)
        self.trunk = nn.ModuleList(
            Block(dim, heads, qk_norm=False, rope=False, layer_scale=0.01, eps=eps) for _ in range(depth)
        )
        self.trunk_norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, cam_from_world: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
        """Cameras [B, S, 4, 4] and [B, S, 3, 3] in pixels of a height x width picture -> tokens [B, S, C]."""
        encoding = encode_camera(invert_pose(cam_from_world), intrinsics, height, width)
        x = self.token_norm(self.pose_branch(encoding))
        layout = TokenLayout(x.shape[1], 1, 0, 0)
        for block in self.trunk:
            x = block(x, layout)
        return self.trunk_norm(x)


KEYS = (
    ("cam_dec.backbone.0.", "camera_decoder.fc1."),
    ("cam_dec.backbone.2.", "camera_decoder.fc2."),
    ("cam_dec.fc_t.", "camera_decoder.translation."),
    ("cam_dec.fc_qvec.", "camera_decoder.quaternion."),
    ("cam_dec.fc_fov.0.", "camera_decoder.angles."),
    ("cam_enc.", "camera_encoder."),
)
"""(official prefix, our prefix) of the decoder and the encoder."""


def normalise_cameras(cam_from_world: Tensor) -> tuple[Tensor, Tensor]:
    """Cameras [B, S, 4, 4] normalised as in training, and the length [B] of the new unit in world units.

    The first camera becomes the origin; translations are divided by the unit: the lower median of the distances of
    the camera centres from it, at least MIN_BASELINE.
    """
    relative = cam_from_world @ invert_pose(cam_from_world[:, :1])
    unit = camera_centers(relative).norm(dim=-1).median(dim=-1).values.clamp_min(MIN_BASELINE)
    return make_pose(relative[..., :3, :3], relative[..., :3, 3] / unit[:, None, None]), unit
