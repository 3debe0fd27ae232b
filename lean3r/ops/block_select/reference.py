"""Block selection as its definition reads, a chunk of query rows at a time; differentiable by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 1 << 24  # of the score array that exists at a time
LOWEST = torch.finfo(torch.float32).min


def select(
    q: Tensor, k: Tensor, v: Tensor, top_k: int, scale: float, key_mask: Tensor | None, skip: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks [B, H, nq, top_k] that are not in `skip`, out [B, H, nq, D], lse [B, H, nq]; see `block_select`."""
    b, h, nk, _ = k.shape
    attended = torch.ones(b, nk, dtype=torch.bool, device=q.device) if key_mask is None else key_mask
    eligible = attended.clone()
    eligible[:, list(skip)] = False
    rows = max(1, CHUNK_ELEMENTS // max(1, b * h * nk))  # of no batches, too
    chunks = [
        # Recomputed in the backward pass, where the scores of all chunks would otherwise be alive at once.
        checkpoint(_rows, part, k, v, top_k, scale, attended, eligible, use_reentrant=False)
        for part in q.split(rows, dim=2)
    ]
    blocks, out, lse = (torch.cat(parts, dim=2) for parts in zip(*chunks, strict=True))
    return blocks, out, lse


def ordered_bits(x: Tensor) -> Tensor:
    """int32 that sort as the float32 `x` do, -0.0 below +0.0."""
    bits = x.view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _rows(
    q: Tensor, k: Tensor, v: Tensor, top_k: int, scale: float, attended: Tensor, eligible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2)  # [B, H, rows, nk]

    scaled = (scores * scale).masked_fill(~attended[:, None, None], -torch.inf)
    lse = scaled.logsumexp(-1)
    empty = ~attended.any(-1)[:, None, None, None]
    out = scaled.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0) @ v.to(wide)

    ranked = scores.detach().float().nan_to_num(LOWEST, torch.inf, LOWEST)
    ranked = ranked.masked_fill(~eligible[:, None, None], -torch.inf)
    best, order = ordered_bits(ranked).sort(dim=-1, descending=True, stable=True)
    none = int(ordered_bits(torch.tensor(-torch.inf)))
    blocks = order.to(torch.int32).masked_fill(best == none, -1)[..., :top_k]
    return F.pad(blocks, (0, top_k - blocks.shape[-1]), value=-1), out.to(v.dtype), lse.float()
