"""LayerNorm of queries or keys, their rotation by position, and the means of their windows, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.dispatch import Implementation, choose
from lean3r.ops.norm_rotate.reference import reference
from lean3r.ops.registered import operator

__all__ = ["norm_rotate"]

_MAX_HEAD_DIM = 256
_LARGEST_WINDOW = 64


def norm_rotate(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    table: tuple[Tensor, Tensor] | None,
    *,
    tokens: int,
    special: int = 0,
    window: int = 0,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
    patches_first: bool = False,
    pairs: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """LayerNorm of x [B, H, N, D] over D, then rotation, in `dtype` (None: that of x); and means of x itself.

    N is a multiple of `tokens`, those of a view. weight and bias [D]; without them there is no norm. table (cos, sin),
    each [tokens, D], of which quarters 0 and 2 are read: channels of quarter 0 turn with those of quarter 1, 2 with 3;
    None: no rotation. The second result [B, H, n, D], in x's type, holds the means of each `window` neighbouring tokens
    behind the first `special` ones of every view; it is empty for window 0. With `patches_first` the first result has
    the tokens behind the `special` ones of all views first, then all special ones.

    With `pairs` neighbouring channels turn together, 2i and 2i + 1 by angle i of a table of [tokens, D / 2]; there are
    neither windows nor `patches_first` then.

    The kernel serves head_dim up to 256 and windows of 2, 4, ..., 64 tokens, and records no gradients: where they are
    wanted, the reference runs. UsageError for sizes that do not fit.
    """
    dim = x.shape[-1]
    if x.ndim != 4 or dim % 4 or tokens < 1 or x.shape[2] % tokens:
        raise UsageError(f"norm_rotate expects [B, H, N, D], N a multiple of {tokens}, D of 4; got {list(x.shape)}")
    if window < 0 or (window and (special > tokens or (tokens - special) % window)):
        raise UsageError(f"norm_rotate: {tokens} tokens without {special} are no multiple of window {window}")
    if pairs and (window or patches_first):
        raise UsageError("norm_rotate: with pairs there are neither windows nor patches_first")
    turns = tokens, dim // 2 if pairs else dim
    for name, given, shape in (("weight", weight, (dim,)), ("bias", bias, (dim,)), ("table", table, turns)):
        for one in given if isinstance(given, tuple) else (given,):
            if one is not None and tuple(one.shape) != shape:
                raise UsageError(f"norm_rotate: {name} is {list(shape)}, got {list(one.shape)}")
    cos, sin = table or (None, None)
    kind = x.dtype if dtype is None else dtype
    sizes = (tokens, special, window)
    return _operator(x, weight, bias, cos, sin, *sizes, eps, kind, patches_first, pairs, implementation)


def _run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    tokens: int,
    special: int,
    window: int,
    eps: float,
    dtype: torch.dtype,
    patches_first: bool,
    pairs: bool,
    implementation: Implementation,
) -> tuple[Tensor, Tensor]:
    given = [t for t in (x, weight, bias, cos, sin) if t is not None]
    reason = _unsupported(x.shape[-1], window)
    how = choose("norm_rotate", implementation, given, unsupported=reason)
    if how == "triton" and not (torch.is_grad_enabled() and any(t.requires_grad for t in given)):
        from lean3r.ops.norm_rotate.kernel import norm_rotate as run
    else:
        run = reference
    return run(x, weight, bias, cos, sin, tokens, special, window, eps, dtype, patches_first, pairs)


def _unsupported(dim: int, window: int) -> str | None:
    if dim > _MAX_HEAD_DIM:
        return f"head_dim {dim} is above {_MAX_HEAD_DIM}"
    if window & (window - 1) or window > _LARGEST_WINDOW:
        return f"windows of {window} tokens are not a power of two up to {_LARGEST_WINDOW}"
    return None


def _shapes(x: Tensor, *rest) -> tuple[Tensor, Tensor]:
    tokens, special, window, _, dtype, *_ = rest[4:]
    means = x.shape[2] // tokens * ((tokens - special) // window) if window else 0
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(*x.shape[:2], means, x.shape[3])


_operator = operator(
    "norm_rotate",
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? cos, Tensor? sin, int tokens, int special, int window, "
    "float eps, ScalarType dtype, bool patches_first, bool pairs, str implementation) -> (Tensor, Tensor)",
    _run,
    _shapes,
)
