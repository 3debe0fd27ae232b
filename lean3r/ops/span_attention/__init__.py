"""Attention of all queries to runs of rows of one buffer, which stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.dispatch import Implementation, choose, too_large, why_not_triton
from lean3r.ops.registered import operator
from lean3r.ops.span_attention.reference import FEW, reference

__all__ = ["has_kernel", "span_attention"]

_MAX_HEAD_DIM = 128


def span_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Tensor,
    *,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """softmax(q k^T * scale) v [H, N, D] of q [H, N, D], over the runs of rows of k and v [H, R, D] that `spans` lists.

    spans [S, 2] int32, on the device of q: the first row and the number of rows of each run; a run may be empty, not
    all of them. k and v may be strided in all but D. Rows outside of the runs are not looked at, NaN or not. scale is
    above 0 (None: D**-0.5). The kernel reads `spans` on the device: a CUDA graph of the call follows what is written
    there later. It serves head_dim up to 128 and records no gradients: where they are wanted, the reference runs.

    UsageError for sizes, types or strides that do not fit.
    """
    given = (q, k, v)
    fits = all(x.ndim == 3 and x.dtype == q.dtype and x.is_floating_point() for x in given) and k.shape == v.shape
    fits = fits and q.shape[::2] == k.shape[::2] and all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in (k, v))
    listed = spans.dtype == torch.int32 and spans.ndim == 2 and spans.shape[0] > 0 and spans.shape[1] == 2
    if not fits or not listed or spans.device != q.device:
        named = zip(("q", "k", "v", "spans"), (*given, spans), strict=True)
        shown = (f"{name} {list(x.shape)} {x.dtype} on {x.device}, strides {x.stride()}" for name, x in named)
        raise UsageError(
            "span_attention expects q [H, N, D], k and v [H, R, D] of its type with neighbouring numbers in D, and "
            f"int32 spans [S, 2], S > 0, on its device; got {'; '.join(shown)}"
        )
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    if not factor > 0:
        raise UsageError(f"span_attention expects a scale above 0, got {scale}")
    return _operator(q, k, v, spans, factor, implementation)


def _run(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float, implementation: Implementation) -> Tensor:
    given = (q, k, v)
    how = choose("span_attention", implementation, given, unsupported=_unsupported(q))
    if how == "triton" and not (torch.is_grad_enabled() and any(t.requires_grad for t in given)):
        from lean3r.ops.span_attention.kernel import span_attention as run
    else:
        run = reference
    return run(q, k, v, spans, scale)


def _unsupported(q: Tensor) -> str | None:
    dim = q.shape[-1]
    if dim > _MAX_HEAD_DIM:
        return f"head_dim {dim} is above {_MAX_HEAD_DIM}"
    return None if q.shape[1] <= FEW else too_large(q)


def has_kernel(q: Tensor) -> bool:
    """Whether the kernel serves queries [H, N, D] on their GPU; the reference copies keys, and waits for the GPU."""
    return q.is_cuda and why_not_triton((q,)) is None and _unsupported(q) is None


def _shapes(q: Tensor, *_) -> Tensor:
    return q.new_empty(q.shape)


_operator = operator(
    "span_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor spans, float scale, str implementation) -> Tensor",
    _run,
    _shapes,
)
