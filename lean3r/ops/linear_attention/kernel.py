"""Linear attention in Triton: one pass over keys sums phi(k)^T v, one pass over queries reads the sum.

A pass is split along the tokens so that small batches fill the card too; the partial sums are added by torch
in a fixed order, so that results repeat. Products take float32 operands, as TF32 where the inputs are half
precision: at these widths the passes wait for memory, and rounding features to bfloat16 would show. Float32 inputs
multiply as three TF32 products, whose error is that of float32 but for the last bit or two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.tiles import last_dim_dense, launch, place

PROGRAMS = 512  # wanted in flight: a few for each of an H100's 132 multiprocessors


@triton.jit
def _phi(x, inside, FEATURE: tl.constexpr):
    """Features of rows x [R, D]; `inside` is False beyond the last channel or token."""
    if FEATURE == "elu":
        f = tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0)))
    elif FEATURE == "relu":
        f = tl.where(x > 0, x, tl.where(x == x, 0.0, x))
    else:
        x = tl.where(inside, x, float("-inf"))
        top = tl.max(x, 1)
        e = tl.exp(x - tl.where(top == float("-inf"), 0.0, top)[:, None])
        f = e / tl.maximum(tl.sum(e, 1), 1e-30)[:, None]
    return tl.where(inside, f, 0.0)


@triton.jit
def _phi_gradient(x, f, df, FEATURE: tl.constexpr):
    if FEATURE == "elu":
        return df * tl.where(x > 0, 1.0, f)
    elif FEATURE == "relu":
        return tl.where(x > 0, df, 0.0)
    else:
        return f * (df - tl.sum(f * df, 1)[:, None])


@triton.jit
def _rows(base, b, h, n, stride_b, stride_h, stride_n, channel):
    return base + b * stride_b + h * stride_h + n.to(tl.int64)[:, None] * stride_n + channel[None, :]


@triton.jit
def _times_transposed(
    base, b, h, n, stride_b, stride_h, stride_n, valid, matrix_ptr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS, D] of a tensor times matrix [D, D] transposed, a few channels at a time.

    As one product beside another that shares an operand, it would keep the whole matrix in the registers of each warp.
    """
    CHANNELS: tl.constexpr = BLOCK_D if BLOCK_D < 32 else 32
    channel = tl.arange(0, BLOCK_D)
    product = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, D, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        inside = valid[:, None] & (c < D)[None, :]
        rows = tl.load(_rows(base, b, h, n, stride_b, stride_h, stride_n, c), mask=inside, other=0.0).to(tl.float32)
        both = (c < D)[:, None] & (channel < D)[None, :]
        matrix = tl.load(matrix_ptr + channel[None, :] * D + c[:, None], mask=both, other=0.0)
        product = tl.dot(rows, matrix, product, input_precision=PRECISION)
    return product


