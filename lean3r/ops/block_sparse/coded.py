"""Keys and values of sparse attention in E4M3, one scale a block of keys and head."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.fp8 import dequantize, quantize_rows

KeyValues = Literal["full", "fp8"]


def check_kv(kv: KeyValues) -> KeyValues:
    """Return `kv` if there is such a form; raise UsageError otherwise."""
    if kv not in get_args(KeyValues):
        raise UsageError(f"kv is one of {', '.join(get_args(KeyValues))}, got {kv!r}")
    return kv


def quantize_blocks(x: Tensor, key_block: int, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys or values [B, H, nk * key_block, D] -> codes of the same shape in E4M3, scales [B, H, nk, 1].

    Each block of a head is rounded as a row is (ops/fp8); hidden keys are zeros, whatever they held.
    """
    if key_mask is not None:
        x = x.masked_fill(~key_mask[:, None, :, None], 0)
    codes, scale = quantize_rows(x.detach().unflatten(2, (-1, key_block)).flatten(3))
    return codes.view(x.shape), scale


def rounded_blocks(x: Tensor, key_block: int, key_mask: Tensor | None = None) -> Tensor:
    """What codes and scales of `quantize_blocks` stand for, in the type of x; gradients pass straight through."""
    return _Rounded.apply(x, key_block, key_mask)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, key_block: int, key_mask: Tensor | None) -> Tensor:
        codes, scale = quantize_blocks(x, key_block, key_mask)
        return dequantize(codes.unflatten(2, (-1, key_block)).flatten(3), scale).view(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None
