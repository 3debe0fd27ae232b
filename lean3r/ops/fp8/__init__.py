"""FP8 (E4M3, one scale a row): quantise, and multiply on hardware that has it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.errors import KernelError, UsageError
from lean3r.ops.dispatch import Implementation, choose
from lean3r.ops.fp8.reference import E4M3, dequantize, quantize_reference

__all__ = ["E4M3", "Product", "choose_product", "dequantize", "quantize_rows", "scaled_product", "why_not_scaled_mm"]

Product = Literal["auto", "reference", "scaled_mm"]
MULTIPLE = 16  # that GPUs want of both sides of a weight
LARGEST_ROW = 1 << 15  # that one program of the kernel holds
OLDEST = (8, 9)  # compute capability with E4M3 matrix units


def quantize_rows(x: Tensor, *, implementation: Implementation = "auto") -> tuple[Tensor, Tensor]:
    """[..., K] -> codes [..., K] in E4M3 and scales [..., 1] in the type of x (float32 for float16).

    scale = max(amax |row|, 1e-8) / 448, code = x / scale to nearest, ties to even. A row of zeros gives zeros. A row
    with a NaN or an infinity has the scale NaN, and so is all that is dequantised from it, as a product would be.
    """
    if choose("quantize_rows", implementation, [x], unsupported=_why_not_fused(x)) == "triton":
        from lean3r.ops.fp8.kernel import quantize_fused

        return quantize_fused(x.detach())
    return quantize_reference(x)


def _why_not_fused(x: Tensor) -> str | None:
    inside = 0 < x.shape[-1] <= LARGEST_ROW
    return None if inside else f"rows of {x.shape[-1]} numbers, expected 1 to {LARGEST_ROW}"


def why_not_scaled_mm(device: torch.device) -> str | None:
    """Reason why torch does not multiply E4M3 by row scales on a device; None where it does."""
    if not hasattr(F, "scaled_mm"):
        return f"torch {torch.__version__} has no scaled_mm"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"the tensors are on {device}, neither on a CPU nor on a CUDA device"
    if torch.version.hip is not None:
        return "the GPU is no NVIDIA one"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST[0]}.{OLDEST[1]}: no FP8 units"
    return None


def choose_product(wanted: Product, device: torch.device) -> Literal["reference", "scaled_mm"]:
    """Resolve `wanted`: "auto" takes scaled_mm on GPUs with FP8 units and the reference elsewhere.

    CPUs multiply E4M3 too, but no faster than dequantised weights. KernelError with the reason when scaled_mm is
    asked for and cannot run, UsageError for an unknown name.
    """
    if wanted not in get_args(Product):
        raise UsageError(f"implementation is one of {', '.join(get_args(Product))}, got {wanted!r}")
    if wanted == "reference" or (wanted == "auto" and device.type != "cuda"):
        return "reference"
    reason = why_not_scaled_mm(device)
    if reason is None:
        return "scaled_mm"
    if wanted == "auto":
        return "reference"
    raise KernelError(f"FP8 products cannot run: {reason}; implementation='auto' takes the reference")


def scaled_product(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Codes [..., K] by weight codes [N, K], with scales [..., 1] and [N, 1] -> [..., N] in `dtype`, on E4M3 hardware.

    GPUs want K and N in multiples of 16: others are padded with zeros here, and their products leave in bfloat16.
    """
    lead, (rows, depth) = x.shape[:-1], weight.shape
    flat, flat_scale, row_scale = x.reshape(-1, depth), x_scale.reshape(-1, 1).float(), weight_scale.float()
    if not len(flat):
        return flat_scale.new_empty(*lead, rows, dtype=dtype)
    between = dtype
    if x.is_cuda:
        between = torch.bfloat16
        more_k, more_n = -depth % MULTIPLE, -rows % MULTIPLE
        if more_k or more_n:
            flat, weight = _pad(flat, more_k, 0), _pad(weight, more_k, more_n)
            row_scale = F.pad(row_scale, (0, 0, 0, more_n), value=1.0)
    recipe = F.ScalingType.RowWise
    out = F.scaled_mm(
        flat, weight.t(), flat_scale, recipe, row_scale.t().contiguous(), recipe, output_dtype=between
    )  # fmt: skip
    out = out[:, :rows].to(dtype)
    return (out if bias is None else out + bias.to(dtype)).reshape(*lead, rows)


def _pad(codes: Tensor, columns: int, rows: int) -> Tensor:
    """Codes with zeros after the last column and row; torch pads bytes, not E4M3."""
    return F.pad(codes.view(torch.uint8), (0, columns, 0, rows)).view(E4M3)
