"""The parts of the kernels' backward pass that torch itself does well."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG2_E = math.log2(math.e)
_BYTES = 256 << 20  # of scores between queries and dense keys at a time
_ENTRIES = 1 << 24  # of lists that are sorted at a time


@dataclass(frozen=True)
class Listing:
    """Which query blocks list each of the nk key blocks, in pieces of at most `most`; all int32.

    starts [B * H, nk + 1] into query blocks [B * H, nq * K]. The first piece of a key block belongs to its program;
    the others have `room` places of their own for partial sums: slots [B * H, nk + 1] into these, and their
    key blocks, owners [B * H, room], nk where there is none.
    """

    starts: Tensor
    query_blocks: Tensor
    most: int
    slots: Tensor
    owners: Tensor

    @property
    def room(self) -> int:
        """Places for partial sums of a head."""
        return self.owners.shape[1]


def listed_by(blocks: Tensor, key_blocks: int, least: int) -> Listing:
    """Lists [B, H, nq, K] turned round. Pieces hold `least` query blocks, more where key blocks are listed more often.

    A key block that all queries list would keep one program busy long after all others are done.
    """
    batch, heads, count, listed = blocks.shape
    flat = blocks.view(batch * heads, count * listed)
    starts = flat.new_empty(batch * heads, key_blocks + 1)
    query_blocks = torch.empty_like(flat)
    bounds = torch.arange(key_blocks + 1, dtype=torch.int32, device=blocks.device)
    step = max(1, _ENTRIES // max(1, flat.shape[1]))
    for head in range(0, len(flat), step):  # a few heads at a time bound the memory of the sort
        some = flat[head : head + step]
        ordered, origin = some.masked_fill((some < 0) | (some >= key_blocks), key_blocks).sort(stable=True)
        starts[head : head + step] = torch.searchsorted(ordered, bounds.expand(len(some), -1).contiguous())
        query_blocks[head : head + step] = origin // listed
    # At least twice the mean, so that partial sums take at most half the room of the gradients.
    most = max(least, -(-2 * flat.shape[1] // max(1, key_blocks)))
    slots = F.pad(((starts.diff(dim=1) - 1).clamp_min(0) // most).cumsum(1, dtype=torch.int32), (1, 0))
    places = torch.arange(flat.shape[1] // most, dtype=torch.int32, device=blocks.device)
    owners = torch.searchsorted(slots[:, 1:].contiguous(), places.expand(len(flat), -1).contiguous(), right=True)
    return Listing(starts, query_blocks, most, slots, owners.int())


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
