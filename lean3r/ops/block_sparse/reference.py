"""Block-sparse attention written out: dense scores, each key weighted by how often its block is listed."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    query_block: int,
    key_block: int,
    scale: float,
    key_mask: Tensor | None,
    dense_keys: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """As `block_sparse_attention`; float32 inside for half types, memory quadratic in the tokens."""
    kind = torch.promote_types(q.dtype, torch.float32)
    weight = _times_listed(blocks, k.shape[2] // key_block, kind)
    weight = weight.repeat_interleave(query_block, 2).repeat_interleave(key_block, 3)  # [B, H, Nq, Nk]
    if key_mask is not None:
        weight = weight * key_mask[:, None, None, :]
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
    if dense_keys is not None:
        k, v = torch.cat([k, dense_keys[0]], 2), torch.cat([v, dense_keys[1]], 2)
        weight = torch.cat([weight, weight.new_ones(*weight.shape[:3], dense_keys[0].shape[2])], 3)

    broken = q.isnan().any(-1, keepdim=True)
    scores = (q.masked_fill(broken, 0).to(kind) * scale) @ k.to(kind).transpose(-1, -2)
    scores = scores.masked_fill(weight == 0, -torch.inf)
    if scores.shape[-1]:
        highest = scores.detach().amax(-1, keepdim=True)
        scores = scores - highest.masked_fill(highest == -torch.inf, 0)
    shares = weight * scores.exp()
    total = shares.sum(-1, keepdim=True)
    out = shares @ v.to(kind) / total.masked_fill(total == 0, 1)
    return out.masked_fill(broken & (total > 0), torch.nan).to(q.dtype)


def _times_listed(blocks: Tensor, key_blocks: int, kind: torch.dtype) -> Tensor:
    """[B, H, nq, nk]: how often each query block lists each key block."""
    known = (blocks >= 0) & (blocks < key_blocks)
    # Skipped entries are counted in one column too many, which is cut off.
    index = blocks.long().masked_fill(~known, key_blocks)
    counts = torch.zeros(*blocks.shape[:3], key_blocks + 1, dtype=kind, device=blocks.device)
    return counts.scatter_add_(-1, index, torch.ones_like(index, dtype=kind))[..., :key_blocks]
