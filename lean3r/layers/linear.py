"""The linear layer of everything big: torch's, with oneDNN's product in float32 on CPUs where MKL's is half as fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

PLAIN = (Tensor, nn.Parameter)
FEW_OUTPUTS = 32  # below this there is nothing to gain


def _has_kernel() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


HAS_KERNEL = _has_kernel()
"""Whether this build and processor have the product that torch.compile would use as well."""

if HAS_KERNEL:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape, weight_shape, *_, out_shape=None, **__) -> int:
        return 2 * torch.Size(x_shape).numel() * weight_shape[0]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., K] by weight [N, K] -> [..., N], as torch.nn.functional.linear.

    Where no gradient is recorded, float32 products on a CPU with AVX-512 go to oneDNN. torch sends them to MKL, which
    uses half the vector width on processors that are not Intel's (Zen 5: 95 against 205 GFLOP/s a core); the results
    differ by the order of summation.
    """
    if (
        HAS_KERNEL
        and weight.shape[0] >= FEW_OUTPUTS
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and type(x) in PLAIN
        and type(weight) in PLAIN  # quantised weights and tensors without values are not
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """torch.nn.Linear in every respect but the product, which is `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return linear(x, self.weight, self.bias)
