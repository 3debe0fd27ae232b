"""Several mechanisms in one layer, each for some of its heads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lean3r.attention import ATTENTION
from lean3r.attention.base import Mechanism, Projected
from lean3r.attention.dense import Dense
from lean3r.attention.settings import format_settings
from lean3r.errors import UsageError
from lean3r.types import TokenLayout

Group = tuple[Sequence[int], str, Mapping[str, object]]


class PerHead(Mechanism):
    """Each of `groups` is (heads, mechanism, settings), one call for all of its heads; other heads are dense.

    Heads count from 0. Mechanisms need no training: they have no parameters. Each group reports its own density.

    Source: the groups; SAF3R, arXiv 2607.03612, for a pattern for each head.
    Time: the sum of the groups, each by its share of the heads.
    Use: no training, plans of a calibration by heads.
    """

    COMPLETE: ClassVar = (
        {"groups": (((0,), "kv_prune", {"frames": 1, "query_merge": 1}),)},
        {"groups": (((0,), "frame_subset", {"frames": 25}),)},
    )
    SMALL: ClassVar = (
        {"groups": (((0,), "kv_prune", {"frames": 2, "query_merge": 1}),)},
        {"groups": (((0,), "block_sparse", {"query_block": 4, "key_block": 4, "sparsity": 0.5, "window": 2}),)},
    )

    def __init__(self, heads: int, groups: Sequence[Group] = ()):
        super().__init__()
        named = [head for some, _, _ in groups for head in some]
        if len(set(named)) < len(named) or not set(named) <= set(range(heads)):
            raise UsageError(f"groups name the heads {named}; expected each of 0 to {heads - 1} once at most")
        self.groups = groups
        for _, name, _ in groups:
            if "heads" in inspect.signature(ATTENTION.get(name)).parameters:
                raise UsageError(f"{name} cannot be one of several; expected a mechanism without parameters")
        self.mechanisms = nn.ModuleList(ATTENTION.get(name)(**settings) for _, name, settings in groups)
        self.heads = [list(some) for some, _, _ in groups]
        left = [head for head in range(heads) if head not in named]
        if left:
            self.heads.append(left)
            self.mechanisms.append(Dense())
        self.window = next((m.window for m in self.mechanisms if isinstance(m, Mechanism) and m.window), None)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return format_settings(self, "groups")

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Each head as its mechanism does, [B, H, N, D]."""
        out = torch.empty_like(p.v)
        for heads, mechanism in zip(self.heads, self.mechanisms, strict=True):
            part = replace(p, q=p.q[:, heads], k=p.k[:, heads], v=p.v[:, heads])
            out[:, heads] = mechanism(part, layout)
        return out
