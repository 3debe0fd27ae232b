"""Rotation of head channels by row and column: the two-axis rotary position embedding."""

from __future__ import annotations

from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.dispatch import Implementation, choose
from lean3r.ops.registered import operator
from lean3r.ops.rope2d.reference import reference

__all__ = ["rope2d"]


def rope2d(x: Tensor, positions: Tensor, *, base: float = 100.0, implementation: Implementation = "auto") -> Tensor:
    """Turn x [B, H, N, D] by positions [N, 2] or [B, N, 2] (row, column), integer or real.

    The first half of the channels turns with the row, the second with the column; inside a half of h channels,
    j is paired with j + h / 2 and turns by position * base ** (-2 j / h). Gradients flow to x only.
    """
    if x.shape[-1] % 4:
        raise UsageError(f"rope2d needs head_dim a multiple of 4, got {x.shape[-1]}")
    if positions.shape[-2:] != (x.shape[2], 2) or positions.ndim > 3:
        raise UsageError(f"rope2d needs positions [{x.shape[2]}, 2] or [B, {x.shape[2]}, 2], got {[*positions.shape]}")
    return _operator(x, positions, base, implementation)


def _run(x: Tensor, positions: Tensor, base: float, implementation: Implementation) -> Tensor:
    if choose("rope2d", implementation, [x]) == "triton":
        from lean3r.ops.rope2d.kernel import Rope2d

        return Rope2d.apply(x, positions, base)
    return reference(x, positions, base)


_operator = operator(
    "rope2d",
    "(Tensor x, Tensor positions, float base, str implementation) -> Tensor",
    _run,
    lambda x, *_: x.new_empty(x.shape),
)
