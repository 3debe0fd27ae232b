"""Attention between views that adds known camera poses to the tokens (as in Pi3X).

Queries, keys and values are transformed by the cameras of their views, so that attention depends on relative
poses only. Source: Li et al. 2025, "Cameras as relative positional encoding".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.attention.dense import by_gathered_keys
from lean3r.geometry.pose import invert_pose
from lean3r.layers.attention import SelfAttention
from lean3r.layers.block import LayerScale
from lean3r.layers.mlp import Mlp
from lean3r.layers.rope import BASE
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout


@dataclass(frozen=True)
class PoseFrame:
    """Cameras of B scenes of S views: cam_from_world [B, S, 4, 4] in a unit near the scene size, known [B, S] bool."""

    cam_from_world: Tensor
    known: Tensor


class PoseAttention(SelfAttention):
    """Self-attention whose heads encode the camera (half of the channels), the column and the row."""

    def inject(self, x: Tensor, layout: TokenLayout, frame: PoseFrame) -> Tensor:
        """Patch tokens [B, S * P, C] -> [B, S * P, C]; the output for views without a pose is undefined."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, dim // self.heads)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        table = _column_row_table(layout, q.shape[-1], q.device)
        camera = frame.cam_from_world.float()
        with without_autocast(x.device.type):
            inverse = invert_pose(camera)
        q = _express(q, camera.mT, table, layout).to(v.dtype)
        k = _express(k, inverse, table, layout).to(v.dtype)
        values = _express(v, inverse, table, layout).to(v.dtype)
        mask = None
        if layout.share is not None or not bool(frame.known.all()):  # processes must agree on whether there is one
            mask = frame.known.repeat_interleave(layout.patches, dim=1)
        if layout.valid is not None:
            valid = layout.valid.flatten(1)
            mask = valid if mask is None else mask & valid
        if layout.share is not None:
            out = by_gathered_keys(q, k, values, mask, layout.share)
        else:
            out = F.scaled_dot_product_attention(q, k, values, attn_mask=None if mask is None else mask[:, None, None])
        cos, sin = table
        out = _express(out, camera, (cos, -sin), layout).to(x.dtype)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


class PoseInjection(nn.Module):
    """ls1(attn(norm1(x))) + ls2(mlp(norm2(x))): both branches read the same tokens; the caller adds the result."""

    def __init__(self, dim: int, heads: int, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = PoseAttention(dim, heads, rope=False)
        self.ls1 = LayerScale(dim, 0.01)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, 0.01)

    def forward(self, x: Tensor, layout: TokenLayout, frame: PoseFrame) -> Tensor:
        """Patch tokens [B, S * P, C] -> the update of the views with a pose."""
        return self.ls1(self.attn.inject(self.norm1(x), layout, frame)) + self.ls2(self.mlp(self.norm2(x)))


def _column_row_table(layout: TokenLayout, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin) [P, D / 4] of columns, then rows, counted from 0."""
    pairs = head_dim // 8
    frequency = BASE ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
    row = torch.arange(layout.rows, device=device).repeat_interleave(layout.cols)
    col = torch.arange(layout.cols, device=device).repeat(layout.rows)
    angle = torch.cat([col[:, None] * frequency, row[:, None] * frequency], dim=-1)
    return angle.cos(), angle.sin()


def _express(x: Tensor, matrix: Tensor, table: tuple[Tensor, Tensor], layout: TokenLayout) -> Tensor:
    """Multiply groups of four channels of x [B, H, S * P, D] by each view's matrix [B, S, 4, 4]; rotate the rest."""
    x = x.float().unflatten(2, (layout.views, layout.patches))
    half = x.shape[-1] // 2
    with without_autocast(x.device.type):
        moved = torch.einsum("bsij,bhspgj->bhspgi", matrix, x[..., :half].unflatten(-1, (-1, 4))).flatten(-2)
    cos, sin = (t.unflatten(-1, (2, -1)) for t in table)
    first, second = x[..., half:].unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([first * cos + second * sin, second * cos - first * sin], dim=-2).flatten(-3)
    return torch.cat([moved, turned], dim=-1).flatten(2, 3)
