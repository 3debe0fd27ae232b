"""Block-sparse attention in Triton, forward and backward, without atomics.

Forward and the gradient of q: one program serves a group of neighbouring query blocks. It walks through the union of
their lists, so that keys which neighbours share are loaded once, and weights every score by how often the row's own
list names the block. Gradients of k and v: one program a key block, which walks through the query blocks that list it;
what exceeds a piece, other programs sum up before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from lean3r.ops.block_sparse.gradients import dense_key_gradients, listed_by
from lean3r.ops.tiles import (
    GROUP_KEYS,
    LOG2_E,
    PRUNE,
    absorb,
    absorb_all,
    configs,
    constants,
    group_constants,
    keys_of_union,
    last_dim_dense,
    launch,
    load,
    place,
    unions,
)


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
    """As `block_sparse_attention`; products in q's type (float32: at torch's matmul precision), sums in float32.

    Beside inputs and output: 12 bytes for each listed block, 4 for each query, and twice that in the backward pass.
    """
    extra_k, extra_v = dense_keys if dense_keys is not None else (None, None)
    return _Attend.apply(q, k, v, extra_k, extra_v, blocks, query_block, key_block, scale, key_mask)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_k: Tensor | None,
        extra_v: Tensor | None,
        blocks: Tensor,
        query_block: int,
        key_block: int,
        scale: float,
        key_mask: Tensor | None,
    ) -> Tensor:
        q, k, v = (last_dim_dense(x) for x in (q, k, v))
        extra_k, extra_v = (None if x is None else x.contiguous() for x in (extra_k, extra_v))
        blocks = blocks.to(torch.int32).contiguous()
        key_mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
        union = unions(blocks, query_block, k.shape[2] // key_block)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        sizes = (blocks.shape[3], query_block, key_block, scale)
        _on_groups(_forward, (out, lse), q, k, v, extra_k, extra_v, union, key_mask, *sizes)
        ctx.save_for_backward(q, k, v, extra_k, extra_v, blocks, key_mask, out, lse, *union)
        ctx.settings = (query_block, key_block, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, extra_k, extra_v, blocks, key_mask, out, lse, *union = ctx.saved_tensors
        query_block, key_block, scale = ctx.settings
        grad = grad.contiguous()
        # Rows that attend to nothing have an infinite lse; rows that hold NaN join them and count nowhere.
        lse = lse.masked_fill(lse.isnan(), torch.inf)
        delta = (out.float() * grad).sum(-1).masked_fill_(lse == torch.inf, 0)
        grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        sizes = (blocks.shape[3], query_block, key_block, scale)
        _on_groups(_grad_q, (grad_q, grad, lse, delta), q, k, v, extra_k, extra_v, union, key_mask, *sizes)

        grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
        _grad_keys(grad_k, grad_v, q, k, v, grad, lse, delta, blocks, key_mask, query_block, key_block, scale)
        extra = (None, None)
        if extra_k is not None and extra_v is not None:
            extra = dense_key_gradients(q, extra_k, extra_v, grad, lse, delta, scale)
        return (grad_q, grad_k, grad_v, *extra, *(None,) * 5)


def _grad_keys(
    grad_k: Tensor,
    grad_v: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    blocks: Tensor,
    key_mask: Tensor | None,
    query_block: int,
    key_block: int,
    scale: float,
) -> None:
    """Write the gradients of k and v: partial sums of the key blocks that are listed most often, then everything."""
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    listing = listed_by(blocks, keys // key_block, max(1, _PIECE // query_block))
    rest = [grad.new_empty(batch * heads, listing.room, key_block, dim, dtype=torch.float32) for _ in range(2)]
    for tiles, partial in ((listing.room, True), (keys // key_block, False)):
        launch(
            *(_grad_kv, tiles * batch * heads, q, k, v, grad, lse, delta, grad_k, grad_v, *rest),
            *(listing.starts, listing.query_blocks, listing.slots, listing.owners, q if key_mask is None else key_mask),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            *(heads, queries, keys, listing.query_blocks.shape[1], listing.room, listing.most, scale),
            **constants(dim, q.dtype, query_block, key_block),
            HAS_MASK=key_mask is not None,
            PARTIAL=partial,
            ROWS=triton.next_power_of_2(key_block),
        )


def _on_groups(
    kernel: triton.runtime.Autotuner,
    results: tuple[Tensor, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    union: tuple[Tensor, Tensor, Tensor] | list[Tensor],
    key_mask: Tensor | None,
    listed: int,
    query_block: int,
    key_block: int,
    scale: float,
) -> None:
    """Launch a kernel whose programs serve groups of query blocks."""
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    groups, size = union[0].shape[1:]
    extras = 0 if extra_k is None else extra_k.shape[2]
    launch(
        *(kernel, groups * batch * heads),
        *(q, k, v, *results, *union, q if key_mask is None else key_mask),
        *(k if extra_k is None else extra_k, v if extra_v is None else extra_v),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
        *(heads, queries, keys, extras, scale),
        **constants(dim, q.dtype, query_block, key_block),
        HAS_MASK=key_mask is not None,
        HAS_EXTRA=extras > 0,
        **group_constants(query_block, listed, size),
    )


_PIECE = 4096  # queries that one program of the gradients of keys walks through
_BLOCK_KEYS = ["QUERY_BLOCK", "KEY_BLOCK", "DIM", "HAS_MASK", "PRECISION"]


@triton.autotune(configs(), key=GROUP_KEYS, prune_configs_by=PRUNE)
@triton.jit
def _forward(
    q, k, v, out, lse, union, counts, lengths, key_mask, extra_k, extra_v,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, queries, keys, extras, scale,
    D: tl.constexpr, DIM: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_EXTRA: tl.constexpr, MEMBERS: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    FIELD: tl.constexpr = (1 << BITS) - 1
    groups = tl.cdiv(queries, MEMBERS * QUERY_BLOCK)
    tile, both = place(groups)
    batch, head = both // heads, both % heads
    group = both * groups + tile
    union += group * SIZE
    counts += group * SIZE
    length = tl.load(lengths + group)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    scale_log2 = scale * LOG2_E

    m = tl.arange(0, ROWS)
    row = tile.to(tl.int64) * (MEMBERS * QUERY_BLOCK) + m
    present = (m < MEMBERS * QUERY_BLOCK) & (row < queries)
    shift = m // QUERY_BLOCK * BITS
    query = load(q + batch * q_batch + head * q_head, row, q_row, present, D, DIM)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, DIM), tl.float32)
    if HAS_EXTRA:
        offset = both * extras * D
        top, total, mixed = absorb_all(
            query, extra_k + offset, extra_v + offset, extras, top, total, mixed, scale_log2, D, DIM, LANES, PRECISION
        )
    for start in range(0, length * KEY_BLOCK, LANES):
        at, valid, weight = keys_of_union(
            union, counts, length, start, key_mask + batch * keys, shift, FIELD, KEY_BLOCK, LANES, HAS_MASK
        )
        key = load(k, at, k_row, valid, D, DIM)
        value = load(v, at, v_row, valid, D, DIM)
        top, total, mixed = absorb(query, key, value, weight, top, total, mixed, scale_log2, PRECISION)

    nothing = total == 0
    mixed = mixed / tl.where(nothing, 1.0, total)[:, None]
    dim = tl.arange(0, DIM)
    target = out + (both * queries + row)[:, None] * D + dim[None, :]
    tl.store(target, mixed.to(out.dtype.element_ty), mask=present[:, None] & (dim < D)[None, :])
    tl.store(
        lse + both * queries + row,
        tl.where(nothing, float("inf"), top + tl.log2(tl.where(nothing, 1.0, total))),
        mask=present,
    )


@triton.jit
def _change(query, key, value, weight, g, norm, delta, scale_log2, PRECISION: tl.constexpr):
    """Gradient of the scores, [ROWS, LANES]."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale_log2
    share = tl.exp2(tl.where(weight > 0, score, float("-inf")) - norm[:, None]) * weight
    return share * (tl.dot(g, tl.trans(value), input_precision=PRECISION) - delta[:, None])


