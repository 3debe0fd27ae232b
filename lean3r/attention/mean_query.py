"""Keys that one query, the mean of all, chooses for every query: SAF3R's pattern for heads that read few keys."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, record
from lean3r.attention.dense import softmax_attention
from lean3r.attention.settings import check_share, format_settings
from lean3r.attention.tokens import without_padding
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout


def best_keys(q: Tensor, k: Tensor, keep: float, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys [B, H, K], ascending, and which of them count [B, H, K] bool: the `keep` share with the highest mean score.

    q and k [B, H, N, D] after norm and rotation; key_mask [B, N] is False on padding. Products are linear, so the score
    of the mean query is the mean of all queries' scores. Equal scores go to the lower index.
    """
    q, k = q.detach().float(), k.detach().float()
    if key_mask is None:
        mean, counts = q.mean(2, keepdim=True), torch.full((len(q),), k.shape[2], device=k.device)
    else:
        counts = key_mask.sum(1)
        mean = q.masked_fill(~key_mask[:, None, :, None], 0).sum(2, keepdim=True) / counts[:, None, None, None]
    with without_autocast(k.device.type):
        scores = (k @ mean.transpose(2, 3))[..., 0]
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None], -torch.inf)
    kept = (keep * counts).ceil().clamp(min=1)
    most = max(1, math.ceil(keep * k.shape[2])) if key_mask is None else int(kept.max())
    index = scores.sort(dim=2, descending=True, stable=True).indices[..., :most]
    counting = torch.arange(most, device=k.device) < kept[:, None, None]
    index, order = index.sort(2)
    return index, counting.expand(index.shape).gather(2, order)


class MeanQuery(Mechanism):
    """All queries of a head attend to the same keys: the `keep` share with the highest scores for the mean query.

    Special tokens and views have no privilege: what no mean query asks for is lost to everyone. With `keep` 1 this is
    dense attention.

    Source: SAF3R, arXiv 2607.03612, "q_probe".
    Time: keep · N².
    Use: no training; single heads, in plans of a calibration by heads.
    """

    reads_input: ClassVar = False
    COMPLETE: ClassVar = ({"keep": 1.0},)
    SMALL: ClassVar = ({"keep": 0.3},)

    def __init__(self, keep: float = 0.1):
        super().__init__()
        self.keep = check_share("keep", keep, positive=True)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return format_settings(self, "keep")

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Attention to the chosen keys, [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        index, counting = best_keys(q, k, self.keep, p.key_mask)
        record(self, layout, density=lambda: counting.sum(2) / k.shape[2], keys=index)
        at = index[..., None].expand(-1, -1, -1, k.shape[3])
        # Each head has its own keys, and so its own mask: heads become scenes.
        q, k, v = (x.flatten(0, 1)[:, None] for x in (q, k.gather(2, at), p.v.gather(2, at)))
        mask = None if p.key_mask is None else counting.flatten(0, 1)
        return softmax_attention(q, k, v, mask)[:, 0].unflatten(0, p.v.shape[:2])
