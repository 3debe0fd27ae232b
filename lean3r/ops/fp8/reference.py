"""Quantisation to E4M3 by rows, in plain torch: what every other path is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
MAX = 448.0  # the largest E4M3 number; there is no infinity
SIGN = -(1 << 31)
FLOOR = 1e-8  # of a row's largest magnitude, so that rows of zeros have a scale


def quantize_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] -> codes [..., K] in E4M3 and scales [..., 1]; all steps in the type of x, as Lite3R's release does."""
    if x.dtype == torch.float16:
        x = x.float()  # float16 has no number as small as the floor
    scale = x.abs().amax(-1, keepdim=True).clamp(min=FLOOR) / MAX
    scale = scale.masked_fill(scale.isinf(), torch.nan)
    return (x / scale).clamp(-MAX, MAX).to(E4M3), scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes [..., K] times scales [..., 1], in the type of the scales; finite codes, or scales that are NaN."""
    if codes.device.type != "cpu" or scale.dtype != torch.float32 or torch.compiler.is_compiling():
        return codes.to(scale.dtype) * scale
    # torch casts E4M3 one by one. As bits of a float32, sign, exponent and mantissa stand in place already; only the
    # exponent counts from 7, not from 127.
    bits = codes.view(torch.int8).to(torch.int32).bitwise_left_shift_(20).bitwise_and_(SIGN | 0x07F00000)
    return bits.view(torch.float32).mul_(2.0**120).mul_(scale)