@triton.autotune(configs(), key=GROUP_KEYS, prune_configs_by=PRUNE)
@triton.jit
def _grad_q(
    q, k, v, grad_q, grad, lse, delta, union, counts, lengths, key_mask, extra_k, extra_v,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, queries, keys, extras, scale,
    D: tl.constexpr, DIM: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_EXTRA: tl.constexpr, MEMBERS: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    FIELD: tl.constexpr = (1 << BITS) - 1
    groups = tl.cdiv(queries, MEMBERS * QUERY_BLOCK)
    tile, both = place(groups)
    batch, head = both // heads, both % heads
    group = both * groups + tile
    union += group * SIZE
    counts += group * SIZE
    length = tl.load(lengths + group)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    scale_log2 = scale * LOG2_E

    m = tl.arange(0, ROWS)
    row = tile.to(tl.int64) * (MEMBERS * QUERY_BLOCK) + m
    present = (m < MEMBERS * QUERY_BLOCK) & (row < queries)
    shift = m // QUERY_BLOCK * BITS
    norm = tl.load(lse + both * queries + row, mask=present, other=float("inf"))
    counting = norm != float("inf")
    query = load(q + batch * q_batch + head * q_head, row, q_row, counting, D, DIM)
    g = load(grad + both * queries * D, row, D, counting, D, DIM)
    mean = tl.load(delta + both * queries + row, mask=counting, other=0.0)
    change_q = tl.zeros((ROWS, DIM), tl.float32)
    if HAS_EXTRA:
        for start in range(0, extras, LANES):
            at = start + tl.arange(0, LANES)
            key = load(extra_k + both * extras * D, at, D, at < extras, D, DIM)
            value = load(extra_v + both * extras * D, at, D, at < extras, D, DIM)
            weight = (at < extras).to(tl.int32)[None, :] + tl.zeros((ROWS, LANES), tl.int32)
            change = _change(query, key, value, weight, g, norm, mean, scale_log2, PRECISION)
            change_q += tl.dot(change.to(key.dtype), key, input_precision=PRECISION)
    for start in range(0, length * KEY_BLOCK, LANES):
        at, valid, weight = keys_of_union(
            union, counts, length, start, key_mask + batch * keys, shift, FIELD, KEY_BLOCK, LANES, HAS_MASK
        )
        key = load(k, at, k_row, valid, D, DIM)
        value = load(v, at, v_row, valid, D, DIM)
        change = _change(query, key, value, weight, g, norm, mean, scale_log2, PRECISION)
        change_q += tl.dot(change.to(key.dtype), key, input_precision=PRECISION)

    dim = tl.arange(0, DIM)
    target = grad_q + (both * queries + row)[:, None] * D + dim[None, :]
    tl.store(target, (change_q * scale).to(grad_q.dtype.element_ty), mask=present[:, None] & (dim < D)[None, :])


@triton.autotune(configs(), key=[*_BLOCK_KEYS, "PARTIAL"], prune_configs_by=PRUNE)
@triton.jit
def _grad_kv(
    q, k, v, grad, lse, delta, grad_k, grad_v, rest_k, rest_v, starts, listing, slots, owners, key_mask,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, queries, keys, entries, room, most, scale,
    D: tl.constexpr, DIM: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    HAS_MASK: tl.constexpr, PARTIAL: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    blocks = keys // KEY_BLOCK
    tile, both = place(room if PARTIAL else blocks)
    slots += both * (blocks + 1)
    block, piece = tile, 0
    if PARTIAL:  # of a block that is listed so often that it has several pieces
        block = tl.load(owners + both * room + tile)
        piece = 1 + tile - tl.load(slots + block)
    batch, head = both // heads, both % heads
    q += batch * q_batch + head * q_head
    grad += both * queries * D
    scale_log2 = scale * LOG2_E

    m = tl.arange(0, ROWS)
    row = block.to(tl.int64) * KEY_BLOCK + m
    present = (m < KEY_BLOCK) & (block < blocks)
    usable = present
    if HAS_MASK:
        usable = present & (tl.load(key_mask + batch * keys + row, mask=present, other=0) != 0)
    key = load(k + batch * k_batch + head * k_head, row, k_row, usable, D, DIM)
    value = load(v + batch * v_batch + head * v_head, row, v_row, usable, D, DIM)
    sum_k = tl.zeros((ROWS, DIM), tl.float32)
    sum_v = tl.zeros((ROWS, DIM), tl.float32)
    starts += both * (blocks + 1) + block
    first = tl.load(starts) + piece * most
    length = tl.minimum(tl.load(starts + 1, mask=block < blocks, other=0) - first, most)
    listing += both * entries + first
    for start in range(0, length * QUERY_BLOCK, LANES):
        lane = start + tl.arange(0, LANES)
        valid = lane < length * QUERY_BLOCK
        at = tl.load(listing + lane // QUERY_BLOCK, mask=valid, other=0)
        source = at.to(tl.int64) * QUERY_BLOCK + lane % QUERY_BLOCK
        norm = tl.load(lse + both * queries + source, mask=valid, other=float("inf"))
        counting = norm != float("inf")
        query = load(q, source, q_row, counting, D, DIM)
        g = load(grad, source, D, counting, D, DIM)
        mean = tl.load(delta + both * queries + source, mask=counting, other=0.0)
        score = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale_log2
        share = tl.exp2(tl.where(usable[:, None], score, float("-inf")) - norm[None, :])
        sum_v += tl.dot(share.to(g.dtype), g, input_precision=PRECISION)
        change = share * (tl.dot(value, tl.trans(g), input_precision=PRECISION) - mean[None, :])
        sum_k += tl.dot(change.to(query.dtype), query, input_precision=PRECISION)

    dim = tl.arange(0, DIM)
    inside = present[:, None] & (dim < D)[None, :]
    if PARTIAL:
        target = ((both * room + tile) * KEY_BLOCK + m)[:, None] * D + dim[None, :]
        tl.store(rest_k + target, sum_k, mask=inside)
        tl.store(rest_v + target, sum_v, mask=inside)
        return
    for slot in range(tl.load(slots + block), tl.load(slots + block + 1)):
        source = ((both * room + slot) * KEY_BLOCK + m)[:, None] * D + dim[None, :]
        sum_k += tl.load(rest_k + source, mask=inside, other=0.0)
        sum_v += tl.load(rest_v + source, mask=inside, other=0.0)
    target = (both * keys + row)[:, None] * D + dim[None, :]
    tl.store(grad_k + target, (sum_k * scale).to(grad_k.dtype.element_ty), mask=inside)
    tl.store(grad_v + target, sum_v.to(grad_v.dtype.element_ty), mask=inside)
