"""Attention within each view, the replacement for the first global layers in AVGGT and GoToHunt."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, record
from lean3r.attention.dense import softmax_attention
from lean3r.attention.tokens import view_count, without_padding
from lean3r.types import TokenLayout


class FrameLocal(Mechanism):
    """Tokens attend to the tokens of their own view only, with the weights of the layer; cost linear in the views.

    Source: first layers of AVGGT and GoToHunt.
    Time: N · P.
    Use: early global layers only.
    """

    reads_input: ClassVar = False

    def why_not_shared(self) -> str | None:
        """See Mechanism: it never leaves a view."""
        return None

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Dense attention inside each view, [B, H, N, D]."""
        views = view_count(p, layout)
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)

        def split_views(x: Tensor) -> Tensor:
            return x.unflatten(2, (views, layout.tokens)).transpose(1, 2).flatten(0, 1)

        mask = None if p.key_mask is None else p.key_mask.reshape(-1, layout.tokens)
        out = softmax_attention(split_views(q), split_views(k), split_views(p.v), mask)
        record(self, layout, density=1 / views)
        return out.unflatten(0, (-1, views)).transpose(1, 2).flatten(2, 3)
