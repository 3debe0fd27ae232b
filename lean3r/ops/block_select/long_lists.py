"""The best keys of every query, for lists longer than a program can sort: scores by products, a few rows at a time.

As in the kernel, the k best keys lie in the k groups with the highest maxima, so that only these are ranked. Scores
and indices form integers that no two keys share; ties then need no thought.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.ops.block_select.reference import LOWEST, ordered_bits

_BYTES = 1 << 30  # of scores and integers that exist at a time
_BYTES_EACH = 40  # for each score: float32, its bits, the integer, and what adding and ranking them takes
_LAST = 0x7FFFFFFF
_NOTHING = -(0x7F800000) - 1  # ordered_bits of -inf


def best_keys(q: Tensor, k: Tensor, state: Tensor | None, top_k: int) -> Tensor:
    """Blocks [B, H, nq, top_k] int32 for q [B, H, nq, D] and k [B, H, nk, D], as in `block_select`.

    state int8 [B, nk] is 2 on keys that may be chosen (None: all). Float32 inputs are multiplied at torch's matmul
    precision.
    """
    (batch, heads, count, _), keys = q.shape, k.shape[2]
    group = math.ceil(math.sqrt(keys / top_k))
    pad = -keys % group
    index = _LAST - torch.arange(keys + pad, device=q.device)
    blocks = torch.full((batch, heads, count, top_k), -1, dtype=torch.int32, device=q.device)
    rows = max(1, _BYTES // (_BYTES_EACH * (keys + pad)))
    for b in range(batch):
        hidden = torch.arange(keys + pad, device=q.device) >= keys
        if state is not None:
            hidden |= F.pad(state[b] < 2, (0, pad))
        for h in range(heads):
            key = F.pad(k[b, h].float(), (0, 0, 0, pad)).mT
            for start in range(0, count, rows):
                scores = (q[b, h, start : start + rows].float() @ key).nan_to_num_(LOWEST, torch.inf, LOWEST)
                ranked = (ordered_bits(scores.masked_fill_(hidden, -torch.inf)).long() << 32) | index
                groups = ranked.unflatten(1, (-1, group))
                if groups.shape[1] > top_k:
                    best = (_LAST - (groups.amax(2).topk(top_k).values & _LAST)) // group
                    ranked = groups.gather(1, best[:, :, None].expand(-1, -1, group)).flatten(1)
                best = ranked.topk(min(top_k, keys)).values
                chosen = (_LAST - (best & _LAST)).int().masked_fill_(best >> 32 == _NOTHING, -1)
                blocks[b, h, start : start + rows, : chosen.shape[1]] = chosen
    return blocks
