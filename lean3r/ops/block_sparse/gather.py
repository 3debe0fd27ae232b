"""Block-sparse attention by gathering the listed blocks, a few query blocks at a time, in bounded memory.

Small pieces win twice: the gathered keys and values stay in the cache between the copy and the two products, and
the buffers are reused. The products then run at the speed of large ones, so that nothing is left to gain from
sharing copies between neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lean3r.ops.dispatch import has_fast_bfloat16
from lean3r.ops.repeats import pieces_of

_CPU_BYTES = 1 << 20  # gathered at once for each thread: half of a core's second-level cache
_DEVICE_BYTES = 256 << 20
_LANES = 16  # keys below which torch's fused kernel may give 0 for a query that holds NaN
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


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
    """As `block_sparse_attention`; half types are multiplied in float32, bfloat16 as it is on CPUs that do so natively,
    with float32 sums; the backward pass computes scores anew, in float32.

    Memory beyond inputs and output: a few MB on a CPU and copies of one head. Gradients of keys are added in the
    order of the lists, so they repeat exactly on a CPU.
    """
    key_blocks = k.shape[2] // key_block
    blocks = blocks.masked_fill((blocks < 0) | (blocks >= key_blocks), -1)
    filled = (blocks >= 0).flatten(0, -2).any(0)
    if filled.any() and not filled.all():
        blocks = blocks[..., filled]
    if dense_keys is not None and not dense_keys[0].shape[2]:
        dense_keys = None
    if not q.shape[2] or (dense_keys is None and not (k.shape[2] and blocks.shape[-1])):
        return q.masked_fill(torch.ones((), dtype=torch.bool, device=q.device), 0)
    if key_mask is not None and key_mask.all():
        key_mask = None
    return _Gathered.apply(q, k, v, *(dense_keys or (None, None)), blocks, query_block, key_block, scale, key_mask)


def _append(
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    key_block: int,
    key_mask: Tensor | None,
    dense_k: Tensor,
    dense_v: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Dense keys as further key blocks that every list names."""
    batch, keys, extra = k.shape[0], k.shape[2], dense_k.shape[2]
    added = -(-extra // key_block)
    pad = added * key_block - extra
    if pad or key_mask is not None:
        if key_mask is None:
            key_mask = torch.ones(batch, keys, dtype=torch.bool, device=k.device)
        key_mask = torch.cat([key_mask, key_mask.new_ones(batch, extra), key_mask.new_zeros(batch, pad)], 1)
    filler = k.new_zeros(*k.shape[:2], pad, k.shape[3])
    first = keys // key_block
    named = torch.arange(first, first + added, dtype=blocks.dtype, device=blocks.device)
    blocks = torch.cat([blocks, named.expand(*blocks.shape[:3], added)], 3)
    k, v = (torch.cat([old, new, filler], 2) for old, new in zip((k, v), (dense_k, dense_v), strict=True))
    return k, v, blocks, key_mask


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense_k: Tensor | None,
        dense_v: Tensor | None,
        blocks: Tensor,
        query_block: int,
        key_block: int,
        scale: float,
        key_mask: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, dense_k, dense_v, blocks, key_mask)
        ctx.settings = (query_block, key_block, scale)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if q.device.type != "cpu":
            if dense_k is not None and dense_v is not None:
                k, v, blocks, key_mask = _append(k, v, blocks, key_block, key_mask, dense_k, dense_v)
            for head in _heads(q, k, v, blocks, query_block, key_block, scale, key_mask):
                result = out[head.at].view(head.q.shape)
                for piece, shares, _, values in head.pieces():
                    result[piece] = torch.bmm(shares, values)
            return out
        kind = q.dtype if q.dtype == torch.bfloat16 and has_fast_bfloat16() else None
        for head in _heads(q, k, v, blocks, query_block, key_block, scale, key_mask, kind):
            result = out[head.at].view(head.q.shape)
            lse = head.attend(result)
            if dense_k is not None and dense_v is not None:
                _mix_in(result, lse, head.q, dense_k[head.at], dense_v[head.at], scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, dense_k, dense_v, blocks, key_mask = ctx.saved_tensors
        query_block, key_block, scale = ctx.settings
        keys, extra = k.shape[2], 0
        if dense_k is not None:
            extra = dense_k.shape[2]
            k, v, blocks, key_mask = _append(k, v, blocks, key_block, key_mask, dense_k, dense_v)
        grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v)]
        with torch.autocast(q.device.type, enabled=False):
            for head in _heads(q, k, v, blocks, query_block, key_block, scale, key_mask):
                for whole, part in zip(grads, head.gradients(grad[head.at].to(head.q.dtype)), strict=True):
                    whole[head.at] = part
        dense = [g[:, :, keys : keys + extra] if extra else None for g in grads[1:]]
        return (grads[0], *(g[:, :, :keys] for g in grads[1:]), *dense, *(None,) * 5)


