"""Self-attention with an exchangeable mechanism: qkv, norm, rotation, mechanism, projection."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lean3r.attention.base import Mechanism, Projected
from lean3r.attention.dense import Dense
from lean3r.layers.linear import Linear, TakesRows, takes_rows
from lean3r.layers.rope import (
    in_one_pass,
    norm_and_rotate,
    norm_rotate_pool,
    position_table,
    rope_positions,
    rope_table,
)
from lean3r.ops.fp8 import Rows
from lean3r.types import TokenLayout

Rotation = bool | Literal["flat", "time"]


class SelfAttention(TakesRows, nn.Module):
    """Multi-head self-attention over [B, N, C], N = (number of views) x layout.tokens, views one after another.

    The layout of the fused qkv output is (3, heads, head_dim). With `qk_norm`, q and k are normalised over head_dim
    (affine, shared by all heads). With `rope` they are then rotated by row and column; "flat" places all patches of
    all views at row 1, column 1, so that positions distinguish patches only from special tokens. If `short` is set,
    this mechanism processes sequences of fewer than `dense_below` tokens.

    `fixed` says why the mechanism cannot be exchanged, if so; only layers/causal.py knows the rotation "time".
    """

    fixed: ClassVar[str | None] = None

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = True, rope: Rotation = True):
        super().__init__()
        if dim % heads or (rope and (dim // heads) % 4):
            each = "a multiple of 4 channels" if rope else "the same number of channels"
            raise ValueError(f"got width {dim} and {heads} heads; each head must have {each}")
        self.heads = heads
        self.rope = rope
        head_dim = dim // heads
        self.qkv = Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim) if qk_norm else nn.Identity()
        self.mechanism: Mechanism = Dense()
        self.short: Mechanism | None = None
        self.dense_below = 0
        self.proj = Linear(dim, dim)

    def extra_repr(self) -> str:
        """Text for repr(model)."""
        return f"dense_below={self.dense_below}" if self.short is not None else ""

    def mechanism_for(self, tokens: int) -> Mechanism:
        """The mechanism that processes sequences of this many tokens."""
        return self.short if self.short is not None and tokens < self.dense_below else self.mechanism

    def takes_rows(self, x: Tensor) -> bool:
        """See TakesRows. Mechanisms that read the block's input want its numbers."""
        return not self.mechanism_for(x.shape[1]).reads_input and takes_rows(self.qkv, x)

    def takes_half(self, x: Tensor) -> bool:
        """See TakesRows."""
        mechanism = self.mechanism_for(x.shape[1])
        return mechanism.multiplies_input or not mechanism.reads_input

    def forward(self, x: Tensor | Rows, layout: TokenLayout, key_mask: Tensor | None = None) -> Tensor:
        """[B, N, C] -> [B, N, C]; key_mask [B, N] is False on padding."""
        q, k, v = self.project(x)
        if isinstance(x, Rows):
            x = x.codes.view(torch.uint8)
        tokens = layout.sequence(q.shape[2])
        flat, one_pass = self.rope == "flat", in_one_pass(q, self.q_norm, self.k_norm)

        def table_of(positions: Tensor | None) -> tuple[Tensor, Tensor] | None:
            if not self.rope:
                return None
            if positions is not None:
                return position_table(positions, q.shape[-1], v.dtype)
            return rope_table(layout, q.shape[-1], q.device, v.dtype, flat=flat)

        def finish(q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
            turn = partial(norm_and_rotate, table=table_of(positions), dtype=v.dtype, one_pass=one_pass)
            return turn(q, self.q_norm), turn(k, self.k_norm)

        def finish_and_pool(q: Tensor, k: Tensor, window: int) -> tuple[tuple[Tensor, Tensor], ...]:
            sizes = (table_of(None), v.dtype, layout.tokens, layout.special, window)
            return norm_rotate_pool(q, self.q_norm, *sizes), norm_rotate_pool(k, self.k_norm, *sizes)

        positions = rope_positions(layout, x.device, flat=flat) if self.rope else None
        pools = finish_and_pool if one_pass else None
        out = self.mechanism_for(tokens)(Projected(x, q, k, v, finish, key_mask, positions, pools), layout)
        return self.proj(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor | Rows) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C] -> q, k and v [B, H, N, D], before norm and rotation."""
        qkv = self.qkv(x)
        batch, tokens, dim = *qkv.shape[:2], qkv.shape[2] // 3
        q, k, v = qkv.reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v
