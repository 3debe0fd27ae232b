"""Quantisation to E4M3 by rows, in plain torch: what every other path is measured against."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Before = Literal["nothing", "norm", "gelu"]

E4M3 = torch.float8_e4m3fn
MAX = 448.0  # the largest E4M3 number; there is no infinity
SIGN = -(1 << 31)
LEAST = 1e-8  # of a row's largest magnitude, so that rows of zeros have a scale
FLOOR = {kind: torch.tensor(LEAST, dtype=kind, device="cpu").item() for kind in (torch.float32, torch.bfloat16)}


def kind_of_scale(dtype: torch.dtype) -> torch.dtype:
    """Type in which rows of `dtype` are divided by their scale: float16 has no number as small as the floor."""
    return torch.float32 if dtype == torch.float16 else dtype


def quantize_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] -> codes [..., K] in E4M3 and scales [..., 1]; all steps in the type of x, as Lite3R's release does."""
    x = x.to(kind_of_scale(x.dtype))
    scale = x.abs().amax(-1, keepdim=True).clamp(min=LEAST) / MAX
    scale = scale.masked_fill(scale.isinf(), torch.nan)
    return (x / scale).clamp(-MAX, MAX).to(E4M3), scale


def rows_reference(
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
    """[..., K] -> codes [..., padded] and scales [..., 1] of LayerNorm(x), GELU(x) or x.

    LayerNorm and GELU are computed in float32 and rounded to `dtype`; codes after the K-th are zeros.
    """
    depth = x.shape[-1]
    if before == "norm":
        gain, offset = (None if t is None else t.float() for t in (gain, offset))
        x = F.layer_norm(x.float(), (depth,), gain, offset, eps)
    elif before == "gelu":
        x = F.gelu(x.float())
    codes, scale = quantize_reference(x.to(dtype))
    return pad_codes(codes, columns=padded - depth), scale.to(scale_dtype)


def pad_codes(codes: Tensor, columns: int = 0, rows: int = 0) -> Tensor:
    """Codes with so many zeros after the last column and row; torch pads bytes, not E4M3."""
    if not (columns or rows):
        return codes
    return F.pad(codes.view(torch.uint8), (0, columns, 0, rows) if rows else (0, columns)).view(E4M3)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes [..., K] times scales [..., 1], in the type of the scales; finite codes, or scales that are NaN."""
    if codes.device.type != "cpu" or scale.dtype != torch.float32 or torch.compiler.is_compiling():
        return codes.to(scale.dtype) * scale
    # torch casts E4M3 one by one. As bits of a float32, sign, exponent and mantissa stand in place already; only the
    # exponent counts from 7, not from 127.
    bits = codes.view(torch.int8).to(torch.int32).bitwise_left_shift_(20).bitwise_and_(SIGN | 0x07F00000)
    return bits.view(torch.float32).mul_(2.0**120).mul_(scale)
