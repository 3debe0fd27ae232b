"""Small transformers between the trunk and a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.attention.across import attend_once
from lean3r.layers.block import Block
from lean3r.layers.linear import Linear
from lean3r.layers.mlp import Mlp
from lean3r.layers.rope import rope_table, rotate
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout


class ViewRefiner(nn.Module):
    """Linear, blocks inside each view (no q/k norm, no layer scale), linear."""

    def __init__(self, dim_in: int, dim: int, heads: int, dim_out: int, depth: int = 5):
        super().__init__()
        self.projects = Linear(dim_in, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, qk_norm=False) for _ in range(depth))
        self.linear_out = Linear(dim, dim_out)

    def forward(self, x: Tensor, layout: TokenLayout, key_mask: Tensor | None = None) -> Tensor:
        """Tokens of single views [N, T, dim_in] -> [N, T, dim_out]; key_mask [N, T] as in Block."""
        x = self.projects(x).to(x.dtype)  # under autocast blocks add in float32, as those of the trunk do
        for block in self.blocks:
            x = block(x, layout, key_mask)
        with without_autocast(x.device.type):
            return self.linear_out(x)


class CrossAttention(nn.Module):
    """Attention of a few queries at position (0, 0) to tokens at their patch positions."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(dim, dim)
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, layout: TokenLayout, key_mask: Tensor | None = None) -> Tensor:
        """x [B, Q, C], context [B, N, C], key_mask [B, N] -> [B, Q, C]; all processes of a share have the same x."""
        q, k, v = (
            projection(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, t in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        k = rotate(k, rope_table(layout, k.shape[-1], k.device, k.dtype))
        if layout.share is not None:
            out = attend_once(q, k, v, key_mask, layout.share)
        else:
            mask = None if key_mask is None else key_mask[:, None, None]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """x += attention(norm(x), norm(context)); x += mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, eps: float = 1e-6):
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.norm_y = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor, layout: TokenLayout, key_mask: Tensor | None = None) -> Tensor:
        """x [B, Q, C], context [B, N, C] -> [B, Q, C]."""
        x = x + self.cross_attn(self.norm2(x), self.norm_y(context), layout, key_mask)
        return x + self.mlp(self.norm3(x))


class SceneReader(nn.Module):
    """Cross attention of a query token to all tokens of all views of a scene."""

    def __init__(self, dim_in: int, dim: int, heads: int, dim_out: int, depth: int = 5):
        super().__init__()
        self.projects_x = Linear(dim_in, dim)
        self.projects_y = Linear(dim_in, dim)
        self.blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(depth))
        self.linear_out = Linear(dim, dim_out)

    def forward(
        self, query: Tensor, parts: tuple[Tensor, ...], layout: TokenLayout, key_mask: Tensor | None = None
    ) -> Tensor:
        """query [B, 1, dim_in]; parts [B, N, .], concatenated along channels -> [B, 1, dim_out]."""
        x, context = self.projects_x(query), _split_linear(self.projects_y, parts)
        for block in self.blocks:
            x = block(x, context, layout, key_mask)
        return self.linear_out(x)


def _split_linear(linear: nn.Linear, parts: tuple[Tensor, ...]) -> Tensor:
    """linear(cat(parts, -1)) without the concatenation in memory, which only quantised layers need."""
    if type(linear) is not Linear:
        return linear(torch.cat(parts, -1))
    weights = linear.weight.split([p.shape[-1] for p in parts], dim=1)
    out = F.linear(parts[0], weights[0], linear.bias)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out = out + F.linear(part, weight)
    return out
