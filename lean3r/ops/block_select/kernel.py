"""Block selection on GPUs: flash attention that leaves the maxima of key groups behind, and a search among those.

Keeping a sorted list inside the attention loop costs a sorting network for every tile: with 64 rows sharing a branch,
some row has a new candidate in nearly every one of a thousand tiles. Here the loop only stores, besides attending,
the highest score of each run of GROUP keys (its row maxima come from the same numbers). A second kernel then finds
the top k in three steps of a few hundred candidates a row: spans of groups, groups, keys; the last with scores
computed anew. That is exact, ties included: the k best keys lie in the k best groups when equal maxima rank by
position, since each group in front of a key's own holds a key in front of it. (Scores of the two kernels may differ
in the last bit, which matters only between keys that are equal up to rounding; equal keys tie in both.)

Lists of more than LONGEST blocks are left to long_lists.py. The maxima take 4 / GROUP bytes a score, or as much as the
scores computed anew where there are few keys, so rows are worked off in chunks of at most WORKSPACE bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.block_select.kernel_ranking import LOWEST
from lean3r.ops.block_select.kernel_search import numbers, search
from lean3r.ops.block_select.long_lists import best_keys
from lean3r.ops.tiles import LOG2_E, launch, place
from lean3r.tables import table

WORKSPACE = 1 << 30  # bytes of group maxima that exist at a time
LONGEST = 512  # list that a program searches for; longer ones are in long_lists.py
_ROWS = 128  # a multiple of every tile height


def _configs(*shapes: tuple[int, int, int, int]) -> list[triton.Config]:
    """Tiles of (queries, keys) with warps and stages to try; the interpreter times nothing and takes the last."""
    configs = [triton.Config({"BM": bm, "BN": bn}, num_warps=w, num_stages=s) for bm, bn, w, s in shapes]
    return configs[-1:] if triton.knobs.runtime.interpret else configs


def select(
    q: Tensor, k: Tensor, v: Tensor, top_k: int, scale: float, key_mask: Tensor | None, skip: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks [B, H, nq, top_k] that are not in `skip`, out [B, H, nq, D], lse [B, H, nq]; see `block_select`."""
    q, k, v = (t.contiguous() for t in (q, k, v))
    return _Select.apply(q, k, v, _state(k, key_mask, skip), top_k, scale)


def _state(k: Tensor, key_mask: Tensor | None, skip: Sequence[int]) -> Tensor | None:
    """int8 [B, nk]: 0 on hidden keys, 1 on those that are attended but not ranked, 2 on all others; None if all 2."""
    if key_mask is None and not skip:
        return None
    state = table(_state_of_all, (k.shape[2], tuple(skip)), k.device).expand(len(k), -1)
    return state.contiguous() if key_mask is None else state.masked_fill(~key_mask, 0)


