"""Attention between frames in order: a frame sees what a `Sight` shows it, of this call or of a cache."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention.dense import by_gathered_keys, softmax_attention
from lean3r.group import Share
from lean3r.layers.attention import SelfAttention
from lean3r.layers.block import Block, add_scaled
from lean3r.layers.frames import FrameTable
from lean3r.layers.linear import norm_for
from lean3r.layers.rope import in_one_pass, norm_and_rotate_pairs, rope_table, rotate
from lean3r.layers.time_rope import TimeRope
from lean3r.layers.trunk import Trunk
from lean3r.ops.fp8 import Rows
from lean3r.tracing import is_traced
from lean3r.types import TokenLayout


class Sight(Protocol):
    """What the frames of one call see in one attention layer; `rope` has their places in time."""

    rope: TimeRope

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> Tensor:
        """q, k, v [B, H, S * T, D] of the call's frames, normed and rotated -> [B, H, S * T, D]."""
        ...


class FrameSight:
    """All frames of a sequence in one call: each sees what its row of a table says; `memory` counts memory tokens.

    With a `share`, the frames of the call are those of one process, and those that they see come from all.
    """

    def __init__(self, table: FrameTable, memory: int, share: Share | None = None):
        self.table = table
        self.memory = memory
        self.share = share
        self._mask: Tensor | None = None
        if is_traced():
            self.first, self.rope = 0, TimeRope(table.times)
            return
        self.first, frames = (0, len(table.times)) if share is None else (share.first, share.count)
        self.rope = TimeRope(table.times[self.first : self.first + frames].tolist())
        self._rows = [
            (full.nonzero().flatten().tolist(), some.nonzero().flatten().tolist())
            for full, some in zip(table.full, table.memory, strict=True)
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> Tensor:
        """See Sight. Rows that see the same frames, the anchors', are one product."""
        if self.share is None:
            return self._attend(q, k, v, key_mask, layout.tokens)
        return by_gathered_keys(q, k, v, key_mask, self.share, self._attend, tokens=layout.tokens)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, tokens: int) -> Tensor:
        if is_traced():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self._by_tokens(tokens))
        frames, first = self.rope.count, self.first
        if tokens == 1:
            seen = (self.table.full | self.table.memory)[first : first + frames].to(q.device)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        mask = None if key_mask is None else key_mask[:, None, :, None]
        parts, start = [], 0
        while start < frames:
            stop = start + 1
            while stop < frames and self._rows[first + stop] == self._rows[first + start]:
                stop += 1
            keys, values = (self._seen(x, first + start, tokens) for x in (k, v))
            shown = None if mask is None else self._seen(mask, first + start, tokens)[:, 0, :, 0]
            parts.append(softmax_attention(q[:, :, start * tokens : stop * tokens], keys, values, shown))
            start = stop
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    def _by_tokens(self, tokens: int) -> Tensor:
        """Which token sees which, [S * T, S * T]; made once."""
        if self._mask is None:
            frames, kept = self.rope.count, torch.arange(tokens) < self.memory
            seen = self.table.full[:, None, :, None] | (self.table.memory[:, None, :, None] & kept)
            self._mask = seen.expand(-1, tokens, -1, -1).reshape(frames * tokens, frames * tokens)
        return self._mask

    def _seen(self, x: Tensor, row: int, tokens: int) -> Tensor:
        """The tokens of x [B, H, S * T, D] that a row of the table sees."""
        full, memory = self._rows[row]
        if not memory and full == list(range(len(full))):
            return x[:, :, : len(full) * tokens]
        by_frame = x.unflatten(2, (-1, tokens))
        return torch.cat([*(by_frame[:, :, f] for f in full), *(by_frame[:, :, f, : self.memory] for f in memory)], 2)


class CausalAttention(SelfAttention):
    """Self-attention that sees what a sight shows; `rope` "time" rotates by time, row and column.

    Without a sight it is plain attention between the tokens of the call.
    """

    fixed: ClassVar = "it sees frames in order, from a cache"

    def forward(
        self, x: Tensor | Rows, layout: TokenLayout, key_mask: Tensor | None = None, sight: Sight | None = None
    ) -> Tensor:
        """[B, N, C] -> [B, N, C]; key_mask [B, N] is False on padding."""
        if sight is None:
            return super().forward(x, layout, key_mask)
        q, k, v = self.project(x)
        if self.rope == "time":
            turns, one_pass = sight.rope.table(layout, q.shape[-1], q.device), in_one_pass(q, self.q_norm, self.k_norm)
            turn = partial(norm_and_rotate_pairs, table=turns, dtype=v.dtype, one_pass=one_pass)
            q, k = turn(q, self.q_norm), turn(k, self.k_norm)
        else:
            q, k = self.q_norm(q), self.k_norm(k)
            if self.rope:
                turns = rope_table(layout, q.shape[-1], q.device, q.dtype)
                q, k = rotate(q, turns), rotate(k, turns)
            q, k = q.to(v.dtype), k.to(v.dtype)
        out = sight.attend(q, k, v, layout, key_mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class CausalBlock(Block):
    """A Block with causal attention."""

    ATTENTION = CausalAttention

    def forward(
        self, x: Tensor, layout: TokenLayout, key_mask: Tensor | None = None, sight: Sight | None = None
    ) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        attended = self.attn(norm_for(self.attn, self.norm1, x), layout, key_mask, sight)
        return self.feed(add_scaled(x, self.ls1, attended))


class CausalTrunk(Trunk):
    """A trunk whose global blocks take a sight."""

    GLOBAL = CausalBlock
