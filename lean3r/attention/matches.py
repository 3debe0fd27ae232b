"""The best matches of a patch in every view: SAF3R's pattern for heads that find correspondences."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, record
from lean3r.attention.dense import softmax_attention
from lean3r.attention.pieces import pieces, write_pieces
from lean3r.attention.settings import check_count, check_flag, format_settings
from lean3r.attention.tokens import view_count, without_padding
from lean3r.ops.block_sparse import block_sparse_attention
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout


@torch.no_grad()
def best_matches(q: Tensor, k: Tensor, layout: TokenLayout, count: int, key_mask: Tensor | None) -> Tensor:
    """Tokens [B, H, patches of all views, views * count] that each patch matches best, `count` in every view; -1: none.

    q and k [B, H, N, D] after norm and rotation; key_mask [B, N] is False on padding. Special tokens match nothing.
    """
    views, special = q.shape[2] // layout.tokens, layout.special
    first = torch.arange(views, device=q.device)[:, None] * layout.tokens + special
    patches, keys = (x.float().unflatten(2, (views, -1))[:, :, :, special:].flatten(2, 3) for x in (q, k))
    hidden = None if key_mask is None else ~key_mask.unflatten(1, (views, -1))[:, None, None, :, special:]

    def choose(part: slice) -> Tensor:
        with without_autocast(q.device.type):  # in bfloat16, most scores of alike patches would be equal
            scores = (patches[:, :, part] @ keys.transpose(2, 3)).unflatten(3, (views, -1))
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        best = scores.topk(count, dim=-1)
        return (best.indices + first).masked_fill(best.values == -torch.inf, -1).to(torch.int32).flatten(3)

    each = len(q) * q.shape[1] * keys.shape[2]
    return write_pieces(choose, list(pieces(patches.shape[2], each, q.device)))


class Matches(Mechanism):
    """A patch attends to the `per_view` patches of every view with the highest scores, its own view's included.

    Special tokens attend to everything, and everything attends to them. If `shared`, the first head of the call chooses
    for all. With `per_view` of all patches this is dense attention.

    Source: SAF3R, arXiv 2607.03612, "dino_topk" as released: chosen by queries and keys, not by encoder features.
    Time: N² for the choice, of one head if `shared`; N · views · per_view.
    Use: no training; single heads, in plans of a calibration by heads.
    """

    reads_input: ClassVar = False
    COMPLETE: ClassVar = ({"per_view": 2000},)
    SMALL: ClassVar = ({"per_view": 1}, {"per_view": 2, "shared": True})

    def __init__(self, per_view: int = 4, *, shared: bool = False):
        super().__init__()
        self.per_view = check_count("per_view", per_view)
        self.shared = check_flag("shared", shared)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return format_settings(self, "per_view", "shared")

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Attention of patches to their matches, and of special tokens to everything, [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        if not layout.patches:
            return softmax_attention(q, k, p.v, p.key_mask)
        views, special, count = view_count(p, layout), layout.special, min(self.per_view, layout.patches)
        choosing = slice(0, 1) if self.shared else slice(None)
        listed = best_matches(q[:, choosing], k[:, choosing], layout, count, p.key_mask)
        token = torch.arange(q.shape[2], device=q.device, dtype=torch.int32).unflatten(0, (views, -1))
        always = token[:, :special].flatten().expand(len(q), -1)
        if p.key_mask is not None:
            always = always.masked_fill(~p.key_mask[:, always[0].long()], -1)
        always = always[:, None, None].expand(*listed.shape[:3], -1)
        listed = torch.cat([always, listed], -1).expand(-1, q.shape[1], -1, -1)
        tokens = q.shape[2]
        density = (special / layout.tokens) + (layout.patches / layout.tokens) * listed.shape[3] / tokens
        record(self, layout, density=density, keys=listed)
        in_views = q.unflatten(2, (views, -1))
        near = block_sparse_attention(
            in_views[:, :, :, special:].flatten(2, 3), k, p.v, listed, query_block=1, key_block=1, key_mask=p.key_mask
        ).unflatten(2, (views, -1))
        if not special:
            return near.flatten(2, 3)
        far = softmax_attention(in_views[:, :, :, :special].flatten(2, 3), k, p.v, p.key_mask)
        return torch.cat([far.unflatten(2, (views, -1)), near], 3).flatten(2, 3)
