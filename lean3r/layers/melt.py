"""One row of keys and values for all loops of a looped block, instead of one a loop.

Source: MELT (arXiv 2605.07721). A token keeps one latent row, rewritten at each loop through an element-wise gate;
keys and values come from it, so that what a stream keeps of past tokens does not grow with the number of loops. Tokens
come in chunks: a chunk sees the final rows of earlier chunks at every loop, and its own as they are now. Not given by
the source, and chosen here: the row of the first loop is the input itself, so that loop is an ordinary layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from lean3r.attention.dense import softmax_attention
from lean3r.layers.attention import SelfAttention
from lean3r.layers.block import BlockOptions
from lean3r.layers.looped import LoopedTrunk, ScaledBlock
from lean3r.layers.rope import rope_table, rotate
from lean3r.layers.trunk import Role
from lean3r.types import TokenLayout

Rule = Literal["gated", "diagonal", "mean", "last", "average"]
NEW = 0.2  # share of the new input in the moving average

Pair = tuple[Tensor, Tensor]


class SharedRow(nn.Module):
    """The latent row h_t of a token from its input x_t and h_{t-1}.

    "gated": z h_{t-1} + (1 - z) x_t with z = sigmoid(x_t W + h_{t-1} U + b), full matrices; "diagonal": they are
    vectors; "mean" of all inputs so far, "last" input, moving "average" with a share NEW of the new one.
    """

    def __init__(self, dim: int, rule: Rule):
        super().__init__()
        self.rule: Rule = rule
        if rule in ("gated", "diagonal"):
            shape = (dim, dim) if rule == "gated" else (dim,)
            self.of_input, self.of_row = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
            self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, row: Tensor | None, loop: int) -> Tensor:
        """x_t and h_{t-1} [..., C] -> h_t [..., C] at loop 0, 1, ...; without a row it is x."""
        if row is None or self.rule == "last":
            return x
        if self.rule == "mean":
            return row + (x - row) / (loop + 1)
        if self.rule == "average":
            return row + NEW * (x - row)
        if self.rule == "gated":
            gate = (x @ self.of_input + row @ self.of_row + self.bias).sigmoid()
        else:
            gate = (x * self.of_input + row * self.of_row + self.bias).sigmoid()
        return gate * row + (1 - gate) * x


@dataclass
class LoopMemory:
    """Keys and values [B, H, N, D] of past chunks in one looped block, and the state of the current chunk.

    `alpha` is the share of the shared row in keys and values: 0 is a cache for each loop, 1 the shared row alone; in
    between, in training, both are kept. `outputs` are the attention outputs of the current chunk, loop by loop.
    """

    alpha: float = 1.0
    by_loop: list[Pair] = field(default_factory=list)
    shared: Pair | None = None
    outputs: list[Tensor] = field(default_factory=list)
    _row: Tensor | None = None
    _now: list[Pair] = field(default_factory=list)
    _final: Pair | None = None

    @property
    def bytes(self) -> int:
        """Bytes that are kept of past chunks."""
        pairs = [*self.by_loop, *([] if self.shared is None else [self.shared])]
        return sum(t.untyped_storage().nbytes() for pair in pairs for t in pair)

    def row(self, rule: SharedRow, x: Tensor) -> Tensor:
        """The latent row of this loop for inputs x [B, N, C]."""
        row = self._row = rule(x, self._row, len(self._now))
        return row

    def attend(self, q: Tensor, own: Pair, row: Pair | None) -> Tensor:
        """Queries [B, H, N, D] over past and current keys and values, `own` of this loop's input, `row` of its row."""
        loop = len(self._now)
        self._now.append(own)
        self._final = row
        past = self.by_loop[loop] if self.by_loop else None
        sides = []
        for i in range(2):
            x = own[i] if past is None else torch.cat([past[i], own[i]], 2)
            if row is not None:
                latent = row[i] if self.shared is None else torch.cat([self.shared[i], row[i]], 2)
                x = latent if self.alpha == 1 else self.alpha * latent + (1 - self.alpha) * x
            sides.append(x)
        out = softmax_attention(q, *sides)
        self.outputs.append(out)
        return out

    def end(self) -> None:
        """The chunk is done: keep what later chunks see of it."""
        if self.alpha < 1:
            past = self.by_loop or [None] * len(self._now)
            self.by_loop = [_joined(old, new) for old, new in zip(past, self._now, strict=True)]
        if self._final is not None:
            self.shared = _joined(self.shared, self._final)
        self._row, self._now, self._final, self.outputs = None, [], None, []


