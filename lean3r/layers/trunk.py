"""The trunk: a schedule of blocks that look inside one view ("frame") or across all views ("global")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lean3r.layers.block import Block
from lean3r.types import TokenLayout

Role = Literal["frame", "global"]


class Trunk(nn.Module):
    """Blocks after a schedule of roles; other code aims at roles and depth, never at class names.

    forward runs blocks [start, stop) over x [B, S, T, C] and returns x with the outputs of the blocks in `keep`.
    """

    def __init__(
        self,
        schedule: Sequence[Role],
        dim: int,
        heads: int,
        *,
        roles: Mapping[Role, Mapping[str, Any]] | None = None,
        **block: Any,
    ):
        """`block` are the options of every Block, `roles` those that one role has of its own."""
        super().__init__()
        self.schedule = tuple(schedule)
        options = {role: {**block, **(roles or {}).get(role, {})} for role in self.schedule}
        self.blocks = nn.ModuleList(Block(dim, heads, **options[role]) for role in self.schedule)

    def forward(
        self, x: Tensor, layout: TokenLayout, *, start: int = 0, stop: int | None = None, keep: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return ([B, S, T, C], {index: output of that block})."""
        batch, views, tokens, dim = x.shape
        mask = key_mask(layout, batch)
        kept: dict[int, Tensor] = {}
        for index in range(start, len(self.blocks) if stop is None else stop):
            lead = batch * views if self.schedule[index] == "frame" else batch
            role_mask = None if mask is None else mask.reshape(lead, -1)
            x = self.blocks[index](x.reshape(lead, -1, dim), layout, role_mask).reshape(batch, views, tokens, dim)
            if index in keep:
                kept[index] = x
        return x, kept


def key_mask(layout: TokenLayout, batch: int) -> Tensor | None:
    """[B, S, T] bool, False on patches of padding; None when the layout has no padding."""
    if layout.valid is None:
        return None
    special = torch.ones(batch, layout.views, layout.special, dtype=torch.bool, device=layout.valid.device)
    return torch.cat([special, layout.valid], dim=-1)
