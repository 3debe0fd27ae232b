"""Symmetric integer quantisation by rows, and packing of two 4-bit codes into a byte."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-8  # of a row's largest magnitude, so that rows of zeros have a scale
_BYTES = 2 << 20  # of inputs and outputs of a product at a time: one or two second-level caches of a core
_ROWS = 256  # at least: every product rearranges its weight


def integer_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """[..., K] -> codes [..., K] int8 (int16 above 8 bits) and scales [..., 1] in the type of x.

    scale = max(amax |row|, 1e-8) / (2^(bits-1) - 1), code = x / scale to nearest, ties to even. NaN and infinities
    yield scales, and dequantised values, that are not finite.
    """
    codes, scale = _rows(x, bits)
    return codes.to(torch.int8 if bits <= 8 else torch.int16), scale


def round_rows(x: Tensor, bits: int) -> Tensor:
    """Codes of `integer_rows` times scales, in the type of x; NaN stays NaN."""
    codes, scale = _rows(x, bits)
    return (codes * scale).to(x.dtype)


def _rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float16:
        x = x.float()  # float16 has no number as small as the floor
    highest = 2 ** (bits - 1) - 1
    scale = x.abs().amax(-1, keepdim=True).clamp(min=FLOOR) / highest
    return (x / scale).round().clamp(-highest - 1, highest), scale


def integer_product(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [M, K] by codes [N, K] int8 with scales [N, 1], plus bias [N]: [M, N] in the type of x, with no gradient.

    x is rounded as in `integer_rows`; the sums are exact integers. Separate passes through memory for rounding and
    scaling would take longer than the product; so a few rows at a time go through all steps, in buffers that fit into
    the caches. CPU only.
    """
    if torch.compiler.is_compiling():  # pieces would fix the number of tokens in graphs for any
        codes, scale = integer_rows(x, 8)
        whole = torch.ops.aten._int_mm(codes, weight.t()) * scale.float() * weight_scale.t().float()
        return (whole if bias is None else whole + bias.float()).to(x.dtype)
    (tokens, depth), width, plain = x.shape, len(weight), x.dtype == torch.float32
    some = min(tokens, max(_ROWS, _BYTES // (4 * (depth + width))))
    out = x.new_empty(tokens, width)
    floats, whole = torch.empty(some, depth), torch.empty(some, depth, dtype=torch.int8)
    sums = torch.empty(some, width, dtype=torch.int32)
    row_scale, offset = weight_scale.t().float(), None if bias is None else bias.float()
    for start in range(0, tokens, max(1, some)):
        rows = slice(start, min(start + some, tokens))
        n = rows.stop - start
        if plain:  # integer_rows without allocations
            scale = torch.abs(x[rows], out=floats[:n]).amax(-1, keepdim=True).clamp_(min=FLOOR).div_(127)
            codes = whole[:n].copy_(torch.div(x[rows], scale, out=floats[:n]).round_())
        else:
            codes, scale = integer_rows(x[rows], 8)
        torch.ops.aten._int_mm.out(codes, weight.t(), out=sums[:n])
        part = out[rows] if plain else torch.empty(n, width)
        part.copy_(sums[:n]).mul_(scale)
        part = part.mul_(row_scale) if offset is None else torch.addcmul(offset, part, row_scale, out=part)
        if not plain:
            out[rows] = part
    return out


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes [N, K] from -8 to 7 -> [N, ceil(K / 2)] uint8; even columns in the low nibble."""
    low, high = F.pad(codes + 8, (0, codes.shape[1] % 2)).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
    return low | (high << 4)


def unpack_nibbles(packed: Tensor, depth: int) -> Tensor:
    """The inverse of `pack_nibbles` for K = depth: [N, K] int8."""
    both = torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :depth]
    return both.to(torch.int8) - 8