def _mix_in(mixed: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """Let `mixed`, attention of q [nq, query_block, D] with denominators lse, see k and v [E, D] too, in place."""
    dense, dense_lse = _flash(*(x.to(q.dtype).contiguous()[None, None] for x in (q.flatten(0, 1), k, v)), scale=scale)
    share = (dense_lse.view(lse.shape) - lse).sigmoid_()[..., None]
    mixed.copy_(mixed.to(lse.dtype).lerp_(dense.view(q.shape).to(lse.dtype), share))


def _heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    query_block: int,
    key_block: int,
    scale: float,
    key_mask: Tensor | None,
    kind: torch.dtype | None = None,
) -> Iterator[_Head]:
    """One head after the other, in the type `kind` of the arithmetic (None: float32, or that of q if it is wider)."""
    kind = kind or torch.promote_types(q.dtype, torch.float32)
    dim, key_blocks = q.shape[-1], k.shape[2] // key_block
    listed = torch.where(blocks < 0, key_blocks, blocks.long())
    gaps = bool((blocks < 0).any())
    for b in range(q.shape[0]):
        hidden = torch.zeros(key_blocks + 1, key_block, dtype=torch.bool, device=q.device)
        hidden[-1] = True
        if key_mask is not None:
            hidden[:-1] = ~key_mask[b].view(-1, key_block)
        bias = torch.zeros(hidden.shape, dtype=kind, device=q.device).masked_fill_(hidden, -torch.inf)
        for h in pieces_of(range(q.shape[1])):
            at = (b, h)
            keys, values = k[at].to(kind), v[at].to(kind)
            if key_mask is not None:
                keys, values = (x.masked_fill(~key_mask[b][:, None], 0) for x in (keys, values))
            yield _Head(
                at,
                q[at].to(kind).reshape(-1, query_block, dim),
                keys.reshape(-1, key_block * dim),
                values.reshape(-1, key_block * dim),
                listed[at],
                bias if gaps or key_mask is not None else None,
                scale,
            )


