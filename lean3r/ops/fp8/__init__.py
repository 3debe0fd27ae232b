"""FP8 (E4M3, one scale a row): quantise, and multiply on hardware that has it."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.errors import KernelError, UsageError
from lean3r.ops.dispatch import Implementation, choose
from lean3r.ops.fp8.reference import (
    E4M3,
    Before,
    dequantize,
    kind_of_scale,
    pad_codes,
    quantize_reference,
    rows_reference,
)
from lean3r.ops.registered import operator

__all__ = [
    "E4M3",
    "Operand",
    "Product",
    "Rows",
    "choose_product",
    "dequantize",
    "gelu_rows",
    "lay_out",
    "norm_rows",
    "quantize_rows",
    "rows_of",
    "scaled_product",
    "why_not_scaled_mm",
]

Product = Literal["auto", "reference", "scaled_mm"]
MULTIPLE = 16  # that GPUs want of both sides of a weight
LARGEST_ROW = 1 << 15  # that one program of the kernel holds
OLDEST = (8, 9)  # compute capability with E4M3 matrix units


def quantize_rows(x: Tensor, *, implementation: Implementation = "auto") -> tuple[Tensor, Tensor]:
    """[..., K] -> codes [..., K] in E4M3 and scales [..., 1] in the type of x (float32 for float16).

    scale = max(amax |row|, 1e-8) / 448, code = x / scale to nearest, ties to even. A row of zeros gives zeros. A row
    with a NaN or an infinity has the scale NaN, and so is all that is dequantised from it, as a product would be.
    """
    if implementation == "reference" or (implementation == "auto" and not x.is_cuda):
        return quantize_reference(x)
    kind = kind_of_scale(x.dtype)
    return _fp8_rows(x.detach(), "nothing", None, None, 0.0, x.dtype, kind, x.shape[-1], implementation)


class Rows(NamedTuple):
    """Inputs [..., K] of a product on FP8 hardware: codes [..., K'] in E4M3 and scales [..., 1] in float32.

    On GPUs K' is the next multiple of 16, and codes after the K-th are zeros. `dtype` is that of the numbers before.
    """

    codes: Tensor
    scale: Tensor
    dtype: torch.dtype


def rows_of(x: Tensor, *, implementation: Implementation = "auto") -> Rows:
    """x [..., K], rounded as by `quantize_rows`. No gradients, here and below."""
    return _rows(x, "nothing", x.dtype, implementation)


def norm_rows(x: Tensor, gain: Tensor, offset: Tensor, eps: float, *, implementation: Implementation = "auto") -> Rows:
    """LayerNorm(x) of x [..., K] with gain and offset [K], rounded as by `quantize_rows`: one kernel, x is read once.

    The norm is computed in float32 and rounded to what it returns in torch: float32 under autocast, else the type of
    x. Against LayerNorm and `quantize_rows` apart, sums are added in another order (1e-6): a code may be its neighbour.
    """
    kind = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
    return _rows(x, "norm", kind, implementation, gain, offset, eps)


def gelu_rows(x: Tensor, *, implementation: Implementation = "auto") -> Rows:
    """Exact GELU(x) of x [..., K], computed in float32, rounded to the type of x, then as by `quantize_rows`."""
    return _rows(x, "gelu", x.dtype, implementation)


def _rows(
    x: Tensor,
    before: Before,
    dtype: torch.dtype,
    implementation: Implementation,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    eps: float = 0.0,
) -> Rows:
    depth = x.shape[-1]
    padded = depth + (-depth % MULTIPLE if x.is_cuda else 0)
    with torch.no_grad():
        codes, scale = _fp8_rows(x, before, gain, offset, eps, dtype, torch.float32, padded, implementation)
    return Rows(codes, scale, dtype)


def _run(
    x: Tensor,
    before: str,
    gain: Tensor | None,
    offset: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    scale_dtype: torch.dtype,
    padded: int,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    given = [x] if gain is None or offset is None else [x, gain, offset]
    how = choose("quantize_rows", implementation, given, unsupported=_why_not_fused(x))  # type: ignore[arg-type]
    if how == "triton":
        from lean3r.ops.fp8.kernel import quantize_fused as quantize
    else:
        quantize = rows_reference
    return quantize(x, before, gain, offset, eps, dtype=dtype, scale_dtype=scale_dtype, padded=padded)  # type: ignore[arg-type]


def _shapes(x: Tensor, before, gain, offset, eps, dtype, scale_dtype, padded, implementation) -> tuple[Tensor, Tensor]:
    lead = x.shape[:-1]
    return x.new_empty(*lead, padded, dtype=E4M3), x.new_empty(*lead, 1, dtype=scale_dtype)


_fp8_rows = operator(
    "fp8_rows",
    "(Tensor x, str before, Tensor? gain, Tensor? offset, float eps, ScalarType dtype, ScalarType scale_dtype, "
    "int padded, str implementation) -> (Tensor, Tensor)",
    _run,
    _shapes,
)
"""See `rows_reference`."""


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


class Operand(NamedTuple):
    """A weight [N, K] laid out for products: codes [N', K'] with zeros at the end, scales [1, N'] in float32, and N."""

    codes: Tensor
    scale: Tensor
    width: int


def lay_out(weight: Tensor, weight_scale: Tensor) -> Operand:
    """Codes [N, K] and scales [N, 1]; GPUs want K and N in multiples of 16. What is laid out already is not copied."""
    width, depth = weight.shape
    scale = weight_scale.float().t()
    if not weight.is_cuda:
        return Operand(weight, scale, width)
    more = -width % MULTIPLE
    codes = pad_codes(weight, columns=-depth % MULTIPLE, rows=more)
    return Operand(codes, F.pad(scale, (0, more), value=1.0) if more else scale, width)


def scaled_product(
    rows: Rows, weight: Operand, bias: Tensor | None, dtype: torch.dtype, *, fast_accum: bool = True
) -> Tensor:
    """Rows [..., K] times a weight [N, K], plus bias [N] -> [..., N] in `dtype`, on E4M3 hardware.

    On GPUs the bias is rounded to bfloat16 and added inside the product, which leaves in bfloat16. With `fast_accum`,
    GPUs of the Hopper generation keep their sums in the matrix units, with some 14 bits; without, in float32.
    """
    lead, codes = rows.codes.shape[:-1], rows.codes.reshape(-1, rows.codes.shape[-1])
    more = len(weight.codes) - weight.width
    if codes.is_cuda and bias is not None:
        bias = bias.to(torch.bfloat16)
        bias = F.pad(bias, (0, more)) if more else bias
    if not len(codes):
        return codes.new_empty(*lead, weight.width, dtype=dtype)
    recipe = F.ScalingType.RowWise
    out = F.scaled_mm(
        codes, weight.codes.t(), rows.scale.reshape(-1, 1), recipe, weight.scale, recipe, bias=bias,
        output_dtype=torch.bfloat16 if codes.is_cuda else dtype, use_fast_accum=fast_accum,
    )  # fmt: skip
    return out.narrow(1, 0, weight.width).to(dtype).view(*lead, weight.width)
