"""The best members of listed groups in plain torch, some groups at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.ops.repeats import pieces_of

CPU_PIECE = 1 << 20  # numbers of keys at once, which fit into the cache: several times faster
DEVICE_PIECE = 1 << 26


def rank_by_group(q: Tensor, k: Tensor, lists: Tensor, names: Tensor, usable: Tensor, top_k: int) -> Tensor:
    """See `rank_listed`."""
    batch, heads, groups, size, dim = q.shape
    listed = lists.shape[-1] * size
    step = max(1, (CPU_PIECE if q.device.type == "cpu" else DEVICE_PIECE) // max(1, listed * dim))
    out = torch.full((batch, heads, groups * size, top_k), -1, dtype=torch.int32, device=q.device)
    lowest = torch.finfo(torch.float32).min
    with torch.autocast(q.device.type, enabled=False):
        for b in range(batch):
            bias = torch.zeros(usable[b].shape, device=q.device).masked_fill_(~usable[b], -torch.inf)
            for h in pieces_of(range(heads)):
                queries, keys = q[b, h].float(), k[b, h].float().flatten(1)
                for start in range(0, groups, step):
                    part = slice(start, min(start + step, groups))
                    near = lists[b, h, part].long()
                    at = near.clamp_min(0)
                    score = torch.bmm(queries[part], keys[at].view(len(at), listed, dim).mT).clamp_(min=lowest)
                    score.nan_to_num_(lowest, torch.inf, -torch.inf)
                    absent = bias[at].masked_fill((near < 0)[..., None], -torch.inf).flatten(1)
                    best = (score + absent[:, None]).topk(min(top_k, listed))
                    found = names[at].flatten(1)[:, None].expand(-1, size, -1).gather(2, best.indices)
                    found = found.masked_fill(best.values == -torch.inf, -1).flatten(0, 1)
                    out[b, h, part.start * size : part.stop * size, : found.shape[1]] = found.to(torch.int32)
    return out
