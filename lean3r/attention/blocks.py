"""Blocks of neighbouring tokens: padding, pooling, and attention to chosen blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention.dense import softmax_attention
from lean3r.attention.pieces import pieces, write_pieces
from lean3r.ops.block_sparse import KeyValues, block_sparse_attention, rounded_blocks
from lean3r.ops.dispatch import Implementation

Choice = Callable[[slice], Tensor]


def count_blocks(tokens: int, block: int) -> int:
    """Number of blocks for this many tokens; the last one may be partly filled."""
    return -(-tokens // block)


def pad_to_blocks(x: Tensor, block: int) -> Tensor:
    """Append zero rows to x [B, H, N, D] up to a multiple of `block`."""
    missing = -x.shape[2] % block
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def pad_mask(mask: Tensor | None, like: Tensor, block: int, value: bool = False) -> Tensor | None:
    """Extend mask [B, N] by `value`, as `pad_to_blocks` extends `like` [B, H, N, D]; None if it is all True."""
    missing = -like.shape[2] % block
    if mask is None:
        if not missing or value:
            return None
        mask = torch.ones(like.shape[0], like.shape[2], dtype=torch.bool, device=like.device)
    return F.pad(mask, (0, missing), value=value)


def pool_blocks(
    x: Tensor, block: int, mask: Tensor | None = None, pool: Literal["avg", "max"] = "avg"
) -> tuple[Tensor, Tensor | None]:
    """Mean (or maximum) of the real tokens of each block, float32 [B, H, n, D], and a mask [B, n] of blocks with any.

    x [B, H, N, D] is padded by `pad_to_blocks`; mask [B, N] is False on padding. The second result is None without a
    mask. Blocks without a real token are 0.
    """
    parts = x.detach().unflatten(2, (-1, block))
    parts = parts if parts.dtype == torch.float64 else parts.float()
    if mask is None:
        return (parts.mean(3) if pool == "avg" else parts.amax(3)), None
    real = mask.unflatten(1, (-1, block))
    counts = real.sum(2)
    hidden = ~real[:, None, :, :, None]
    if pool == "avg":
        mean = parts.masked_fill(hidden, 0.0).sum(3) / counts[:, None, :, None].clamp_min(1)
        return mean, counts > 0
    empty = (counts == 0)[:, None, :, None]
    return parts.masked_fill(hidden, -torch.inf).amax(3).masked_fill(empty, 0.0), counts > 0


def block_scores(q: Tensor, k: Tensor, usable: Tensor | None) -> Tensor:
    """q k^T of pooled tokens, [B, H, n, m]; -inf for key blocks with False in usable [B, m]."""
    with torch.autocast(q.device.type, enabled=False):
        scores = q @ k.transpose(-1, -2)
    return scores if usable is None else scores.masked_fill(~usable[:, None, None, :], -torch.inf)


def attend_chosen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    choice: Choice | None,
    query_block: int,
    key_block: int,
    key_mask: Tensor | None,
    implementation: Implementation,
    kv: KeyValues = "full",
) -> Tensor:
    """Softmax attention of each query block over the key blocks that choice(slice of query blocks) returns.

    q, k and v [B, H, N, D] are padded by `pad_to_blocks`; key_mask [B, N] is False on keys that are left out; choice
    None chooses every block. Blocks are chosen for a few query blocks at a time, so a table of all pairs never exists.
    kv as in ops/block_sparse.
    """
    if choice is None:
        if kv == "fp8":
            k, v = (rounded_blocks(x, key_block, key_mask) for x in (k, v))
        return softmax_attention(q, k, v, key_mask)

    def attend(rows: slice) -> Tensor:
        with torch.no_grad():
            blocks = choice(slice(rows.start // query_block, rows.stop // query_block))
        return block_sparse_attention(
            q[:, :, rows],
            k,
            v,
            blocks,
            query_block=query_block,
            key_block=key_block,
            key_mask=key_mask,
            kv=kv,
            implementation=implementation,
        )

    each = q.shape[0] * q.shape[1] * (k.shape[2] // key_block)
    some = pieces(q.shape[2] // query_block, each, q.device)
    parts = [slice(part.start * query_block, part.stop * query_block) for part in some]
    if len(parts) == 1:
        return attend(parts[0])
    return torch.cat([attend(part) for part in parts], 2) if torch.is_grad_enabled() else write_pieces(attend, parts)
