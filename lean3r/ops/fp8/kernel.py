"""Quantisation by rows in Triton: one read of x, one write of the codes; a program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.fp8.reference import E4M3, FLOOR, MAX
from lean3r.ops.tiles import launch


@triton.jit
def _quantize(
    x_ptr, codes_ptr, scale_ptr, depth, floor, stride,
    BLOCK: tl.constexpr, LIMIT: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < depth
    x = tl.load(x_ptr + row * stride + k, mask=inside, other=0.0).to(tl.float32)
    highest = tl.maximum(tl.max(tl.abs(x), 0), floor)
    broken = tl.max(((x - x) != 0).to(tl.int32), 0)  # NaN and infinities
    highest = tl.where(broken > 0, float("nan"), highest)
    # As the reference: scale and quotient are rounded to the type of the scale, which is that of x or wider.
    kind = scale_ptr.dtype.element_ty
    scale = tl.div_rn(highest, LIMIT).to(kind)
    ratio = tl.div_rn(x, scale.to(tl.float32)).to(kind).to(tl.float32)
    size = tl.minimum(tl.abs(ratio), LIMIT)
    # The code in integers, so that the kernel runs where Triton has no cast to E4M3, or one that rounds otherwise.
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # 3 bits of mantissa, ties to even
    subnormal = (((size + SHIFT) - SHIFT) * 512).to(tl.int32)  # the sum has 2^-9 as its last bit
    code = tl.where(size < 0.015625, subnormal, normal)
    code = tl.where(ratio != ratio, 0x7F, code)
    negative = ratio.to(tl.int32, bitcast=True) < 0
    tl.store(codes_ptr + row * depth + k, (code + negative.to(tl.int32) * 128).to(tl.uint8), mask=inside)
    tl.store(scale_ptr + row, scale)


def quantize_fused(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_reference`, for any x [..., K] whose last axis is not empty."""
    depth = x.shape[-1]
    flat = x.reshape(-1, depth)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    codes = torch.empty(flat.shape, dtype=E4M3, device=x.device)
    kind = torch.float32 if x.dtype == torch.float16 else x.dtype
    scale = torch.empty(len(flat), 1, dtype=kind, device=x.device)
    floor = torch.tensor(FLOOR, dtype=kind).item()
    launch(
        _quantize, len(flat), flat, codes.view(torch.uint8), scale, depth, floor, flat.stride(0),
        BLOCK=triton.next_power_of_2(depth), LIMIT=MAX, SHIFT=1.5 * 2**14, num_warps=4 if depth <= 2048 else 8,
    )  # fmt: skip
    return codes.view(x.shape), scale.view(*x.shape[:-1], 1)
