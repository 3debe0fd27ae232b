"""The trunk: a schedule of blocks that attend within one view ("frame") or across all views ("global")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from lean3r.layers.block import Block, BlockOptions
from lean3r.types import TokenLayout

Role = Literal["frame", "global"]


class Trunk(nn.Module):
    """Blocks in the order of a schedule of roles; other code selects blocks by role and depth, not by class name.

    forward runs blocks [start, stop) over x [B, S, T, C] and returns x with the outputs of the blocks in `keep`.
    """

    BLOCK: ClassVar[type[Block]] = Block
    GLOBAL: ClassVar[type[Block] | None] = None
    """The class of global blocks; None: BLOCK."""

    def __init__(
        self,
        schedule: Sequence[Role],
        dim: int,
        heads: int,
        *,
        roles: Mapping[Role, BlockOptions] | None = None,
        **block: Unpack[BlockOptions],
    ):
        """`block`: options of every Block; `roles`: options that override them for one role."""
        super().__init__()
        self.schedule = tuple(schedule)
        own = roles or {}
        options: dict[Role, BlockOptions] = {role: {**block, **own.get(role, {})} for role in self.schedule}
        self.blocks = nn.ModuleList(self._class(role)(dim, heads, **options[role]) for role in self.schedule)

    def _class(self, role: Role) -> type[Block]:
        return self.GLOBAL or self.BLOCK if role == "global" else self.BLOCK

    def forward(
        self,
        x: Tensor,
        layout: TokenLayout,
        *,
        start: int = 0,
        stop: int | None = None,
        keep: Sequence[int] = (),
        extra: Mapping[int, object] | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return ([B, S, T, C], {index: output of that block}), both in the order of `layout`.

        `extra` has one more argument by block index, for blocks that take it (layers/looped.py, layers/causal.py). The
        blocks see patches window by window if their mechanisms require it.
        """
        batch, views, tokens, dim = x.shape
        last = len(self.blocks) if stop is None else stop
        inner, back = layout, None
        whole = layout.sequence(layout.tokens * views)
        lengths = [whole if role == "global" else layout.tokens for role in self.schedule[start:last]]
        window = window_of(self.blocks[start:last], lengths)
        if window is not None and layout.window is None:
            x, inner, back = order_by_window(x, layout, window)
        mask = key_mask(inner, batch)
        outputs: dict[int, Tensor] = {}
        for index in range(start, last):
            lead, joined = (batch * views, 1) if self.schedule[index] == "frame" else (batch, views)
            role_mask = None if mask is None else mask.reshape(lead, joined * tokens)
            more = (extra[index],) if extra and index in extra else ()
            seen = inner.alone if self.schedule[index] == "frame" else inner
            x = self.blocks[index](x.reshape(lead, joined * tokens, dim), seen, role_mask, *more)
            x = x.reshape(batch, views, tokens, dim)
            if index in keep:
                outputs[index] = x if back is None else x.index_select(2, back)
        if back is not None:
            x = outputs[last - 1] if last - 1 in outputs else x.index_select(2, back)
        return x, outputs


def window_of(blocks: Iterable[nn.Module], tokens: Sequence[int]) -> int | None:
    """The window that most mechanisms of blocks, each on sequences of `tokens`, require; the others reorder tokens
    themselves."""
    windows: Counter[int | None] = Counter()
    for block, count in zip(blocks, tokens, strict=True):
        if isinstance(block, Block):  # not what a removed one leaves
            windows[block.attn.mechanism_for(count).window] += 1
    del windows[None]
    return windows.most_common(1)[0][0] if windows else None


def order_by_window(x: Tensor, layout: TokenLayout, window: int) -> tuple[Tensor, TokenLayout, Tensor]:
    """Reorder row-major x [..., T, C] window by window; returns it, its layout and the index [T] of the way back."""
    inner = replace(layout, window=window)
    order = inner.order(x.device)
    assert order is not None
    if layout.valid is not None:
        inner = replace(inner, valid=layout.valid[..., order])
    first = torch.arange(layout.special, device=x.device)
    order = torch.cat([first, order + layout.special])
    return x.index_select(-2, order), inner, order.argsort()


def key_mask(layout: TokenLayout, batch: int) -> Tensor | None:
    """[B, S, T] bool, False on patches of padding; None when the layout has no padding."""
    if layout.valid is None:
        return None
    special = torch.ones(batch, layout.views, layout.special, dtype=torch.bool, device=layout.valid.device)
    return torch.cat([special, layout.valid], dim=-1)