def _joined(old: Pair | None, new: Pair) -> Pair:
    if old is None:
        return new[0].contiguous(), new[1].contiguous()
    return torch.cat([old[0], new[0]], 2), torch.cat([old[1], new[1]], 2)


class MeltAttention(SelfAttention):
    """Self-attention whose keys and values of past chunks come from a memory."""

    fixed = "it sees frames in order, from a cache"

    def recall(self, x: Tensor, row: Tensor | None, layout: TokenLayout, memory: LoopMemory) -> Tensor:
        """Normed inputs x [B, N, C], and their latent rows -> [B, N, C]."""
        q, *own = self._heads(x, layout)
        shared = None if row is None else self._heads(row, layout)[1:]
        out = memory.attend(q, (own[0], own[1]), None if shared is None else (shared[0], shared[1]))
        return self.proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.project(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            turns = rope_table(layout, q.shape[-1], q.device, q.dtype)
            q, k = rotate(q, turns), rotate(k, turns)
        return q.to(v.dtype), k.to(v.dtype), v


class MeltBlock(ScaledBlock):
    """A looped block with a memory of past chunks; without one it is a ScaledBlock."""

    ATTENTION = MeltAttention

    def __init__(self, dim: int, heads: int, **block: Unpack[BlockOptions]):
        super().__init__(dim, heads, **block)
        self.row = SharedRow(dim, "gated")

    def forward(
        self,
        x: Tensor,
        layout: TokenLayout,
        key_mask: Tensor | None = None,
        scales: Tensor | tuple[Tensor, LoopMemory] | None = None,
    ) -> Tensor:
        """[B, N, C] -> [B, N, C]; `scales` as those of ScaledBlock, alone or with the memory."""
        if not isinstance(scales, tuple):
            return super().forward(x, layout, key_mask, scales)
        (attention, mlp, state), memory = scales
        assert isinstance(self.attn, MeltAttention) and key_mask is None
        normed = self.norm1(x)
        row = memory.row(self.row, normed) if memory.alpha > 0 else None
        x = x + attention * self.ls1(self.attn.recall(normed, row, layout, memory))
        return state * (x + mlp * self.ls2(self.mlp(self.norm2(x))))


class MeltTrunk(LoopedTrunk):
    """A looped trunk whose global blocks take a memory."""

    GLOBAL = MeltBlock

    def __init__(
        self,
        schedule: tuple[Role, ...],
        dim: int,
        heads: int,
        *,
        looped_from: int = 0,
        rule: Rule = "gated",
        **block: Unpack[BlockOptions],
    ):
        super().__init__(schedule, dim, heads, looped_from=looped_from, **block)
        for each in self.blocks:
            if isinstance(each, MeltBlock):
                each.row = SharedRow(dim, rule)

    def pass_with(
        self, x: Tensor, layout: TokenLayout, step: tuple[float, float], memory: dict[int, LoopMemory]
    ) -> Tensor:
        """As `one_pass`, with the memory of each global block by its index."""
        extra: dict[int, object] = {}
        for index, scale in enumerate(self.scales):
            at = self.looped_from + index
            extra[at] = (scale(step), memory[at]) if at in memory else scale(step)
        return self(x, layout, start=self.looped_from, extra=extra)[0]


def is_gate(name: str) -> bool:
    """Whether a parameter of this name belongs to a gate, which learns faster."""
    return ".row." in f".{name}"