@triton.jit
def _sum_keys(
    k_ptr, v_ptr, mask_ptr, s_ptr, z_ptr, heads, tokens, steps,
    kb, kh, kn, vb, vh, vn,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr, FEATURE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Partial phi(k)^T v [D, D] and sum phi(k) [D] of one share of the keys."""
    shares = tl.cdiv(tl.cdiv(tokens, ROWS), steps)
    split, pair = place(shares)
    b, h = pair // heads, pair % heads
    channel = tl.arange(0, BLOCK_D)
    s = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    z = tl.zeros((BLOCK_D,), tl.float32)
    for step in range(steps):
        n = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        real = n < tokens
        if MASKED:
            real = real & (tl.load(mask_ptr + b * tokens + n, mask=real, other=0) != 0)
        inside = real[:, None] & (channel < D)[None, :]
        k = tl.load(_rows(k_ptr, b, h, n, kb, kh, kn, channel), mask=inside, other=0.0).to(tl.float32)
        v = tl.load(_rows(v_ptr, b, h, n, vb, vh, vn, channel), mask=inside, other=0.0).to(tl.float32)
        f = _phi(k, inside, FEATURE)
        s += tl.dot(tl.trans(f), v, input_precision=PRECISION)
        z += tl.sum(f, 0)
    part = pair * shares + split
    both = (channel < D)[:, None] & (channel < D)[None, :]
    tl.store(s_ptr + part * D * D + channel[:, None] * D + channel[None, :], s, mask=both)
    tl.store(z_ptr + part * D + channel, z, mask=channel < D)


@triton.jit
def _read(
    q_ptr, s_ptr, z_ptr, out_ptr, heads, tokens, eps, qb, qh, qn,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, FEATURE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, pair = place(tl.cdiv(tokens, ROWS))
    b, h = pair // heads, pair % heads
    channel = tl.arange(0, BLOCK_D)
    n = tile * ROWS + tl.arange(0, ROWS)
    inside = (n < tokens)[:, None] & (channel < D)[None, :]
    both = (channel < D)[:, None] & (channel < D)[None, :]
    q = tl.load(_rows(q_ptr, b, h, n, qb, qh, qn, channel), mask=inside, other=0.0).to(tl.float32)
    s = tl.load(s_ptr + pair * D * D + channel[:, None] * D + channel[None, :], mask=both, other=0.0)
    z = tl.load(z_ptr + pair * D + channel, mask=channel < D, other=0.0)
    f = _phi(q, inside, FEATURE)
    share = tl.sum(f * z[None, :], 1) + eps
    out = tl.dot(f, s, input_precision=PRECISION) / tl.where(n < tokens, share, 1.0)[:, None]
    tl.store(_rows(out_ptr, pair, 0, n, tokens * D, 0, D, channel), out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _query_gradient(
    q_ptr, s_ptr, z_ptr, out_ptr, dout_ptr, dq_ptr, ds_ptr, dz_ptr, heads, tokens, steps, eps, qb, qh, qn,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, FEATURE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, and partial gradients of the two sums over keys, of one share of the queries."""
    shares = tl.cdiv(tl.cdiv(tokens, ROWS), steps)
    split, pair = place(shares)
    b, h = pair // heads, pair % heads
    channel = tl.arange(0, BLOCK_D)
    both = (channel < D)[:, None] & (channel < D)[None, :]
    z = tl.load(z_ptr + pair * D + channel, mask=channel < D, other=0.0)
    ds = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
    dz = tl.zeros((BLOCK_D,), tl.float32)
    for step in range(steps):
        n = (split * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = (n < tokens)[:, None] & (channel < D)[None, :]
        q = tl.load(_rows(q_ptr, b, h, n, qb, qh, qn, channel), mask=inside, other=0.0).to(tl.float32)
        out = tl.load(_rows(out_ptr, pair, 0, n, tokens * D, 0, D, channel), mask=inside, other=0.0).to(tl.float32)
        dout = tl.load(_rows(dout_ptr, pair, 0, n, tokens * D, 0, D, channel), mask=inside, other=0.0).to(tl.float32)
        f = _phi(q, inside, FEATURE)
        share = tl.where(n < tokens, tl.sum(f * z[None, :], 1) + eps, 1.0)
        dtop = dout / share[:, None]
        dshare = -tl.sum(dout * out, 1) / share
        df = _times_transposed(
            dout_ptr, pair, 0, n, tokens * D, 0, D, n < tokens, s_ptr + pair * D * D, D, BLOCK_D, ROWS, PRECISION
        )
        df = df / share[:, None] + dshare[:, None] * z[None, :]
        dq = _phi_gradient(q, f, df, FEATURE)
        tl.store(_rows(dq_ptr, pair, 0, n, tokens * D, 0, D, channel), dq.to(dq_ptr.dtype.element_ty), mask=inside)
        ds += tl.dot(tl.trans(f), dtop, input_precision=PRECISION)
        dz += tl.sum(f * dshare[:, None], 0)
    part = pair * shares + split
    tl.store(ds_ptr + part * D * D + channel[:, None] * D + channel[None, :], ds, mask=both)
    tl.store(dz_ptr + part * D + channel, dz, mask=channel < D)


@triton.jit
def _key_gradient(
    k_ptr, v_ptr, mask_ptr, ds_ptr, dz_ptr, dk_ptr, dv_ptr, heads, tokens, kb, kh, kn, vb, vh, vn,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr, FEATURE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile, pair = place(tl.cdiv(tokens, ROWS))
    b, h = pair // heads, pair % heads
    channel = tl.arange(0, BLOCK_D)
    n = tile * ROWS + tl.arange(0, ROWS)
    stored = (n < tokens)[:, None] & (channel < D)[None, :]
    real = n < tokens
    if MASKED:
        real = real & (tl.load(mask_ptr + b * tokens + n, mask=real, other=0) != 0)
    inside = real[:, None] & (channel < D)[None, :]
    both = (channel < D)[:, None] & (channel < D)[None, :]
    k = tl.load(_rows(k_ptr, b, h, n, kb, kh, kn, channel), mask=inside, other=0.0).to(tl.float32)
    ds = tl.load(ds_ptr + pair * D * D + channel[:, None] * D + channel[None, :], mask=both, other=0.0)
    dz = tl.load(dz_ptr + pair * D + channel, mask=channel < D, other=0.0)
    f = _phi(k, inside, FEATURE)
    df = _times_transposed(v_ptr, b, h, n, vb, vh, vn, real, ds_ptr + pair * D * D, D, BLOCK_D, ROWS, PRECISION)
    df = tl.where(inside, df + dz[None, :], 0.0)
    dk = _phi_gradient(k, f, df, FEATURE)
    dv = tl.dot(f, ds, input_precision=PRECISION)
    tl.store(_rows(dk_ptr, pair, 0, n, tokens * D, 0, D, channel), dk.to(dk_ptr.dtype.element_ty), mask=stored)
    tl.store(_rows(dv_ptr, pair, 0, n, tokens * D, 0, D, channel), dv.to(dv_ptr.dtype.element_ty), mask=stored)


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


def _split(pairs: int, tokens: int, rows: int) -> tuple[int, int]:
    """(shares along the tokens, steps of `rows` tokens in each)."""
    blocks = triton.cdiv(tokens, rows)
    steps = triton.cdiv(blocks, max(1, min(blocks, PROGRAMS // pairs)))
    return triton.cdiv(blocks, steps), steps


def _tile(width: int, kind: torch.dtype) -> dict[str, int]:
    """Tokens at a time and warps, such that the sum over keys [D, D] stays in registers and the rest fits any card.

    Float32 takes twice the registers for every operand, and few rows let the warps share the sum by columns.
    """
    if kind == torch.float32:
        return {"ROWS": 16, "num_warps": max(4, width // 8), "num_stages": 2}
    return {"ROWS": 32 if width > 64 else 64, "num_warps": 8 if width > 64 else 4, "num_stages": 2}


class LinearAttention(torch.autograd.Function):
    """Forward and backward of `linear_attention` with contiguous channels."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, feature: str, eps: float) -> Tensor:
        """q [B, H, N, D], k and v [B, H, M, D], key_mask [B, M]."""
        q, k, v = (last_dim_dense(x) for x in (q, k, v))
        batch, heads, tokens, width = q.shape
        pairs, keys = batch * heads, k.shape[2]
        mask = None if key_mask is None else key_mask.to(torch.uint8).contiguous()
        padded = max(16, triton.next_power_of_2(width))
        options = {
            "D": width,
            "BLOCK_D": padded,
            **_tile(padded, q.dtype),
            "FEATURE": feature,
            "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
        }
        shares, steps = _split(pairs, keys, options["ROWS"])
        s = q.new_empty(pairs, shares, width, width, dtype=torch.float32)
        z = q.new_empty(pairs, shares, width, dtype=torch.float32)
        launch(
            *(_sum_keys, shares * pairs, k, v, mask, s, z, heads, keys, steps, *_strides(k), *_strides(v)),
            MASKED=mask is not None,
            **options,
        )
        s, z = s.sum(1), z.sum(1)
        out = q.new_empty(q.shape, dtype=v.dtype)
        programs = triton.cdiv(tokens, options["ROWS"]) * pairs
        launch(_read, programs, q, s, z, out, heads, tokens, eps, *_strides(q), **options)
        ctx.save_for_backward(q, k, v, mask, s, z, out)
        ctx.eps, ctx.options = eps, options
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """Gradients of q, k and v; those of masked keys are 0."""
        q, k, v, mask, s, z, out = ctx.saved_tensors
        batch, heads, tokens, width = q.shape
        pairs, keys = batch * heads, k.shape[2]
        shares, steps = _split(pairs, tokens, ctx.options["ROWS"])
        ds = q.new_empty(pairs, shares, width, width, dtype=torch.float32)
        dz = q.new_empty(pairs, shares, width, dtype=torch.float32)
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        grad = grads[0].contiguous()
        launch(
            *(_query_gradient, shares * pairs, q, s, z, out, grad, dq, ds, dz, heads, tokens, steps, ctx.eps),
            *_strides(q),
            **ctx.options,
        )
        programs, sums = triton.cdiv(keys, ctx.options["ROWS"]) * pairs, (ds.sum(1), dz.sum(1))
        launch(
            *(_key_gradient, programs, k, v, mask, *sums, dk, dv, heads, keys, *_strides(k), *_strides(v)),
            MASKED=mask is not None,
            **ctx.options,
        )
        return dq, dk, dv, None, None, None
