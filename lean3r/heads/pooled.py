"""A camera head without camera tokens: a mean over the patch tokens of a view (as in Pi3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.geometry.pose import make_pose
from lean3r.geometry.rotation import rotation_from_9d
from lean3r.layers.linear import Linear


class ResidualMlp(nn.Module):
    """x + relu(L3(relu(L2(relu(L1(x))))))."""

    def __init__(self, dim: int):
        super().__init__()
        self.res_conv1 = Linear(dim, dim)
        self.res_conv2 = Linear(dim, dim)
        self.res_conv3 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return x + F.relu(self.res_conv3(F.relu(self.res_conv2(F.relu(self.res_conv1(x))))))


class PooledPose(nn.Module):
    """Patch tokens of a view -> its pose world_from_cam."""

    def __init__(self, dim: int):
        super().__init__()
        self.res_conv = nn.ModuleList(ResidualMlp(dim) for _ in range(2))
        self.more_mlps = nn.Sequential(Linear(dim, dim), nn.ReLU(), Linear(dim, dim), nn.ReLU())
        self.fc_t = Linear(dim, 3)
        self.fc_rot = Linear(dim, 9)

    def forward(self, patches: Tensor, valid: Tensor | None = None) -> Tensor:
        """Patch tokens [N, P, C], valid [N, P] bool (None: all) -> [N, 4, 4]."""
        for unit in self.res_conv:
            patches = unit(patches)
        if valid is None:
            x = patches.mean(1)
        else:
            weight = valid[..., None].to(patches.dtype)
            x = (patches * weight).sum(1) / weight.sum(1)
        x = self.more_mlps(x)
        translation, rows = self.fc_t(x).float(), self.fc_rot(x).float().unflatten(-1, (3, 3))
        return make_pose(rotation_from_9d(F.normalize(rows, dim=-1, eps=1e-12).flatten(-2)), translation)
