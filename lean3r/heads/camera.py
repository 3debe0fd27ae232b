"""Camera heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lean3r.geometry.pose import invert_pose, make_pose
from lean3r.geometry.rotation import nearest_rotation
from lean3r.layers.mlp import Mlp
from lean3r.tracing import is_traced, without_autocast

FOCAL_INIT = 0.9  # in units of sqrt(picture area): about 58 degrees across a square


@dataclass(frozen=True)
class CameraState:
    """Raw camera parameters: `matrix` [B, S, 3, 3] before projection to a rotation (world from camera),
    `center` [B, S, 3], `log_focal` [B, S], focal length in units of sqrt(picture area)."""

    matrix: Tensor
    center: Tensor
    log_focal: Tensor

    @classmethod
    def start(cls, batch: int, views: int, like: Tensor) -> CameraState:
        """All cameras at the origin, looking along z, with the same focal length."""
        matrix = torch.eye(3, device=like.device).expand(batch, views, 3, 3)
        center = torch.zeros(batch, views, 3, device=like.device)
        return cls(matrix, center, torch.full((batch, views), FOCAL_INIT, device=like.device).log())

    @classmethod
    def unpack(cls, values: Tensor) -> CameraState:
        """The inverse of `pack`: [B, S, 13] -> state."""
        return cls(values[..., :9].unflatten(-1, (3, 3)), values[..., 9:12], values[..., 12])

    def pack(self) -> Tensor:
        """All parameters in one tensor [B, S, 13]."""
        return torch.cat([self.matrix.flatten(-2), self.center, self.log_focal[..., None]], dim=-1)

    def detach(self) -> CameraState:
        """The same state, detached from the graph."""
        return CameraState(self.matrix.detach(), self.center.detach(), self.log_focal.detach())

    def poses(self) -> tuple[Tensor, Tensor]:
        """(world_from_cam, cam_from_world), each [B, S, 4, 4], in float32."""
        with without_autocast(self.matrix.device.type):
            world_from_cam = make_pose(_nearest_rotation(self.matrix.float()), self.center.float())
            return world_from_cam, invert_pose(world_from_cam)


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """`nearest_rotation`, NaN for matrices that are not finite, on which LAPACK fails: who looks at results or losses
    says so, and a training skips the step."""
    if is_traced():  # that way has no LAPACK
        return nearest_rotation(matrix)
    usable = matrix.isfinite().all(-1).all(-1)[..., None, None]
    rotation = nearest_rotation(matrix.where(usable, torch.eye(3, device=matrix.device)))
    return rotation.where(usable, torch.nan)


class CameraUpdate(nn.Module):
    """Correct a CameraState from the camera tokens (free gauge: no view is the reference)."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim, 13)

    def forward(self, token: Tensor, state: CameraState) -> CameraState:
        """token [B, S, C] -> the state plus the predicted correction; no gradient flows into the given state."""
        state = state.detach()
        delta = CameraState.unpack(self.mlp(self.norm(token)).float())
        return CameraState(
            state.matrix + delta.matrix, state.center + delta.center, state.log_focal + 0.3 * delta.log_focal
        )
