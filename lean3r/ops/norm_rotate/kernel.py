"""Norm, rotation and means of windows in Triton: one read of x, one write of the result, sums in registers.

A program holds some tokens of a view and head as four quarters of their channels, since a channel turns with the one a
quarter away; with PAIRS, where neighbours turn together, the quarters of a half are its even and its odd channels.
Tokens of its tile are all special or all patches, so that windows never straddle tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.tiles import last_dim_dense, launch, place

NUMBERS = 4096  # of a tile: 32 for each thread of 4 warps


@triton.jit
def _quarters(base, at, inside, QUARTER: tl.constexpr, PAIRS: tl.constexpr):
    """Four tiles of numbers in float32, zero where they are not inside."""
    if PAIRS:  # neighbours are loaded together, then told apart
        both = at[:, :, None] + tl.arange(0, 2)[None, None, :]
        a, b = tl.split(tl.load(base + both, mask=inside[:, :, None], other=0.0).to(tl.float32))
        c, d = tl.split(tl.load(base + both + 2 * QUARTER, mask=inside[:, :, None], other=0.0).to(tl.float32))
    else:
        a = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(base + at + QUARTER, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(base + at + 2 * QUARTER, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(base + at + 3 * QUARTER, mask=inside, other=0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def _store_quarters(base, at, inside, a, b, c, d, QUARTER: tl.constexpr, PAIRS: tl.constexpr):
    kind = base.dtype.element_ty
    if PAIRS:
        both = at[:, :, None] + tl.arange(0, 2)[None, None, :]
        tl.store(base + both, tl.join(a, b).to(kind), mask=inside[:, :, None])
        tl.store(base + both + 2 * QUARTER, tl.join(c, d).to(kind), mask=inside[:, :, None])
    else:
        tl.store(base + at, a.to(kind), mask=inside)
        tl.store(base + at + QUARTER, b.to(kind), mask=inside)
        tl.store(base + at + 2 * QUARTER, c.to(kind), mask=inside)
        tl.store(base + at + 3 * QUARTER, d.to(kind), mask=inside)


@triton.jit
def _mean(x, ROWS: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """Mean of each WINDOW neighbouring rows."""
    return tl.sum(tl.reshape(x, [ROWS // WINDOW, WINDOW, BLOCK]), 1) / WINDOW


@triton.jit
def _norm_rotate(
    x, weight, bias, cos, sin, out, means, heads, views, tokens, special, xb, xh, xn, eps,
    QUARTER: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WINDOW: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, ROTATE: tl.constexpr, PATCHES_FIRST: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    DIM: tl.constexpr = 4 * QUARTER
    STEP: tl.constexpr = 2 if PAIRS else 1  # between channels of a quarter
    HALF: tl.constexpr = 2 * QUARTER // STEP  # of a row of the table
    first = tl.cdiv(special, ROWS)  # tiles of special tokens
    each = first + tl.cdiv(tokens - special, ROWS)
    tile, pair = place(views * each)
    batch, head = pair // heads, pair % heads
    view, part = tile // each, tile % each
    start = tl.where(part < first, part * ROWS, special + (part - first) * ROWS)
    token = start + tl.arange(0, ROWS)
    present = token < tl.where(part < first, special, tokens)
    row = view.to(tl.int64) * tokens + token
    j = tl.arange(0, BLOCK)
    channel = STEP * j
    inside = present[:, None] & (j < QUARTER)[None, :]
    a, b, c, d = _quarters(x + batch * xb + head * xh, row[:, None] * xn + channel[None, :], inside, QUARTER, PAIRS)
    if WINDOW > 0:
        count = (tokens - special) // WINDOW
        window = (part - first) * (ROWS // WINDOW) + tl.arange(0, ROWS // WINDOW)
        held = ((part >= first) & (window < count))[:, None] & (j < QUARTER)[None, :]
        at = ((pair * views + view) * count + window)[:, None] * DIM + channel[None, :]
        _store_quarters(
            means, at, held, _mean(a, ROWS, WINDOW, BLOCK), _mean(b, ROWS, WINDOW, BLOCK),
            _mean(c, ROWS, WINDOW, BLOCK), _mean(d, ROWS, WINDOW, BLOCK), QUARTER, PAIRS,
        )  # fmt: skip
    if NORM:
        mean = ((tl.sum(a, 1) + tl.sum(b, 1) + tl.sum(c, 1) + tl.sum(d, 1)) / DIM)[:, None]
        a, b = tl.where(inside, a - mean, 0.0), tl.where(inside, b - mean, 0.0)
        c, d = tl.where(inside, c - mean, 0.0), tl.where(inside, d - mean, 0.0)
        scale = tl.rsqrt(tl.sum(a * a + b * b + c * c + d * d, 1) / DIM + eps)[:, None]
        wa, wb, wc, wd = _quarters(weight, channel[None, :], (j < QUARTER)[None, :], QUARTER, PAIRS)
        a, b, c, d = a * scale * wa, b * scale * wb, c * scale * wc, d * scale * wd
        if BIAS:
            wa, wb, wc, wd = _quarters(bias, channel[None, :], (j < QUARTER)[None, :], QUARTER, PAIRS)
            a, b, c, d = a + wa, b + wb, c + wc, d + wd
    if ROTATE:
        at = token[:, None] * (2 * HALF) + j[None, :]
        cos_row = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
        sin_row = tl.load(sin + at, mask=inside, other=0.0).to(tl.float32)
        cos_col = tl.load(cos + at + HALF, mask=inside, other=0.0).to(tl.float32)
        sin_col = tl.load(sin + at + HALF, mask=inside, other=0.0).to(tl.float32)
        a, b = a * cos_row - b * sin_row, b * cos_row + a * sin_row
        c, d = c * cos_col - d * sin_col, d * cos_col + c * sin_col
    if PATCHES_FIRST:
        patches = tokens - special
        behind = (views * patches + view * special).to(tl.int64) + token
        row = tl.where(part < first, behind, view.to(tl.int64) * patches + token - special)
    at = (pair * views * tokens + row)[:, None] * DIM + channel[None, :]
    _store_quarters(out, at, inside, a, b, c, d, QUARTER, PAIRS)


def norm_rotate(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    tokens: int,
    special: int,
    window: int,
    eps: float,
    dtype: torch.dtype,
    patches_first: bool,
    pairs: bool,
) -> tuple[Tensor, Tensor]:
    """See `norm_rotate` of the package."""
    x = last_dim_dense(x.detach())
    batch, heads, count, dim = x.shape
    special = special if window or patches_first else 0
    views = count // tokens
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    means = x.new_empty(batch, heads, views * ((tokens - special) // window) if window else 0, dim)
    block = triton.next_power_of_2(dim // 4)
    rows = max(64, NUMBERS // (4 * block))
    tiles = triton.cdiv(special, rows) + triton.cdiv(tokens - special, rows)
    optional = (x if t is None else t.contiguous() for t in (weight, bias, cos, sin))
    launch(
        *(_norm_rotate, views * tiles * batch * heads, x, *optional, out, means),
        *(heads, views, tokens, special, *x.stride()[:3], eps),
        QUARTER=dim // 4,
        BLOCK=block,
        ROWS=rows,
        WINDOW=window,
        NORM=weight is not None,
        BIAS=bias is not None,
        ROTATE=cos is not None,
        PATCHES_FIRST=patches_first and special > 0,
        PAIRS=pairs,
    )
    return out, means