def _state_of_all(keys: int, skip: tuple[int, ...]) -> Tensor:
    state = torch.full((keys,), 2, dtype=torch.int8)
    state[list(skip)] = 1
    return state


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, top_k: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, h, nq, d = q.shape
        nk = k.shape[2]
        out = torch.empty_like(q)
        lse = torch.empty(b, h, nq, dtype=torch.float32, device=q.device)
        searched = 0 < top_k <= LONGEST
        if top_k > LONGEST:
            blocks = best_keys(q, k, state, top_k)
        else:
            blocks = torch.empty(b, h, nq, top_k, dtype=torch.int32, device=q.device)

        group = 64 if nk > 1 << 17 and top_k <= 256 else 16
        stored, width = numbers(nk, group, top_k) if searched else (0, 0)
        rows = min(nq, max(1, WORKSPACE // (4 * b * h * max(width, 1) * _ROWS)) * _ROWS)
        maxima = torch.empty(b * h, rows, width, dtype=torch.float32, device=q.device)
        for first in range(0, nq, rows):
            count = min(rows, nq - first)
            maxima[..., nk // group : stored] = -torch.inf  # past the last tile of keys nothing is written
            launch(
                *(_attend, lambda meta: triton.cdiv(count, meta["BM"]) * b * h),  # noqa: B023 - called at once
                *(q, k, v, state, out, lse, maxima, first, count, rows, width, nq, nk, stored, h, scale),
                D=d,
                GROUP=group,
                HAS_STATE=state is not None,
                **_tiling(q, nk),
            )
            if searched:
                search(q, k, state, maxima, blocks, first, count, group)
        ctx.save_for_backward(q, k, v, state, out, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(blocks)
        return blocks, out, lse

    @staticmethod
    def backward(ctx, _: Tensor, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, state, out, lse = ctx.saved_tensors
        b, h, nq, d = q.shape
        nk = k.shape[2]
        grad_out = grad_out.to(v.dtype).contiguous()
        # d loss / d score = weight (grad_out . v - grad_out . out + grad_lse)
        shift = grad_lse - (grad_out.float() * out.float()).sum(-1)
        lse = lse.masked_fill(lse == -torch.inf, 0)  # rows that attend to nothing
        grad_q, grad_k, grad_v = (torch.empty_like(t) for t in (q, k, v))
        common = {"D": d, "HAS_STATE": state is not None, **_tiling(q, max(nq, nk))}
        launch(
            *(_grad_keys, lambda meta: triton.cdiv(nk, meta["BN"]) * b * h),
            *(q, k, v, state, grad_out, lse, shift, grad_k, grad_v, nq, nk, h, ctx.scale),
            **common,
        )
        launch(
            *(_grad_queries, lambda meta: triton.cdiv(nq, meta["BM"]) * b * h),
            *(q, k, v, state, grad_out, lse, shift, grad_q, nq, nk, h, ctx.scale),
            **common,
        )
        return grad_q, grad_k, grad_v, None, None, None


def _tiling(q: Tensor, keys: int) -> dict[str, int]:
    """Padded head_dim, and a class of lengths that only separates what the autotuner learns."""
    return {"BD": max(16, triton.next_power_of_2(q.shape[-1])), "LONG": int(keys >= 4096)}


@triton.autotune(
    _configs((128, 128, 8, 3), (128, 64, 8, 3), (64, 64, 4, 3), (32, 64, 4, 1), (64, 64, 4, 2)),
    key=["D", "HAS_STATE", "LONG"],
)
@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, state_ptr, out_ptr, lse_ptr, maxima_ptr,
    first, count, rows, width, nq, nk, stored, heads, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, HAS_STATE: tl.constexpr, LONG: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    tile, bh = place(tl.cdiv(count, BM))
    local = tile * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    inside = local < count
    at = (bh * nq + first + local)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + at, mask=inside[:, None] & (d < D)[None, :], other=0.0)
    k_ptr += bh * nk * D
    v_ptr += bh * nk * D
    if HAS_STATE:
        state_ptr += (bh // heads) * nk
    maxima_ptr += (bh * rows + local)[:, None] * width

    highest = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    full = nk // BN * BN  # keys in whole tiles
    for start in range(0, full, BN):
        highest, total, acc = _attend_tile(
            q, k_ptr, v_ptr, state_ptr, maxima_ptr, inside, start, nk, stored, highest, total, acc, scale,
            D, BD, GROUP, HAS_STATE, False, BM, BN,
        )  # fmt: skip
    for start in range(full, nk, BN):
        highest, total, acc = _attend_tile(
            q, k_ptr, v_ptr, state_ptr, maxima_ptr, inside, start, nk, stored, highest, total, acc, scale,
            D, BD, GROUP, HAS_STATE, True, BM, BN,
        )  # fmt: skip
    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])
    lse = tl.where(empty, -float("inf"), highest * scale + tl.log(tl.where(empty, 1.0, total)))
    tl.store(lse_ptr + bh * nq + first + local, lse, mask=inside)


@triton.jit
def _attend_tile(
    q, k_ptr, v_ptr, state_ptr, maxima_ptr, inside, start, nk, stored, highest, total, acc, scale,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, HAS_STATE: tl.constexpr, MASKED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    k = _rows(k_ptr, start, nk, D, BD, BN, MASKED)
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    if MASKED or HAS_STATE:
        attended, eligible = _marks(state_ptr, start, nk, HAS_STATE, BN)
        s += tl.where(attended, 0.0, -float("inf"))[None, :]
    ranked = tl.where(s > LOWEST, s, LOWEST)  # NaN, too, becomes the lowest
    # From the scores as they lie: the maxima of the peaks would need another layout of the whole tile.
    raised = tl.maximum(highest, tl.max(ranked, 1))
    if MASKED or HAS_STATE:
        ranked = tl.minimum(ranked, tl.where(eligible, float("inf"), -float("inf"))[None, :])
    peaks = tl.max(tl.reshape(ranked, [BM, BN // GROUP, GROUP]), 2)
    group = start // GROUP + tl.arange(0, BN // GROUP)
    tl.store(maxima_ptr + group[None, :], peaks, mask=inside[:, None] & (group < stored)[None, :])

    to_log2 = scale * LOG2_E
    level = tl.where(raised == LOWEST, 0.0, raised) * to_log2  # where no key counts yet
    fade = tl.exp2(highest * to_log2 - level)
    p = tl.exp2(s * to_log2 - level[:, None])
    v = _rows(v_ptr, start, nk, D, BD, BN, MASKED)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision="tf32x3")
    return raised, total * fade + tl.sum(p, 1), acc


@triton.jit
def _rows(ptr, start, n, D: tl.constexpr, BD: tl.constexpr, B: tl.constexpr, MASKED: tl.constexpr):
    """[B, BD] of a contiguous [n, D] from row `start` on, zero outside."""
    row = start + tl.arange(0, B)
    d = tl.arange(0, BD)
    at = ptr + row[:, None] * D + d[None, :]
    if MASKED:
        return tl.load(at, mask=(row < n)[:, None] & (d < D)[None, :], other=0.0)
    if D == BD:
        return tl.load(at)
    return tl.load(at, mask=(d < D)[None, :], other=0.0)


@triton.jit
def _marks(state_ptr, start, nk, HAS_STATE: tl.constexpr, BN: tl.constexpr):
    """Which keys of a tile are attended, and which may be chosen."""
    key = start + tl.arange(0, BN)
    if HAS_STATE:
        state = tl.load(state_ptr + key, mask=key < nk, other=0)
        return state > 0, state > 1
    return key < nk, key < nk


_BACKWARD = ((64, 128, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2), (32, 64, 4, 1))


@triton.autotune(_configs(*_BACKWARD), key=["D", "HAS_STATE", "LONG"])
@triton.jit
def _grad_keys(
    q_ptr, k_ptr, v_ptr, state_ptr, do_ptr, lse_ptr, shift_ptr, dk_ptr, dv_ptr, nq, nk, heads, scale,
    D: tl.constexpr, BD: tl.constexpr, HAS_STATE: tl.constexpr, LONG: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    tile, bh = place(tl.cdiv(nk, BN))
    start = tile * BN
    base = bh * nk * D
    k = _rows(k_ptr + base, start, nk, D, BD, BN, True)
    v = _rows(v_ptr + base, start, nk, D, BD, BN, True)
    if HAS_STATE:
        state_ptr += (bh // heads) * nk
    attended, _ = _marks(state_ptr, start, nk, HAS_STATE, BN)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for row in range(0, nq, BM):
        q, do, p, ds = _slopes(q_ptr, do_ptr, lse_ptr, shift_ptr, bh, row, nq, k, v, attended, scale, D, BD, BM)
        dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision="tf32x3")
        dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision="tf32x3")
    key = start + tl.arange(0, BN)
    d = tl.arange(0, BD)
    mask = (key < nk)[:, None] & (d < D)[None, :]
    at = base + key[:, None] * D + d[None, :]
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=mask)


@triton.autotune(_configs(*_BACKWARD), key=["D", "HAS_STATE", "LONG"])
@triton.jit
def _grad_queries(
    q_ptr, k_ptr, v_ptr, state_ptr, do_ptr, lse_ptr, shift_ptr, dq_ptr, nq, nk, heads, scale,
    D: tl.constexpr, BD: tl.constexpr, HAS_STATE: tl.constexpr, LONG: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    tile, bh = place(tl.cdiv(nq, BM))
    row = tile * BM
    base = bh * nk * D
    if HAS_STATE:
        state_ptr += (bh // heads) * nk
    dq = tl.zeros([BM, BD], tl.float32)
    for start in range(0, nk, BN):
        k = _rows(k_ptr + base, start, nk, D, BD, BN, True)
        v = _rows(v_ptr + base, start, nk, D, BD, BN, True)
        attended, _ = _marks(state_ptr, start, nk, HAS_STATE, BN)
        _, _, _, ds = _slopes(q_ptr, do_ptr, lse_ptr, shift_ptr, bh, row, nq, k, v, attended, scale, D, BD, BM)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="tf32x3")
    rows = row + tl.arange(0, BM)
    d = tl.arange(0, BD)
    at = (bh * nq + rows)[:, None] * D + d[None, :]
    tl.store(dq_ptr + at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=(rows < nq)[:, None] & (d < D)[None, :])


@triton.jit
def _slopes(
    q_ptr, do_ptr, lse_ptr, shift_ptr, bh, row, nq, k, v, attended, scale,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Queries and output gradients of a tile, its weights, and the loss's slope against its scaled scores."""
    q = _rows(q_ptr + bh * nq * D, row, nq, D, BD, BM, True)
    do = _rows(do_ptr + bh * nq * D, row, nq, D, BD, BM, True)
    rows = row + tl.arange(0, BM)
    lse = tl.load(lse_ptr + bh * nq + rows, mask=rows < nq, other=0.0)
    shift = tl.load(shift_ptr + bh * nq + rows, mask=rows < nq, other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3")
    s = tl.where(attended[None, :], s * scale - lse[:, None], -float("inf"))
    p = tl.exp2(s * LOG2_E)
    return q, do, p, p * (tl.dot(do, tl.trans(v), input_precision="tf32x3") + shift[:, None])