@dataclass(frozen=True)
class _Head:
    """One head: q [nq, query_block, D]; k, v [nk, key_block * D]; listed [nq, K], nk for none.

    bias [nk + 1, key_block] holds -inf for keys that do not count and in its last row; None when all keys count.
    """

    at: tuple[int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    listed: Tensor
    bias: Tensor | None
    scale: float

    def attend(self, out: Tensor) -> Tensor:
        """Write attention to out [nq, query_block, D], on a CPU; return the logarithm of its denominators.

        Where there is nothing to attend to, these are zeros and -inf.
        """
        (count, _, dim), listed = self.q.shape, self.listed.shape[1]
        lse = self.q.new_full(self.q.shape[:2], -torch.inf, dtype=torch.promote_types(self.q.dtype, torch.float32))
        if not listed or not len(self.k):
            out.zero_()
            return lse
        size = max(1, min(count, _CPU_BYTES * torch.get_num_threads() // (2 * listed * self.k[0].nbytes)))
        buffers = [self.k.new_empty(size * listed, self.k.shape[1]) for _ in range(2)]
        # Cut once: a slice costs as much as a small product.
        lists, queries = self.listed.reshape(-1).split(size * listed), self.q[:, None].split(size)
        outs, heights = out[:, None].split(size), lse[:, None].split(size)
        for i in pieces_of(range(len(queries))):
            index, c = lists[i], len(queries[i])
            rows = index if self.bias is None else index.clamp(max=len(self.k) - 1)
            keys, values = (
                torch.index_select(table, 0, rows, out=buffer[: c * listed]).view(c, 1, -1, dim)
                for table, buffer in zip((self.k, self.v), buffers, strict=True)
            )
            bias = None if self.bias is None else self.bias[index].view(c, 1, 1, -1)
            mixed, height = _flash(queries[i], keys, values, attn_mask=bias, scale=self.scale)
            outs[i].copy_(mixed)
            heights[i].copy_(height)
        if listed * self.k.shape[1] // dim < _LANES:
            broken = self.q.isnan().any(-1)
            out[broken] = lse[broken] = torch.nan
        if self.empty is not None:
            out[self.empty] = 0
            lse[self.empty] = -torch.inf
        return lse

    @property
    def empty(self) -> Tensor | None:
        """Query blocks with nothing to attend to, [nq]; None if there are none for certain."""
        return None if self.bias is None else (self.bias == 0).sum(1)[self.listed].sum(1) == 0

    def pieces(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """A slice of the query blocks, their shares [c, query_block, S], and keys and values [c, S, D].

        The three tensors are buffers, overwritten by the next piece. Shares sum to one, or to zero where there is
        nothing to attend to.
        """
        (count, rows, dim), listed = self.q.shape, self.listed.shape[1]
        span = listed * self.k.shape[1] // dim
        budget = _CPU_BYTES * torch.get_num_threads() if self.q.device.type == "cpu" else _DEVICE_BYTES
        size = max(1, min(count, budget // (2 * span * dim * self.q.element_size())))
        keys, values = (self.k.new_empty(size * listed, self.k.shape[1]) for _ in range(2))
        scores = self.q.new_empty(size, rows, span)
        last = self.k.shape[0] - 1
        empty = self.empty
        for start in pieces_of(range(0, count, size)):
            piece = slice(start, min(start + size, count))
            c = piece.stop - start
            index, s = self.listed[piece].reshape(-1), scores[:c]
            near, seen = (
                torch.index_select(table, 0, index.clamp(max=last), out=buffer[: c * listed]).view(c, span, dim)
                for table, buffer in ((self.k, keys), (self.v, values))
            )
            torch.bmm(self.q[piece], near.transpose(1, 2), out=s).mul_(self.scale)
            if self.bias is None or empty is None:
                torch.softmax(s, -1, out=s)
            else:
                # Adding infinities is several times faster here than filling by a mask.
                s += self.bias[index].view(c, 1, span)
                torch.softmax(s, -1, out=s)
                s[empty[piece]] = 0
            yield piece, s, near, seen

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients [N, D] of q, k and v for the gradient [Nq, D] of this head's output."""
        dim = grad.shape[-1]
        broken = self.q.isnan().any(-1, keepdim=True)
        head = replace(self, q=self.q.masked_fill(broken, 0))
        grad = grad.reshape(self.q.shape).masked_fill(broken, 0)
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (self.q, self.k, self.v))
        width = self.k.shape[1]
        for piece, shares, near, seen in head.pieces():
            index = self.listed[piece].reshape(-1).clamp(max=self.k.shape[0] - 1)
            g = grad[piece]
            change = torch.bmm(g, seen.transpose(1, 2))
            # Keys and values are done with as soon as they are used, and their buffers serve the gradients.
            grad_v.index_add_(0, index, torch.bmm(shares.transpose(1, 2), g, out=seen).view(-1, width))
            change = change.sub_((change * shares).sum(-1, keepdim=True)).mul_(shares)
            torch.bmm(change.mul_(self.scale), near, out=grad_q[piece])
            grad_k.index_add_(0, index, torch.bmm(change.transpose(1, 2), head.q[piece], out=near).view(-1, width))
        return grad_q.view(-1, dim), grad_k.view(-1, dim), grad_v.view(-1, dim)
