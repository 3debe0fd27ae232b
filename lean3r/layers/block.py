"""The pre-norm transformer block."""

from __future__ import annotations

from typing import ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from lean3r.layers.attention import Rotation, SelfAttention
from lean3r.layers.linear import norm_for
from lean3r.layers.mlp import feed_forward
from lean3r.ops import residual
from lean3r.ops.fp8 import Rows
from lean3r.ops.residual import in_one_kernel
from lean3r.tracing import is_traced
from lean3r.types import TokenLayout

MLP_ELEMENTS = 1 << 24  # input elements per MLP call without gradients; the hidden layer is 4 times wider


class LayerScale(nn.Module):
    """A learned factor per channel of a branch."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        """x * gamma."""
        return x * self.gamma


class BlockOptions(TypedDict, total=False):
    """Options of a Block besides its width and number of heads."""

    mlp_ratio: float
    qk_norm: bool
    rope: Rotation
    layer_scale: float | None
    eps: float
    mlp: Literal["gelu", "swiglu"]


class Block(nn.Module):
    """x += ls1(attn(norm1(x))); x += ls2(mlp(norm2(x))). layer_scale None omits ls1 and ls2."""

    ATTENTION: ClassVar[type[SelfAttention]] = SelfAttention

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        rope: Rotation = True,
        layer_scale: float | None = None,
        eps: float = 1e-6,
        mlp: Literal["gelu", "swiglu"] = "gelu",
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = self.ATTENTION(dim, heads, qk_norm=qk_norm, rope=rope)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = feed_forward(mlp, dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, layout: TokenLayout, key_mask: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return self.feed(add_scaled(x, self.ls1, self.attn(self.normed(x, layout), layout, key_mask)))

    def normed(self, x: Tensor, layout: TokenLayout) -> Tensor | Rows:
        """norm1(x) as the attention wants it; of a share as numbers: its length says nothing of the mechanism."""
        return norm_for(self.attn, self.norm1, x) if layout.share is None else self.norm1(x)

    def feed(self, x: Tensor) -> Tensor:
        """The second half, x + ls2(mlp(norm2(x))): [B, N, C] -> [B, N, C]; without gradients x may be overwritten."""
        if torch.is_grad_enabled() or is_traced() or x.numel() <= MLP_ELEMENTS:
            return add_scaled(x, self.ls2, self.mlp(norm_for(self.mlp, self.norm2, x)))
        rows = x.flatten(0, 1)  # a copy where batches do not follow one another in memory
        for part in rows.split(max(1, MLP_ELEMENTS // x.shape[-1])):
            add_scaled(part, self.ls2, self.mlp(norm_for(self.mlp, self.norm2, part)), out=part)
        return rows.view(x.shape)


def add_scaled(x: Tensor, scale: nn.Module, branch: Tensor, out: Tensor | None = None) -> Tensor:
    """x + scale(branch); with a LayerScale in one pass over memory, unless hooks want to see its result."""
    plain = type(scale) in (LayerScale, nn.Identity) and not (scale._forward_hooks or scale._forward_pre_hooks)
    gamma = scale.gamma if isinstance(scale, LayerScale) else None
    if plain and x.shape == branch.shape and in_one_kernel(x):
        return residual.add_scaled(x, branch, gamma, out=out)
    if plain and gamma is not None:
        return torch.addcmul(x, branch, gamma, out=out)
    return torch.add(x, scale(branch), out=out)
