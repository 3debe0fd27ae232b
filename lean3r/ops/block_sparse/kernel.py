"""Block-sparse attention in Triton, forward and backward, without atomics.

Forward and the gradient of q: one program serves a group of neighbouring query blocks. It walks through the union of
their lists, so that keys which neighbours share are loaded once, and weights every score by how often the row's own
list names the block. Gradients of k and v: one program a key block, which walks through the query blocks that list it.
"""

# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from lean3r.ops.block_sparse.gradients import LOG2_E, dense_key_gradients, listed_by

_NOTHING = tl.constexpr(2147483647)  # sorts behind every listed block
_LOG2_E = tl.constexpr(LOG2_E)


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
    with torch.cuda.device_of(q):
        return _Attend.apply(q, k, v, extra_k, extra_v, blocks, query_block, key_block, scale, key_mask)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
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
        q, k, v = (_last_dim_dense(x) for x in (q, k, v))
        extra_k, extra_v = (None if x is None else x.contiguous() for x in (extra_k, extra_v))
        blocks = blocks.to(torch.int32).contiguous()
        key_mask = None if key_mask is None else key_mask.contiguous().view(torch.uint8)
        union = unions(blocks, query_block, k.shape[2] // key_block)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        sizes = (blocks.shape[3], query_block, key_block, scale)
        _on_groups(_forward, (out, lse), q, k, v, extra_k, extra_v, union, key_mask, *sizes)
        ctx.save_for_backward(q, k, v, extra_k, extra_v, blocks, key_mask, out, lse, *union)
        ctx.settings = (query_block, key_block, scale)  # type: ignore[attr-defined]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, extra_k, extra_v, blocks, key_mask, out, lse, *union = ctx.saved_tensors  # type: ignore[attr-defined]
        query_block, key_block, scale = ctx.settings  # type: ignore[attr-defined]
        grad = grad.contiguous()
        # Rows that attend to nothing have an infinite lse; rows that hold NaN join them and count nowhere.
        lse = lse.masked_fill(lse.isnan(), torch.inf)
        delta = (out.float() * grad).sum(-1).masked_fill_(lse == torch.inf, 0)
        grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        sizes = (blocks.shape[3], query_block, key_block, scale)
        _on_groups(_grad_q, (grad_q, grad, lse, delta), q, k, v, extra_k, extra_v, union, key_mask, *sizes)

        (batch, heads, queries, dim), keys = q.shape, k.shape[2]
        grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
        starts, listing = listed_by(blocks, keys // key_block)
        _grad_kv[(keys // key_block, batch * heads)](
            *(q, k, v, grad, lse, delta, grad_k, grad_v, starts, listing, q if key_mask is None else key_mask),
            *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
            *(heads, queries, keys, listing.shape[1], scale),
            **_sizes(dim, q.dtype, query_block, key_block),
            HAS_MASK=key_mask is not None,
            ROWS=triton.next_power_of_2(key_block),
        )
        extra = (None, None)
        if extra_k is not None and extra_v is not None:
            extra = dense_key_gradients(q, extra_k, extra_v, grad, lse, delta, scale)
        return (grad_q, grad_k, grad_v, *extra, *(None,) * 5)


def _last_dim_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _members(query_block: int, listed: int) -> int:
    """Query blocks that share loads: up to 128 rows, and list counts that fit the bits of their share of an int32."""
    if query_block > 64:
        return 1
    return 2 if query_block > 32 or listed > 255 else 4


def _bits(members: int) -> int:
    """Bits of one member's running count."""
    return 8 if members == 4 else 16


def _sizes(dim: int, kind: torch.dtype, query_block: int, key_block: int) -> dict[str, int | str]:
    """Compile-time constants that all attention kernels share."""
    exact = kind == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "D": dim,
        "DIM": triton.next_power_of_2(dim),
        "QUERY_BLOCK": query_block,
        "KEY_BLOCK": key_block,
        "PRECISION": "ieee" if exact else "tf32",
    }


def unions(blocks: Tensor, query_block: int, key_blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Union of the lists of each group of query blocks.

    Returns blocks [B*H, groups, SIZE] in ascending order; running counts of the same shape, in which every member of
    the group has its own bits; and lengths [B*H, groups].
    """
    batch, heads, count, listed = blocks.shape
    members = _members(query_block, listed)
    groups, size = triton.cdiv(count, members), members * triton.next_power_of_2(listed)
    ordered, union, counts = (blocks.new_empty(batch * heads, groups, size) for _ in range(3))
    lengths = blocks.new_empty(batch * heads, groups)
    grid = (groups, batch * heads)
    _sort_lists[grid](blocks, ordered, count, key_blocks, listed, members, size // members, size)
    _merge_lists[grid](ordered, union, counts, lengths, members, size, _bits(members))
    return union, counts, lengths


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
    members = _members(query_block, listed)
    extras = 0 if extra_k is None else extra_k.shape[2]
    if not groups:
        return
    kernel[(groups, batch * heads)](
        *(q, k, v, *results, *union, q if key_mask is None else key_mask),
        *(k if extra_k is None else extra_k, v if extra_v is None else extra_v),
        *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
        *(heads, queries, keys, extras, scale),
        **_sizes(dim, q.dtype, query_block, key_block),
        HAS_MASK=key_mask is not None,
        HAS_EXTRA=extras > 0,
        MEMBERS=members,
        BITS=_bits(members),
        ROWS=triton.next_power_of_2(members * query_block),
        SIZE=size,
    )


@triton.jit
def _sort_lists(
    blocks, ordered, count, key_blocks, listed, MEMBERS: tl.constexpr, LIST: tl.constexpr, SIZE: tl.constexpr
):
    """Entries block * MEMBERS + member of a group's lists, ascending; skipped entries last."""
    group, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = tl.arange(0, SIZE)
    member, slot = i // LIST, i % LIST
    row = group * MEMBERS + member
    block = tl.load(blocks + (head * count + row) * listed + slot, mask=(row < count) & (slot < listed), other=-1)
    entry = tl.where((block >= 0) & (block < key_blocks), block * MEMBERS + member, _NOTHING)
    tl.store(ordered + (head * tl.num_programs(0) + group) * SIZE + i, tl.sort(entry))


@triton.jit
def _merge_lists(ordered, union, counts, lengths, MEMBERS: tl.constexpr, SIZE: tl.constexpr, BITS: tl.constexpr):
    """Each block once, with the running counts of all members up to and including it."""
    at = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    i = tl.arange(0, SIZE)
    entry = tl.load(ordered + at * SIZE + i)
    following = tl.load(ordered + at * SIZE + i + 1, mask=i + 1 < SIZE, other=_NOTHING)
    listed = entry != _NOTHING
    block = entry // MEMBERS
    last = listed & ((following == _NOTHING) | (following // MEMBERS != block))
    running = tl.cumsum(tl.where(listed, 1 << (entry % MEMBERS) * BITS, 0), 0)
    order = tl.cumsum(last.to(tl.int32), 0) - 1
    tl.store(union + at * SIZE + order, block, mask=last)
    tl.store(counts + at * SIZE + order, running, mask=last)
    tl.store(lengths + at, tl.sum(last.to(tl.int32), 0))


def _configs() -> list[triton.Config]:
    if triton.knobs.runtime.interpret:  # nothing to time
        return [triton.Config({"LANES": 32})]
    return [
        triton.Config({"LANES": lanes}, num_warps=warps, num_stages=stages)
        for lanes, warps, stages in (
            *((32, 4, 2), (32, 4, 4), (32, 8, 2)),
            *((64, 4, 2), (64, 4, 3), (64, 8, 2), (64, 8, 3)),
            *((128, 4, 2), (128, 8, 2), (128, 8, 3)),
        )
    ]


def _affordable(configs: list[triton.Config], _: dict, **sizes: int | str) -> list[triton.Config]:
    """Exact float32 products keep their operands in registers: large tiles spill, and compile for minutes."""
    return [c for c in configs if sizes["PRECISION"] != "ieee" or c.kwargs["LANES"] == 32]


_PRUNE = {"early_config_prune": _affordable}
_GROUP_KEYS = ["QUERY_BLOCK", "KEY_BLOCK", "DIM", "SIZE", "HAS_MASK", "HAS_EXTRA", "PRECISION"]
_BLOCK_KEYS = ["QUERY_BLOCK", "KEY_BLOCK", "DIM", "HAS_MASK", "PRECISION"]


@triton.jit
def _load(base, row, stride, valid, D: tl.constexpr, DIM: tl.constexpr):
    """Rows [R, DIM] of a matrix, zero where they are not valid."""
    dim = tl.arange(0, DIM)
    return tl.load(base + row[:, None] * stride + dim[None, :], mask=valid[:, None] & (dim < D)[None, :], other=0.0)


@triton.jit
def _keys_of_union(
    union, counts, length, start, key_mask, shift, FIELD: tl.constexpr, KEY_BLOCK: tl.constexpr,
    LANES: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The next keys: their rows, which of them count, and how often each row's list names them, [ROWS, LANES]."""
    lane = start + tl.arange(0, LANES)
    at = lane // KEY_BLOCK
    valid = at < length
    row = tl.load(union + at, mask=valid, other=0).to(tl.int64) * KEY_BLOCK + lane % KEY_BLOCK
    before = tl.load(counts + at - 1, mask=valid & (at > 0), other=0)
    times = tl.load(counts + at, mask=valid, other=0) - before
    if HAS_MASK:
        valid = valid & (tl.load(key_mask + row, mask=valid, other=0) != 0)
    weight = (times[None, :] >> shift[:, None]) & FIELD
    return row, valid, tl.where(valid[None, :], weight, 0)


@triton.jit
def _absorb(query, key, value, weight, top, total, mixed, scale_log2, PRECISION: tl.constexpr):
    """One step of the online softmax, base 2."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale_log2
    score = tl.where(weight > 0, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    anchor = tl.where(higher == float("-inf"), 0.0, higher)
    share = tl.exp2(score - anchor[:, None]) * weight
    fade = tl.exp2(top - anchor)
    mixed = mixed * fade[:, None] + tl.dot(share.to(value.dtype), value, input_precision=PRECISION)
    return higher, total * fade + tl.sum(share, 1), mixed


@triton.autotune(_configs(), key=_GROUP_KEYS, prune_configs_by=_PRUNE)
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
    both = tl.program_id(1).to(tl.int64)
    batch, head = both // heads, both % heads
    group = both * tl.num_programs(0) + tl.program_id(0)
    union += group * SIZE
    counts += group * SIZE
    length = tl.load(lengths + group)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    scale_log2 = scale * _LOG2_E

    m = tl.arange(0, ROWS)
    row = tl.program_id(0).to(tl.int64) * (MEMBERS * QUERY_BLOCK) + m
    present = (m < MEMBERS * QUERY_BLOCK) & (row < queries)
    shift = m // QUERY_BLOCK * BITS
    query = _load(q + batch * q_batch + head * q_head, row, q_row, present, D, DIM)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, DIM), tl.float32)
    if HAS_EXTRA:
        for start in range(0, extras, LANES):
            at = start + tl.arange(0, LANES)
            key = _load(extra_k + both * extras * D, at, D, at < extras, D, DIM)
            value = _load(extra_v + both * extras * D, at, D, at < extras, D, DIM)
            weight = (at < extras).to(tl.int32)[None, :] + tl.zeros((ROWS, LANES), tl.int32)
            top, total, mixed = _absorb(query, key, value, weight, top, total, mixed, scale_log2, PRECISION)
    for start in range(0, length * KEY_BLOCK, LANES):
        at, valid, weight = _keys_of_union(
            union, counts, length, start, key_mask + batch * keys, shift, FIELD, KEY_BLOCK, LANES, HAS_MASK
        )
        key = _load(k, at, k_row, valid, D, DIM)
        value = _load(v, at, v_row, valid, D, DIM)
        top, total, mixed = _absorb(query, key, value, weight, top, total, mixed, scale_log2, PRECISION)

    nothing = total == 0
    mixed = mixed / tl.where(nothing, 1.0, total)[:, None]
    dim = tl.arange(0, DIM)
    place = out + (both * queries + row)[:, None] * D + dim[None, :]
    tl.store(place, mixed.to(out.dtype.element_ty), mask=present[:, None] & (dim < D)[None, :])
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


@triton.autotune(_configs(), key=_GROUP_KEYS, prune_configs_by=_PRUNE)
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
    both = tl.program_id(1).to(tl.int64)
    batch, head = both // heads, both % heads
    group = both * tl.num_programs(0) + tl.program_id(0)
    union += group * SIZE
    counts += group * SIZE
    length = tl.load(lengths + group)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    scale_log2 = scale * _LOG2_E

    m = tl.arange(0, ROWS)
    row = tl.program_id(0).to(tl.int64) * (MEMBERS * QUERY_BLOCK) + m
    present = (m < MEMBERS * QUERY_BLOCK) & (row < queries)
    shift = m // QUERY_BLOCK * BITS
    norm = tl.load(lse + both * queries + row, mask=present, other=float("inf"))
    counting = norm != float("inf")
    query = _load(q + batch * q_batch + head * q_head, row, q_row, counting, D, DIM)
    g = _load(grad + both * queries * D, row, D, counting, D, DIM)
    mean = tl.load(delta + both * queries + row, mask=counting, other=0.0)
    found = tl.zeros((ROWS, DIM), tl.float32)
    if HAS_EXTRA:
        for start in range(0, extras, LANES):
            at = start + tl.arange(0, LANES)
            key = _load(extra_k + both * extras * D, at, D, at < extras, D, DIM)
            value = _load(extra_v + both * extras * D, at, D, at < extras, D, DIM)
            weight = (at < extras).to(tl.int32)[None, :] + tl.zeros((ROWS, LANES), tl.int32)
            change = _change(query, key, value, weight, g, norm, mean, scale_log2, PRECISION)
            found += tl.dot(change.to(key.dtype), key, input_precision=PRECISION)
    for start in range(0, length * KEY_BLOCK, LANES):
        at, valid, weight = _keys_of_union(
            union, counts, length, start, key_mask + batch * keys, shift, FIELD, KEY_BLOCK, LANES, HAS_MASK
        )
        key = _load(k, at, k_row, valid, D, DIM)
        value = _load(v, at, v_row, valid, D, DIM)
        change = _change(query, key, value, weight, g, norm, mean, scale_log2, PRECISION)
        found += tl.dot(change.to(key.dtype), key, input_precision=PRECISION)

    dim = tl.arange(0, DIM)
    place = grad_q + (both * queries + row)[:, None] * D + dim[None, :]
    tl.store(place, (found * scale).to(grad_q.dtype.element_ty), mask=present[:, None] & (dim < D)[None, :])


@triton.autotune(_configs(), key=_BLOCK_KEYS, prune_configs_by=_PRUNE)
@triton.jit
def _grad_kv(
    q, k, v, grad, lse, delta, grad_k, grad_v, starts, listing, key_mask,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, queries, keys, entries, scale,
    D: tl.constexpr, DIM: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    HAS_MASK: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(1).to(tl.int64)
    batch, head = both // heads, both % heads
    q += batch * q_batch + head * q_head
    grad += both * queries * D
    scale_log2 = scale * _LOG2_E

    m = tl.arange(0, ROWS)
    row = tl.program_id(0).to(tl.int64) * KEY_BLOCK + m
    present = m < KEY_BLOCK
    usable = present
    if HAS_MASK:
        usable = present & (tl.load(key_mask + batch * keys + row, mask=present, other=0) != 0)
    key = _load(k + batch * k_batch + head * k_head, row, k_row, usable, D, DIM)
    value = _load(v + batch * v_batch + head * v_head, row, v_row, usable, D, DIM)
    found_k = tl.zeros((ROWS, DIM), tl.float32)
    found_v = tl.zeros((ROWS, DIM), tl.float32)
    starts += both * (tl.num_programs(0) + 1) + tl.program_id(0)
    first = tl.load(starts)
    length = tl.load(starts + 1) - first
    listing += both * entries + first
    for start in range(0, length * QUERY_BLOCK, LANES):
        lane = start + tl.arange(0, LANES)
        valid = lane < length * QUERY_BLOCK
        block = tl.load(listing + lane // QUERY_BLOCK, mask=valid, other=0)
        source = block.to(tl.int64) * QUERY_BLOCK + lane % QUERY_BLOCK
        norm = tl.load(lse + both * queries + source, mask=valid, other=float("inf"))
        counting = norm != float("inf")
        query = _load(q, source, q_row, counting, D, DIM)
        g = _load(grad, source, D, counting, D, DIM)
        mean = tl.load(delta + both * queries + source, mask=counting, other=0.0)
        score = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale_log2
        share = tl.exp2(tl.where(usable[:, None], score, float("-inf")) - norm[None, :])
        found_v += tl.dot(share.to(g.dtype), g, input_precision=PRECISION)
        change = share * (tl.dot(value, tl.trans(g), input_precision=PRECISION) - mean[None, :])
        found_k += tl.dot(change.to(query.dtype), query, input_precision=PRECISION)

    dim = tl.arange(0, DIM)
    place = (both * keys + row)[:, None] * D + dim[None, :]
    inside = present[:, None] & (dim < D)[None, :]
    tl.store(grad_k + place, (found_k * scale).to(grad_k.dtype.element_ty), mask=inside)
    tl.store(grad_v + place, found_v.to(grad_v.dtype.element_ty), mask=inside)
