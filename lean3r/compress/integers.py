"""Symmetric integer quantisation by rows, and two codes of 4 bits in a byte."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-8  # of a row's largest magnitude, so that rows of zeros have a scale


def integer_rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """[..., K] -> codes [..., K] int8 (int16 above 8 bits) and scales [..., 1] in the type of x.

    scale = max(amax |row|, 1e-8) / (2^(bits-1) - 1), code = x / scale to nearest, ties to even. NaN and infinities
    give scales that are not finite, and so does what is dequantised.
    """
    codes, scale = _rows(x, bits)
    return codes.to(torch.int8 if bits <= 8 else torch.int16), scale


def rounded_rows(x: Tensor, bits: int) -> Tensor:
    """Codes of `integer_rows` times scales, in the type of x; NaN stays NaN."""
    codes, scale = _rows(x, bits)
    return (codes * scale).to(x.dtype)


def _rows(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    if x.dtype == torch.float16:
        x = x.float()  # float16 has no number as small as the floor
    highest = 2 ** (bits - 1) - 1
    scale = x.abs().amax(-1, keepdim=True).clamp(min=FLOOR) / highest
    return (x / scale).round().clamp(-highest - 1, highest), scale


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes [N, K] from -8 to 7 -> [N, ceil(K / 2)] uint8, the even one in the low half."""
    low, high = F.pad(codes + 8, (0, codes.shape[1] % 2)).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
    return low | (high << 4)


def unpack_nibbles(packed: Tensor, depth: int) -> Tensor:
    """The inverse of `pack_nibbles` for K = depth: [N, K] int8."""
    both = torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :depth]
    return both.to(torch.int8) - 8
