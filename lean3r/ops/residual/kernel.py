"""Norm and scaled sum in Triton: every number is read once and written once; a program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.residual.reference import widest
from lean3r.ops.tiles import launch

NUMBERS_A_WARP = 512


@triton.jit
def _norm(x_ptr, gain_ptr, offset_ptr, out_ptr, depth, stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < depth
    x = tl.load(x_ptr + row * stride + k, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + k, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + k, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, x - tl.sum(x, 0) / depth, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / depth + eps)
    tl.store(out_ptr + row * depth + k, (x * gain + offset).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_scaled(
    x_ptr, branch_ptr, gamma_ptr, out_ptr, depth, x_stride, branch_stride, SCALED: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < depth
    x = tl.load(x_ptr + row * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    branch = tl.load(branch_ptr + row * branch_stride + k, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        branch *= tl.load(gamma_ptr + k, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * depth + k, (x + branch).to(out_ptr.dtype.element_ty), mask=inside)


def norm_to(x: Tensor, gain: Tensor, offset: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """See `norm_to` of the package."""
    rows, block, warps = _rows(x)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    given = (gain.contiguous(), offset.contiguous(), out, x.shape[-1], rows.stride(0), eps)
    launch(_norm, len(rows), rows, *given, BLOCK=block, num_warps=warps)
    return out


def add_scaled(x: Tensor, branch: Tensor, gamma: Tensor | None, out: Tensor | None) -> Tensor:
    """See `add_scaled` of the package."""
    rows, block, warps = _rows(x)
    more, _, _ = _rows(branch.expand(x.shape))
    result = out
    if result is None or not result.is_contiguous():
        result = torch.empty(x.shape, dtype=widest(x, branch, gamma), device=x.device)
    scale = rows if gamma is None else gamma.contiguous()
    sizes = (x.shape[-1], rows.stride(0), more.stride(0))
    launch(
        _add_scaled, len(rows), rows, more, scale, result, *sizes, SCALED=gamma is not None, BLOCK=block,
        num_warps=warps,
    )  # fmt: skip
    return result if out is None or result is out else out.copy_(result)


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """x [..., K] as rows of neighbouring numbers, K rounded up to a power of two, and warps for each row."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    block = triton.next_power_of_2(x.shape[-1])
    return rows, block, min(16, max(1, block // NUMBERS_A_WARP))
