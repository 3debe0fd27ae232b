"""Block-sparse attention as torch.export records it: each head whole, for any number of blocks.

A head gathers the listed blocks of all its queries at once: K * key_block keys and values for each block of queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = torch.finfo(torch.float32).min


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
    """As `block_sparse_attention`."""
    batch, heads, _, dim = q.shape
    count, listed = k.shape[2] // key_block, blocks.shape[3]
    if key_mask is None:
        key_mask = torch.ones_like(k[:, 0, :, 0], dtype=torch.bool)
    # One block more for each scene, which nobody sees: what entries that are skipped stand for.
    counts = F.pad(key_mask.unflatten(1, (-1, key_block)), (0, 0, 0, 1)).flatten(0, 1)
    first = torch.arange(batch, device=q.device)[:, None, None] * (count + 1)
    known = (blocks >= 0) & (blocks < count)
    hidden = ~key_mask[:, :, None]
    outs = []
    for h in range(heads):
        index = (blocks[:, h].long().where(known[:, h], count) + first).flatten()
        keys, values = (
            F.pad(x[:, h].masked_fill(hidden, 0).unflatten(1, (-1, key_block)), (0, 0, 0, 0, 0, 1))
            .flatten(0, 1)
            .index_select(0, index)
            .view(-1, listed * key_block, dim)
            for x in (k, v)
        )
        queries = q[:, h].reshape(-1, query_block, dim)
        seen = counts.index_select(0, index).view(-1, 1, listed * key_block)
        near = (queries @ keys.mT * scale).masked_fill(~seen, LOWEST)
        highest = near.amax(-1, keepdim=True).unflatten(0, (batch, -1)).flatten(1, 2)
        far = None
        if dense_keys is not None:  # not gathered, all queries see them: [B, Nq, E]
            far = q[:, h] @ dense_keys[0][:, h].mT * scale
            highest = highest.maximum(far.amax(-1, keepdim=True))
        near = (near - highest.view(-1, query_block, 1)).exp() * seen
        mixed, total = (x.unflatten(0, (batch, -1)).flatten(1, 2) for x in (near @ values, near.sum(-1, keepdim=True)))
        if dense_keys is not None and far is not None:
            far = (far - highest).exp()
            mixed, total = mixed + far @ dense_keys[1][:, h], total + far.sum(-1, keepdim=True)
        outs.append(mixed / total.clamp_min(torch.finfo(total.dtype).tiny))
    return torch.stack(outs, 1)
