"""The parts of the kernels' backward pass that torch itself does well."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG2_E = math.log2(math.e)
_BYTES = 256 << 20  # of scores between queries and dense keys at a time


def listed_by(blocks: Tensor, key_blocks: int) -> tuple[Tensor, Tensor]:
    """Which query blocks list each key block: starts [B * H, nk + 1] into query blocks [B * H, nq * K], int32."""
    batch, heads, count, listed = blocks.shape
    flat = blocks.view(batch * heads, count * listed)
    starts = flat.new_empty(batch * heads, key_blocks + 1)
    listing = torch.empty_like(flat)
    bounds = torch.arange(key_blocks + 1, dtype=torch.int32, device=blocks.device)
    for head, row in enumerate(flat):  # one head at a time bounds the memory of the sort
        ordered, origin = row.masked_fill((row < 0) | (row >= key_blocks), key_blocks).sort(stable=True)
        torch.searchsorted(ordered, bounds, out_int32=True, out=starts[head])
        listing[head] = origin // listed
    return starts, listing


def dense_key_gradients(
    q: Tensor, extra_k: Tensor, extra_v: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values [B, H, E, D] that every query sees: plain products over slices of the queries.

    lse (base 2) and delta are [B, H, Nq]; queries with an infinite lse count nowhere, whatever they hold.
    """
    keys, values = extra_k.float(), extra_v.float()
    grad_k, grad_v = torch.zeros_like(keys), torch.zeros_like(values)
    rows = max(16, _BYTES // (4 * max(1, keys[..., 0].numel())))
    for start in range(0, q.shape[2], rows):
        at = slice(start, start + rows)
        counts = (lse[:, :, at] != torch.inf)[..., None]
        query, g = (x[:, :, at].float().masked_fill(~counts, 0) for x in (q, grad))
        shares = torch.exp2(query @ keys.mT * (scale * _LOG2_E) - lse[:, :, at, None])
        grad_v += shares.mT @ g
        change = shares * (g @ values.mT - delta[:, :, at, None])
        grad_k += change.mT @ query
    return (grad_k * scale).to(extra_k.dtype), grad_v.to(extra_v.dtype)
