"""Block selection in a few passes over chunks that stay in the cache: the path for CPUs.

Scores are computed transposed, [keys, rows], so that maxima over groups of neighbouring keys, exponentials and sums
run along the rows. The top k keys lie in the k groups with the largest maxima (ties: the earlier group), since every
group in front of a key's own holds a key in front of it. So only sqrt(nk k) maxima and as many candidates are sorted
instead of nk scores, as 64-bit integers of score and index, which no two keys share: ties come out right by
themselves, which torch.topk on scores does not promise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.ops.block_select.reference import LOWEST, ordered_bits
from lean3r.ops.repeats import pieces_of

_CHUNK_ELEMENTS = 1 << 19  # of scores for each thread: two such arrays fit into a core's share of the cache
_MIN_ROWS = 16
_DIRECT = 8  # keys for each wanted one, up to which all are sorted directly
_LOW = 0x7FFFFFFF
_NOTHING = -(0x7F800000) - 1  # ordered_bits of -inf


def select(
    q: Tensor, k: Tensor, v: Tensor, top_k: int, scale: float, key_mask: Tensor | None, skip: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks [B, H, nq, top_k] that are not in `skip`, out [B, H, nq, D], lse [B, H, nq]; see `block_select`."""
    return _Select.apply(q, k, v, top_k, scale, key_mask, list(skip))


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, top_k: int, scale: float, key_mask: Tensor | None, skip: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        spread = k.shape[2] / max(top_k, 1)
        group = math.ceil(math.sqrt(spread)) if spread > _DIRECT else 1
        qs, ks, vs, hidden = _flat(q, k, v, key_mask, multiple=group)
        blocks = torch.empty(*qs.shape[:2], top_k, dtype=torch.int32, device=q.device)
        out, lse = torch.empty_like(qs), qs.new_empty(qs.shape[:2])
        for heads, rows in _chunks(qs, ks):
            scores = ks[heads] @ qs[heads, rows].mT  # [heads, keys, rows]
            # From here on -inf marks what does not count; a NaN stays.
            scores.clamp_(min=LOWEST)
            if hidden is not None:
                scores.masked_fill_(hidden[heads, :, None], -torch.inf)
            maxima = _maxima(scores, group)
            highest = maxima.amax(1, keepdim=True).clamp_(min=LOWEST)
            weights = torch.add(highest * -scale, scores, alpha=scale).exp_()
            total = weights.sum(1)
            lse[heads, rows] = total.log() + highest[:, 0] * scale
            out[heads, rows] = (weights.mT @ vs[heads]).div_(total.masked_fill(total == 0, 1)[..., None])
            if top_k:
                blocks[heads, rows] = _best(scores, maxima, group, top_k, skip)
        blocks, out, lse = (t.unflatten(0, q.shape[:2]) for t in (blocks, out, lse))
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, out, lse, key_mask)
        ctx.scale = scale
        ctx.mark_non_differentiable(blocks)
        return blocks, out, lse

    @staticmethod
    def backward(ctx, _: Tensor, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, key_mask = ctx.saved_tensors
        qs, ks, vs, hidden = _flat(q, k, v, key_mask)
        grad_outs = grad_out.float().flatten(0, 1)
        # d loss / d score = weight (grad_out . v - grad_out . out + grad_lse)
        shift = (grad_lse - (grad_out.float() * out.float()).sum(-1)).flatten(0, 1)
        lses = lse.flatten(0, 1)
        lses = lses.masked_fill(lses == -torch.inf, 0)
        grads = torch.zeros_like(qs), torch.zeros_like(ks), torch.zeros_like(vs)
        for heads, rows in _chunks(qs, ks):
            scores = ks[heads] @ qs[heads, rows].mT
            if hidden is not None:
                scores.masked_fill_(hidden[heads, :, None], -torch.inf)
            weights = torch.add(-lses[heads, None, rows], scores, alpha=ctx.scale).exp_()
            slope = vs[heads] @ grad_outs[heads, rows].mT
            slope.add_(shift[heads, None, rows]).mul_(weights).mul_(ctx.scale)
            grads[0][heads, rows] = slope.mT @ ks[heads]
            grads[1][heads] += slope @ qs[heads, rows]
            grads[2][heads] += weights @ grad_outs[heads, rows]
        return *(g.unflatten(0, q.shape[:2]).to(q.dtype) for g in grads), None, None, None, None


def _flat(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, multiple: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """float32 [B H, N, D], keys padded to a multiple, and [B H, keys] True on what is not attended (None: nothing)."""
    nk = k.shape[2]
    padding = -nk % multiple
    qs, ks, vs = (t.float().flatten(0, 1) for t in (q, k, v))
    hidden = None
    if key_mask is not None:
        hidden = F.pad(~key_mask, (0, padding), value=True).repeat_interleave(q.shape[1], 0)
    elif padding:
        hidden = (torch.arange(nk + padding, device=q.device) >= nk).expand(len(qs), -1)
    return qs, F.pad(ks, (0, 0, 0, padding)), F.pad(vs, (0, 0, 0, padding)), hidden


def _chunks(qs: Tensor, ks: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and of rows whose scores fit into the cache."""
    elements = _CHUNK_ELEMENTS * torch.get_num_threads()
    rows = min(max(1, qs.shape[1]), max(_MIN_ROWS, elements // ks.shape[1]))
    heads = max(1, elements // (rows * ks.shape[1])) if rows == qs.shape[1] else 1
    for head in pieces_of(range(0, len(qs), heads)):
        for row in pieces_of(range(0, qs.shape[1], rows)):
            yield slice(head, head + heads), slice(row, row + rows)


def _maxima(scores: Tensor, group: int) -> Tensor:
    """[heads, keys, rows] -> [heads, keys / group, rows], over runs of neighbouring keys."""
    return scores.unflatten(1, (-1, group)).amax(2)


def _best(scores: Tensor, maxima: Tensor, group: int, top_k: int, skip: list[int]) -> Tensor:
    """Indices [heads, rows, top_k] int32 of the best keys, -1 past the last that counts. Changes `scores`."""
    if skip:
        scores[:, skip] = -torch.inf
        maxima = _maxima(scores, group)
    if maxima.isnan().any():
        scores.nan_to_num_(LOWEST, torch.inf, -torch.inf)
        maxima = _maxima(scores, group)
    values, index = scores, torch.arange(scores.shape[1], device=scores.device)[:, None]
    if group > 1 and maxima.shape[1] > top_k:
        groups = _LOW - (_pack(maxima, index[: maxima.shape[1]]).topk(top_k).values & _LOW)
        index = (groups.mT[:, :, None] * group + index[:group]).flatten(1, 2)
        values = scores.gather(1, index)
    best = _pack(values, index).topk(min(top_k, values.shape[1])).values
    blocks = (_LOW - (best & _LOW)).to(torch.int32).masked_fill(best >> 32 == _NOTHING, -1)
    return F.pad(blocks, (0, top_k - blocks.shape[-1]), value=-1)


def _pack(values: Tensor, index: Tensor) -> Tensor:
    """[heads, n, rows] scores and indices -> [heads, rows, n] int64 that sort by score, then by the lower index."""
    return ((ordered_bits(values).long() << 32) | (_LOW - index)).mT.contiguous()
