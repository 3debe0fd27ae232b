"""The best members of listed groups in Triton: a program a group, whose candidates are scored at once and sorted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.block_select.kernel_ranking import LOWEST, NOTHING, best_first, entry, ordered
from lean3r.ops.tiles import launch, place

_ROWS = tl.constexpr(16)  # the fewest of a product


@triton.jit
def _rank(
    q_ptr, k_ptr, lists_ptr, names_ptr, usable_ptr, out_ptr, groups, listed, top_k, heads,
    D: tl.constexpr, BD: tl.constexpr, PLACES: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    group, bh = place(groups)
    first = bh * groups + group
    r, d, n = tl.arange(0, _ROWS), tl.arange(0, BD), tl.arange(0, N)
    at = (first * PLACES + r)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at, mask=(r < PLACES)[:, None] & (d < D)[None, :], other=0.0)
    near = tl.load(lists_ptr + first * listed + n // PLACES, mask=n < listed * PLACES, other=-1)
    member = tl.maximum(near, 0) * PLACES + n % PLACES
    name = tl.maximum(tl.load(names_ptr + member), 0)  # of what is not usable anything
    eligible = (near >= 0) & (tl.load(usable_ptr + (bh // heads) * groups * PLACES + member) != 0)
    at = (bh * groups * PLACES + member)[:, None] * D + d[None, :]
    k = tl.load(k_ptr + at, mask=(near >= 0)[:, None] & (d < D)[None, :], other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    # Rows behind the members' own are below all scores, NaN as well, and vanish in the maximum.
    s = tl.where((s > LOWEST) & (r < PLACES)[:, None], s, LOWEST)
    s = tl.max(tl.reshape(s, [_ROWS // PLACES, PLACES, N]), 0)
    x = tl.where(eligible[None, :], ordered(s), NOTHING)
    best = best_first(entry(x, tl.broadcast_to(name[None, :], [PLACES, N])), PLACES, N)
    out = out_ptr + (first * PLACES + tl.arange(0, PLACES))[:, None] * top_k + n[None, :]
    tl.store(out, best, mask=(n < top_k)[None, :] & (tl.arange(0, PLACES) >= 0)[:, None])


def rank_by_group(q: Tensor, k: Tensor, lists: Tensor, names: Tensor, usable: Tensor, top_k: int) -> Tensor:
    """See `rank_listed`."""
    batch, heads, groups, places, dim = q.shape
    listed = lists.shape[3]
    out = torch.full((batch, heads, groups * places, top_k), -1, dtype=torch.int32, device=q.device)
    lists, names = (t.to(torch.int32).contiguous() for t in (lists, names))
    launch(
        *(_rank, groups * batch * heads, q.contiguous(), k.contiguous(), lists, names),
        *(usable.contiguous().view(torch.uint8), out, groups, listed, top_k, heads),
        D=dim,
        BD=max(16, triton.next_power_of_2(dim)),
        PLACES=places,
        N=max(32, triton.next_power_of_2(listed * places)),
    )
    return out
