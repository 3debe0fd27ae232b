"""The best members of listed groups: every group has a list of groups, whose members its own members choose from."""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.ops.dispatch import Implementation, choose
from lean3r.ops.rank_listed.reference import rank_by_group
from lean3r.ops.registered import operator

__all__ = ["rank_listed"]

_PLACES = 4  # members of a group that the kernel knows
_TILE = 1 << 16  # bytes of keys that a program holds
_LONGEST = 1024  # candidates that it sorts


def rank_listed(
    q: Tensor,
    k: Tensor,
    lists: Tensor,
    names: Tensor,
    usable: Tensor,
    top_k: int,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """Names [B, H, groups * places, top_k] int32 with the highest scores q.k in float32, best first; -1 where there are
    no more.

    q and k [B, H, groups, places, D]; lists [B, H, groups, K] of groups, none twice, below 0 for none; names [groups,
    places] of their members, and usable [B, groups, places] bool. A NaN or -inf score ranks as the lowest finite
    number. Of equal scores the kernel takes the lower name first. No gradients.
    """
    with torch.no_grad():
        return _operator(q, k, lists, names, usable, top_k, implementation)


def _run(
    q: Tensor, k: Tensor, lists: Tensor, names: Tensor, usable: Tensor, top_k: int, implementation: Implementation
) -> Tensor:
    how = choose("rank_listed", implementation, (q, k), torch_path=True, unsupported=_unsupported(q, lists))
    if how == "triton":
        from lean3r.ops.rank_listed.kernel import rank_by_group as run
    else:
        run = rank_by_group
    return run(q, k, lists, names, usable, top_k)


def _unsupported(q: Tensor, lists: Tensor) -> str | None:
    places, dim, listed = q.shape[3], q.shape[4], lists.shape[3] * q.shape[3]
    if places != _PLACES:
        return f"groups of {places} members, expected {_PLACES}"
    if listed > _LONGEST or listed * dim * q.element_size() > _TILE:
        return f"lists of {listed} members of {dim} numbers in {q.dtype} do not fit a program"
    return None


def _shapes(q: Tensor, k: Tensor, lists: Tensor, names: Tensor, usable: Tensor, top_k: int, _: str) -> Tensor:
    return q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3], top_k, dtype=torch.int32)


_operator = operator(
    "rank_listed",
    "(Tensor q, Tensor k, Tensor lists, Tensor names, Tensor usable, int top_k, str implementation) -> Tensor",
    _run,
    _shapes,
)
