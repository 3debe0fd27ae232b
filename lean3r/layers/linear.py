"""The linear layer of large models: torch's, with oneDNN's float32 product on CPUs where MKL is half as fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.ops.fp8 import Rows, gelu_rows, norm_rows
from lean3r.ops.residual import in_one_kernel, norm_to

PLAIN = (Tensor, nn.Parameter)
FEW_OUTPUTS = 32  # with fewer outputs oneDNN is not faster


def _has_kernel() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


HAS_KERNEL = _has_kernel()
"""Whether this build and this processor have oneDNN's product, which torch.compile uses too."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., K] times weight [N, K] -> [..., N], as torch.nn.functional.linear.

    Without gradients, float32 products on a CPU with AVX-512 are computed by oneDNN. torch uses MKL, which uses only
    half the vector width on processors of other makers than Intel (Zen 5: 95 against 205 GFLOP/s per core). The
    results differ by the order of summation.
    """
    if (
        HAS_KERNEL
        and weight.shape[0] >= FEW_OUTPUTS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and type(x) in PLAIN
        and type(weight) in PLAIN  # not quantised weights or fake tensors
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()  # counters of operations know only torch's own
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """torch.nn.Linear with `linear` as its product."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]; half-precision weights multiply in their own number type."""
        weight = self.weight
        return linear(x.to(weight.dtype) if weight.itemsize == 2 else x, weight, self.bias)


class TakesRows:
    """Mixin of layers that may take their inputs as `Rows`, rounded already."""

    def takes_rows(self, x: Tensor) -> bool:
        """Whether inputs like x [..., K] are wanted as `Rows`; the layer takes tensors all the same."""
        raise TypeError(f"{type(self).__name__} defines no takes_rows")

    def takes_half(self, x: Tensor) -> bool:
        """Whether inputs like x [..., K] go into products alone, so that they may come in the products' number type."""
        return True


def takes_rows(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer wants inputs like x [..., K] as `Rows`."""
    return isinstance(layer, TakesRows) and layer.takes_rows(x)


def norm_for(reader: nn.Module, norm: nn.Module, x: Tensor) -> Tensor | Rows:
    """norm(x) as the layer that reads it wants it: for `Rows`, and on a GPU for products in half precision, which torch
    would take from float32 under autocast, LayerNorm and rounding are one pass."""
    if not (type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None):
        return norm(x)
    trains = torch.is_grad_enabled() and norm.weight.requires_grad
    if not trains and takes_rows(reader, x):
        return norm_rows(x, norm.weight, norm.bias, norm.eps)
    kind = x.device.type
    fits = isinstance(reader, TakesRows) and in_one_kernel(x, norm, reader) and reader.takes_half(x)
    if fits and torch.is_autocast_enabled(kind):
        return norm_to(x, norm.weight, norm.bias, norm.eps, torch.get_autocast_dtype(kind))
    return norm(x)


def gelu_for(reader: nn.Module, x: Tensor) -> Tensor | Rows:
    """Exact GELU(x) as the layer that reads it wants it."""
    return gelu_rows(x) if takes_rows(reader, x) else F.gelu(x)
