"""Two-axis rotation in Triton: one read and one write of x; the backward pass turns the other way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.rope2d.reference import frequencies
from lean3r.ops.tiles import last_dim_dense, launch, place

ROWS = 32


@triton.jit
def _turn(
    x_ptr, position_ptr, frequency_ptr, out_ptr, heads, tokens, sign, xb, xh, xn, pb,
    QUARTER: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    tile, pair = place(tl.cdiv(tokens, ROWS))
    b, h = pair // heads, pair % heads
    n = tile * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, BLOCK)
    inside = (n < tokens)[:, None] & (j < QUARTER)[None, :]
    frequency = tl.load(frequency_ptr + j, mask=j < QUARTER, other=0.0)
    source = x_ptr + b * xb + h * xh + n.to(tl.int64)[:, None] * xn + j[None, :]
    target = out_ptr + (pair * tokens + n.to(tl.int64)[:, None]) * (4 * QUARTER) + j[None, :]
    for axis in tl.static_range(2):
        position = tl.load(position_ptr + b * pb + n * 2 + axis, mask=n < tokens, other=0).to(tl.float32)
        angle_rad = position[:, None] * frequency[None, :]
        cos, sin = tl.cos(angle_rad), tl.sin(angle_rad) * sign
        first = 2 * QUARTER * axis
        u = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(source + first + QUARTER, mask=inside, other=0.0).to(tl.float32)
        tl.store(target + first, (u * cos - w * sin).to(out_ptr.dtype.element_ty), mask=inside)
        tl.store(target + first + QUARTER, (w * cos + u * sin).to(out_ptr.dtype.element_ty), mask=inside)


def _rotate(x: Tensor, positions: Tensor, base: float, sign: float) -> Tensor:
    x = last_dim_dense(x)
    batch, heads, tokens, dim = x.shape
    out = x.new_empty(x.shape)
    each = tokens * 2 if positions.ndim == 3 and positions.shape[0] > 1 else 0
    programs = triton.cdiv(tokens, ROWS) * batch * heads
    launch(
        *(_turn, programs, x, positions.contiguous(), frequencies(dim, base, x.device), out, heads, tokens, sign),
        *(*x.stride()[:3], each),
        QUARTER=dim // 4,
        BLOCK=triton.next_power_of_2(dim // 4),
        ROWS=ROWS,
    )
    return out


class Rope2d(torch.autograd.Function):
    """Forward and backward of `rope2d`."""

    @staticmethod
    def forward(ctx, x: Tensor, positions: Tensor, base: float) -> Tensor:
        """x [B, H, N, D], positions [N, 2] or [B, N, 2]."""
        ctx.save_for_backward(positions)
        ctx.base = base
        return _rotate(x, positions, base, 1.0)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """The gradient, turned back."""
        (positions,) = ctx.saved_tensors
        return _rotate(grads[0], positions, ctx.base, -1.0), None, None
