"""Block-sparse attention in Triton over keys and values in E4M3, forward only; see kernel.py for the way it goes.

Codes are read as they are stored, a byte each. Float16 holds every code exactly, and GPUs since sm_89 write two by one
instruction, so that codes are multiplied in float16 where q is in half precision. The scale of a block of keys
multiplies its scores. That of its values multiplies their shares, divided by the largest scale of the head, which the
result gets back: shares then use the range of float16, whatever the values. Queries in bfloat16 are brought
into that range by a power of two for all rows of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.block_sparse.coded import quantize_blocks
from lean3r.ops.fp8.kernel import has_cast
from lean3r.ops.fp8.reference import LEAST, MAX
from lean3r.ops.tiles import (
    GROUP_KEYS,
    LOG2_E,
    PRUNE,
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
    """As `block_sparse_attention` with kv="fp8", without gradients. Besides: a byte for each number of k and v."""
    (batch, heads, queries, dim), keys, listed = q.shape, k.shape[2], blocks.shape[3]
    q = last_dim_dense(q.detach())
    (codes_k, scale_k), (codes_v, scale_v) = (quantize_blocks(x, key_block, key_mask) for x in (k, v))
    codes_k, codes_v = (codes.contiguous().view(torch.uint8) for codes in (codes_k, codes_v))
    broken = ~scale_v.isfinite()
    codes_v.unflatten(2, (-1, key_block)).masked_fill_(broken[..., None], 0)  # their NaN would reach every row
    scale_k = scale_k.float().masked_fill(broken, torch.nan).contiguous()  # this one the rows that list the block
    scale_v, unit = _in_units(scale_v.float().masked_fill(broken, 0.0), listed)
    extra_k, extra_v = (q, q) if dense_keys is None else (x.detach().contiguous() for x in dense_keys)
    extras = 0 if dense_keys is None else extra_k.shape[2]
    union = unions(blocks.to(torch.int32).contiguous(), query_block, keys // key_block)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    groups, size = union[0].shape[1:]
    launch(
        *(_forward, groups * batch * heads),
        *(q, codes_k, scale_k, codes_v, scale_v, unit, out, *union),
        *(q if key_mask is None else key_mask.contiguous().view(torch.uint8), extra_k, extra_v),
        *(*q.stride()[:3], heads, queries, keys, extras, scale),
        **constants(dim, q.dtype, query_block, key_block),
        HAS_MASK=key_mask is not None,
        HAS_EXTRA=extras > 0,
        HARDWARE=has_cast(q),
        **group_constants(query_block, listed, size),
    )
    return out


def _in_units(scale: Tensor, listed: int) -> tuple[Tensor, Tensor]:
    """Scales of values [B, H, nk, 1] divided by a unit for each head, and these units [B, H, 1, 1].

    A share is at most `listed` times the scale, and float16 ends at 65,504.
    """
    unit = scale.amax(2, keepdim=True).clamp(min=LEAST / MAX) * (triton.next_power_of_2(max(1, listed)) / 2.0**15)
    return (scale / unit).contiguous(), unit


@triton.jit
def _decode(code, KIND: tl.constexpr, HARDWARE: tl.constexpr):
    """E4M3 bytes -> KIND, exactly, divided by 256 without HARDWARE. NaN, whose scale is NaN too, may become a number.

    As bits of a float16, sign, exponent and mantissa of a code stand in place; only the exponent counts from 7, not
    from 15. That is how GPUs without E4M3 read it.
    """
    if HARDWARE:
        return code.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(KIND)
    bits = (code.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4001
    return bits.to(tl.float16, bitcast=True).to(KIND)


@triton.jit
def _in_range(query):
    """Float16 numbers of a tile of queries, and the power of two that they were multiplied by.

    The largest comes to 2^14; what lies 2^30 below it still has all of its bits. Infinity and NaN do not count.
    """
    size = tl.abs(query.to(tl.float32))
    largest = tl.max(tl.max(tl.where(size < float("inf"), size, 0.0), 1), 0)
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    factor = (tl.minimum(268 - exponent, 254) << 23).to(tl.float32, bitcast=True)
    return (query.to(tl.float32) * factor).to(tl.float16), factor


@triton.jit
def _absorb_codes(
    query, key, key_scale, value, value_scale, weight, top, total, mixed, scale_log2, PRECISION: tl.constexpr
):  # fmt: skip
    """One step of the online softmax, base 2, for codes [LANES, DIM] and their scales [LANES]."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale_log2 * key_scale)[None, :]
    score = tl.where(weight > 0, score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    anchor = tl.where(higher == float("-inf"), 0.0, higher)
    share = tl.exp2(score - anchor[:, None]) * weight
    fade = tl.exp2(top - anchor)
    mixed = mixed * fade[:, None]
    mixed += tl.dot((share * value_scale[None, :]).to(value.dtype), value, input_precision=PRECISION)
    return higher, total * fade + tl.sum(share, 1), mixed


@triton.autotune(configs(), key=GROUP_KEYS, prune_configs_by=PRUNE)
@triton.jit
def _forward(
    q, codes_k, scale_k, codes_v, scale_v, unit, out, union, counts, lengths, key_mask, extra_k, extra_v,
    q_batch, q_head, q_row, heads, queries, keys, extras, scale,
    D: tl.constexpr, DIM: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_EXTRA: tl.constexpr, MEMBERS: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr, LANES: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    FIELD: tl.constexpr = (1 << BITS) - 1
    groups = tl.cdiv(queries, MEMBERS * QUERY_BLOCK)
    tile, both = place(groups)
    batch, head = both // heads, both % heads
    group = both * groups + tile
    union += group * SIZE
    counts += group * SIZE
    length = tl.load(lengths + group)
    codes_k += both * keys * D
    codes_v += both * keys * D
    scale_k += both * (keys // KEY_BLOCK)
    scale_v += both * (keys // KEY_BLOCK)
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
    unit = tl.load(unit + both)
    if q.dtype.element_ty == tl.bfloat16:
        query, factor = _in_range(query)
        scale_log2 = scale_log2 / factor
    if not HARDWARE:
        scale_log2, unit = scale_log2 * 256, unit * 256
    mixed = mixed / unit
    for start in range(0, length * KEY_BLOCK, LANES):
        at, valid, weight = keys_of_union(
            union, counts, length, start, key_mask + batch * keys, shift, FIELD, KEY_BLOCK, LANES, HAS_MASK
        )
        key = _decode(load(codes_k, at, D, valid, D, DIM), query.dtype, HARDWARE)
        value = _decode(load(codes_v, at, D, valid, D, DIM), query.dtype, HARDWARE)
        key_scale = tl.load(scale_k + at // KEY_BLOCK, mask=valid, other=0.0)
        value_scale = tl.load(scale_v + at // KEY_BLOCK, mask=valid, other=0.0)
        top, total, mixed = _absorb_codes(
            query, key, key_scale, value, value_scale, weight, top, total, mixed, scale_log2, PRECISION
        )

    mixed = mixed * (unit / tl.where(total == 0, 1.0, total))[:, None]
    dim = tl.arange(0, DIM)
    target = out + (both * queries + row)[:, None] * D + dim[None, :]
    tl.store(target, mixed.to(out.dtype.element_ty), mask=present[:, None] & (dim < D)[None, :])
