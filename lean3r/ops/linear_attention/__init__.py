"""Linear attention: phi(q) (phi(k)^T v) / (phi(q) . sum phi(k) + eps), in time linear in the tokens."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lean3r.errors import UsageError
from lean3r.ops.dispatch import Implementation, choose
from lean3r.ops.linear_attention.reference import block_states, feature_map, reference, states_attention
from lean3r.ops.registered import operator

Feature = Literal["elu", "relu", "softmax"]
LARGEST_HEAD = 128

__all__ = ["Feature", "block_states", "feature_map", "linear_attention", "states_attention"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    feature: Feature,
    eps: float,
    key_mask: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Attention without softmax: q [B, H, N, D], k and v [B, H, M, D] -> [B, H, N, D], q not scaled.

    feature "elu" is ELU + 1, "softmax" runs over the D channels. key_mask [B, M] is False on keys left out;
    whatever stands there, NaN included, has no influence. With no key at all the result is 0. "torch" and
    "reference" are the same here: matrix products, which no kernel of ours beats on a CPU.
    """
    if feature not in get_args(Feature):
        raise UsageError(f"feature is one of {', '.join(get_args(Feature))}, got {feature!r}")
    return _operator(q, k, v, key_mask, feature, eps, implementation)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    feature: Feature,
    eps: float,
    implementation: Implementation,
) -> Tensor:
    width = q.shape[-1]
    unsupported = f"head_dim {width} is above {LARGEST_HEAD}" if width > LARGEST_HEAD else None
    how = choose("linear_attention", implementation, [q, k, v], torch_path=True, unsupported=unsupported)
    if how == "triton" and q.numel() and k.numel():  # without queries or keys there is nothing to launch
        from lean3r.ops.linear_attention.kernel import LinearAttention

        return LinearAttention.apply(q, k, v, key_mask, feature, eps)
    return reference(q, k, v, feature, eps, key_mask)


_operator = operator(
    "linear_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? key_mask, str feature, float eps, str implementation) -> Tensor",
    _run,
    lambda q, k, v, *_: q.new_empty(q.shape, dtype=v.dtype),
)
