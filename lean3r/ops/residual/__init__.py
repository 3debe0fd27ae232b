"""What lies between the products of a pre-norm block: LayerNorm of the residual stream, and its next sum.

In half precision the stream stays in float32, as torch's autocast has it. Pass by pass, a norm and a sum are 12 and 18
bytes a number; each as one kernel, 6 and 10.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from lean3r.ops.dispatch import Implementation, choose, why_not_triton
from lean3r.ops.residual.reference import add_scaled_reference, norm_reference

__all__ = ["add_scaled", "in_one_kernel", "norm_to"]

LARGEST_ROW = 1 << 13  # that one program of the kernels holds


def in_one_kernel(x: Tensor, *modules: nn.Module) -> bool:
    """Whether the kernels serve x [..., K] in the place of modules: on a GPU with Triton, without gradients, unless
    hooks watch a module. A compiler of torch's, where it traces, fuses these steps itself."""
    if not x.is_cuda or isinstance(x, FakeTensor) or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    watched = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    return not watched and 0 < x.shape[-1] <= LARGEST_ROW and why_not_triton([x]) is None


def norm_to(
    x: Tensor, gain: Tensor, offset: Tensor, eps: float, dtype: torch.dtype, *, implementation: Implementation = "auto"
) -> Tensor:
    """LayerNorm of x [..., K] in float32 with gain and offset [K], rounded to `dtype`. No gradients."""
    run = norm_reference
    if choose("norm_to", implementation, (x, gain, offset)) == "triton":
        from lean3r.ops.residual.kernel import norm_to as run
    with torch.no_grad():
        return run(x, gain, offset, eps, dtype)


def add_scaled(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor | None,
    *,
    out: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """x + branch * gamma, x and branch [..., K], gamma [K] or None for 1; in the widest of their types, or into `out`,
    which may be x. No gradients."""
    given = [t for t in (x, branch, gamma) if t is not None]
    run = add_scaled_reference
    if choose("add_scaled", implementation, given) == "triton":
        from lean3r.ops.residual.kernel import add_scaled as run
    with torch.no_grad():
        return run(x, branch, gamma, out)
