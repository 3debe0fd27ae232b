"""Quantisation by rows in Triton: one read of x, one write of the codes; a program a row.

LayerNorm or GELU of a row can be computed first, so that the numbers in between never go to memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.fp8.reference import E4M3, FLOOR, MAX, Before, kind_of_scale
from lean3r.ops.tiles import launch

TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
HARDWARE_SINCE = 89  # compute capability
NUMBERS_A_WARP = 1024  # few warps a row: what a row costs besides its numbers is shared by more of them


@triton.jit
def _gelu(x):
    """x Phi(x) as max(x, 0) - |x| Phi(-|x|): no cancellation, and a third of the instructions of erf.

    Phi(-a) = 2^P(a), P fitted on [0, 5.5], where a Phi(-a) has fallen to 1e-7. Errors: 3e-7, and 2e-4 of the value for
    |x| < 4, where bfloat16 has 4e-3.
    """
    size = tl.abs(x)
    a = tl.minimum(size, 5.5)
    power = 3.3206772059202194e-05 * a - 0.0007676668465137482
    power = power * a + 0.008066948503255844
    power = power * a - 0.05337607488036156
    power = power * a - 0.4588109850883484
    power = power * a - 1.1511828899383545
    power = power * a - 0.9999959468841553
    return tl.maximum(x, 0.0) - size * tl.exp2(power)


@triton.jit
def _code(ratio, LIMIT: tl.constexpr, SHIFT: tl.constexpr):
    """Float32 to E4M3 in integers, for GPUs without such a cast and for the interpreter, which rounds otherwise."""
    size = tl.minimum(tl.abs(ratio), LIMIT)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)  # 3 bits of mantissa, ties to even
    subnormal = (((size + SHIFT) - SHIFT) * 512).to(tl.int32)  # the sum has 2^-9 as its last bit
    code = tl.where(size < 0.015625, subnormal, normal)
    code = tl.where(ratio != ratio, 0x7F, code)
    return (code + (ratio.to(tl.int32, bitcast=True) < 0).to(tl.int32) * 128).to(tl.uint8)


@triton.jit
def _quantize(
    x_ptr, gain_ptr, offset_ptr, codes_ptr, scale_ptr, depth, padded, eps, floor, stride,
    BEFORE: tl.constexpr, DTYPE: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
    LIMIT: tl.constexpr, SHIFT: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < depth
    x = tl.load(x_ptr + row * stride + k, mask=inside, other=0.0).to(tl.float32)
    if BEFORE == "norm":
        x = tl.where(inside, x - tl.sum(x, 0) / depth, 0.0)
        x = x * tl.rsqrt(tl.sum(x * x, 0) / depth + eps)
        gain = tl.load(gain_ptr + k, mask=inside, other=0.0).to(tl.float32)
        x = x * gain + tl.load(offset_ptr + k, mask=inside, other=0.0).to(tl.float32)
    if BEFORE == "gelu":
        x = _gelu(x)
    x = x.to(DTYPE).to(tl.float32)
    # As integers, the bits of NaN and infinities are larger than those of all other magnitudes.
    largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
    highest = tl.maximum(largest.to(tl.float32, bitcast=True), floor)
    highest = tl.where(largest < 0x7F800000, highest, float("nan"))
    # As the reference: scale and quotient are rounded to KIND, the type of the numbers or wider.
    scale = tl.div_rn(highest, LIMIT).to(KIND).to(tl.float32)
    inverse = tl.div_rn(1.0, scale)
    ratio = x * inverse
    if tl.float32 == KIND:  # bfloat16 has so few bits that this product rounds as the quotient; float32 is corrected
        ratio = tl.fma(tl.fma(-ratio, scale, x), inverse, ratio)
        ratio = tl.fma(tl.fma(-ratio, scale, x), inverse, ratio)
    ratio = ratio.to(KIND).to(tl.float32)
    code = ratio.to(tl.float8e4nv).to(tl.uint8, bitcast=True) if HARDWARE else _code(ratio, LIMIT, SHIFT)
    tl.store(codes_ptr + row * padded + k, code, mask=k < padded)
    tl.store(scale_ptr + row, scale.to(scale_ptr.dtype.element_ty))


def has_cast(x: Tensor) -> bool:
    """Whether the device of x casts to E4M3 itself, to nearest, ties to even."""
    if triton.knobs.runtime.interpret:
        return False
    with torch.cuda.device_of(x):
        target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and int(target.arch) >= HARDWARE_SINCE


def quantize_fused(
    x: Tensor,
    before: Before = "nothing",
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    eps: float = 0.0,
    *,
    dtype: torch.dtype,
    scale_dtype: torch.dtype,
    padded: int,
) -> tuple[Tensor, Tensor]:
    """As `rows_reference`, for any x [..., K] whose last axis is not empty."""
    depth = x.shape[-1]
    flat = x.reshape(-1, depth)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    codes = torch.empty(len(flat), padded, dtype=torch.uint8, device=x.device)
    scale = torch.empty(len(flat), 1, dtype=scale_dtype, device=x.device)
    kind, block = kind_of_scale(dtype), triton.next_power_of_2(padded)
    launch(
        _quantize, len(flat), flat, gain, offset, codes, scale, depth, padded, eps, FLOOR[kind], flat.stride(0),
        BEFORE=before, DTYPE=TYPES[dtype], KIND=TYPES[kind], BLOCK=block, LIMIT=MAX, SHIFT=1.5 * 2**14,
        HARDWARE=has_cast(x),
        num_warps=min(16, max(1, block // NUMBERS_A_WARP)),
    )  # fmt: skip
    return codes.view(E4M3).view(*x.shape[:-1], padded), scale.view(*x.shape[:-1], 1)
