"""The best keys of every row on GPUs, from the maxima of groups of keys: spans of groups, groups, keys.

Each step takes the best of a few hundred candidates a row: it halves the range in which the lowest of these lies, with
scores as integers, and writes what it takes into the row's own place in the result, by position. Only the last list is
sorted. A row is one warp's where its candidates are few, so that counting ends in one instruction of the warp. Rows of
a program are neighbours, whose lists may be alike, and walk through them side by side: what one has loaded is in the
cache for the others. Tensor cores score their keys anew, each with the queries of all rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.block_select.kernel_ranking import LOWEST, NOTHING, best_first, entry, ordered, places, take
from lean3r.ops.tiles import launch, place

SPAN = 16  # groups in a span, at least
_EACH = 512  # candidates of a row that a warp holds in registers
_TILE = 1 << 15  # bytes of keys that a program scores at a time


def numbers(keys: int, group: int, top_k: int) -> tuple[int, int]:
    """Maxima of a row, a multiple of 16, and the numbers that it needs room for: scores take the maxima's place."""
    stored = triton.cdiv(keys, group * 16) * 16
    return stored, max(stored, _wide(top_k) * group)


def search(
    q: Tensor, k: Tensor, state: Tensor | None, maxima: Tensor, blocks: Tensor, first: int, count: int, group: int
) -> None:
    """Write `blocks` [B, H, nq, top_k] for `count` rows from `first` on.

    maxima [B H, rows, numbers] are -inf where a group holds no key; they are written over.
    """
    (b, h, nq, d), nk, top_k = q.shape, k.shape[2], blocks.shape[3]
    stored, width = numbers(nk, group, top_k)
    wide, padded, span = _wide(top_k), max(16, triton.next_power_of_2(d)), SPAN
    while triton.cdiv(stored, span) > wide * span:
        span *= 2
    spans = 0 if stored <= wide * span else max(wide, triton.next_power_of_2(triton.cdiv(stored, span)))
    warps = min(16, max(1, wide * max(group, span) // _EACH))
    together = 1024 // wide if triton.knobs.runtime.interpret else max(1, 8 // warps)
    launch(
        *(_search, triton.cdiv(count, together) * b * h),
        *(q, k, state, maxima, blocks, first, count, maxima.shape[1], width, nq, nk, stored, h, top_k),
        D=d,
        BD=padded,
        GROUP=group,
        HAS_STATE=state is not None,
        SPAN=span,
        SPANS=spans,
        LISTED=stored > wide,
        K=wide,
        R=together,
        L=32 * warps,
        M=min(256, max(128, _TILE // (padded * k.element_size()))),
        num_warps=warps * together,
        num_stages=1,  # more would load keys around the cache that rows share
    )


def _wide(top_k: int) -> int:
    """Places of a list."""
    return max(32, triton.next_power_of_2(top_k))


@triton.jit
def _search(
    q_ptr, k_ptr, state_ptr, maxima_ptr, blocks_ptr, first, count, rows, width, nq, nk, stored, heads, top_k,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, HAS_STATE: tl.constexpr, SPAN: tl.constexpr,
    SPANS: tl.constexpr, LISTED: tl.constexpr, K: tl.constexpr, R: tl.constexpr, L: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    tile, bh = place(tl.cdiv(count, R))
    rank = tl.arange(0, R)
    inside = (tile * R + rank < count)[None, :, None]
    row = tl.minimum(tile * R + rank, count - 1)  # what is outside repeats the last row, and is not stored
    maxima = maxima_ptr + ((bh * rows + row) * width)[None, :, None]
    listing = blocks_ptr + ((bh * nq + first + row) * top_k)[None, :, None]

    # A step whose candidates all fit into the next one takes them as they come.
    span = _starts(K * SPAN, L) // SPAN
    if SPANS > 0:
        index = tl.arange(0, L)[None, None, :] * (SPANS // L) + tl.arange(0, SPANS // L)[:, None, None]
        peak = tl.full([SPANS // L, R, L], -float("inf"), tl.float32)
        for part in range(0, SPAN, 4):
            group = tl.minimum(index * SPAN + part, stored - 4)
            four = tl.load((maxima + group)[:, :, :, None] + tl.arange(0, 4))
            peak = tl.maximum(peak, tl.max(four, 3))
        taken = take(tl.where(index * SPAN < stored, ordered(peak), NOTHING), top_k, K)
        tl.store(listing + places(taken.to(tl.int32)), tl.broadcast_to(index, taken.shape), mask=taken & inside)
        tl.debug_barrier()
        span = tl.load(listing + span, mask=span < top_k, other=tl.cdiv(stored, SPAN))
    if LISTED:
        group = span * SPAN + _starts(K * SPAN, L) % SPAN
        x = ordered(_fours(maxima, group, group < stored, K * SPAN, R, L))
        group = _members(tl.broadcast_to(group, [K * SPAN // L // 4, R, L]), K * SPAN, L)
        taken = take(x, top_k, K)
        tl.debug_barrier()
        tl.store(listing + places(taken.to(tl.int32)), group, mask=taken & inside)
        tl.debug_barrier()

    scored = (top_k if LISTED else stored) * GROUP
    _score(
        q_ptr, k_ptr, maxima_ptr, blocks_ptr, first, count, rows, width, nq, nk, scored, top_k,
        D, BD, GROUP, LISTED, R, M,
    )  # fmt: skip
    tl.debug_barrier()
    at = _starts(K * GROUP, L)
    score = _fours(maxima, at, at < scored, K * GROUP, R, L)
    group = tl.broadcast_to(at // GROUP, [K * GROUP // L // 4, R, L])
    if LISTED:
        group = tl.load(listing + group, mask=at < scored, other=stored)
    key = _members(group * GROUP + at % GROUP, K * GROUP, L)
    eligible = key < nk
    if HAS_STATE:
        eligible = eligible & (tl.load(state_ptr + (bh // heads) * nk + key, mask=eligible, other=0) > 1)
    score = tl.where(score > LOWEST, score, LOWEST)
    x = tl.where(eligible, ordered(score), NOTHING)
    taken = take(x, top_k, K)
    tl.debug_barrier()
    entries = maxima.to(tl.pointer_type(tl.int64), bitcast=True)
    tl.store(entries + places(taken.to(tl.int32)), entry(x, key), mask=taken & inside)
    tl.debug_barrier()

    slot = tl.arange(0, K)
    entries = (maxima_ptr + (bh * rows + row) * width).to(tl.pointer_type(tl.int64), bitcast=True)
    best = tl.load(entries[:, None] + slot, mask=slot < top_k, other=-1 << 63)
    blocks = blocks_ptr + ((bh * nq + first + row) * top_k)[:, None] + slot
    tl.store(blocks, best_first(best, R, K), mask=(tile * R + rank < count)[:, None] & (slot < top_k))


@triton.jit
def _starts(N: tl.constexpr, L: tl.constexpr):
    """Every fourth of N positions, [N / L / 4, 1, L]."""
    C: tl.constexpr = N // L
    return tl.arange(0, L)[None, None, :] * C + tl.arange(0, C // 4)[:, None, None] * 4


@triton.jit
def _members(start, N: tl.constexpr, L: tl.constexpr):
    """The four positions from each start on, [N / L, R, L]."""
    x = start[:, :, :, None] + tl.arange(0, 4)
    return tl.reshape(tl.permute(x, (0, 3, 1, 2)), [N // L, start.shape[1], L])


@triton.jit
def _fours(ptr, start, listed, N: tl.constexpr, R: tl.constexpr, L: tl.constexpr):
    """The four numbers from each start on, [N / L, R, L], which a thread loads at once; -inf where not listed."""
    at = (ptr + start)[:, :, :, None] + tl.arange(0, 4)
    x = tl.load(at, mask=listed[:, :, :, None], other=-float("inf"))
    return tl.reshape(tl.permute(x, (0, 3, 1, 2)), [N // L, R, L])


@triton.jit
def _score(
    q_ptr, k_ptr, maxima_ptr, blocks_ptr, first, count, rows, width, nq, nk, scored, top_k,
    D: tl.constexpr, BD: tl.constexpr, GROUP: tl.constexpr, LISTED: tl.constexpr, R: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Scores of the keys of the groups that each row lists, over its maxima."""
    tile, bh = place(tl.cdiv(count, R))
    T: tl.constexpr = M // R  # keys of a row
    COLUMNS: tl.constexpr = max(R, 8)
    d = tl.arange(0, BD)
    column = tl.arange(0, COLUMNS)
    query = tile * R + column
    q = tl.load(
        q_ptr + (bh * nq + first + query)[:, None] * D + d[None, :],
        mask=((column < R) & (query < count))[:, None] & (d < D)[None, :],
        other=0.0,
    )
    m = tl.arange(0, M)
    row = tl.minimum(tile * R + m // T, count - 1)
    own = (m // T)[:, None] == column[None, :]
    listing = blocks_ptr + (bh * nq + first + row) * top_k
    maxima_ptr += (bh * rows + row) * width
    k_ptr += bh * nk * D
    for start in range(0, scored, T):
        at = start + m % T
        listed = at < scored
        group = at // GROUP
        if LISTED:
            group = tl.load(listing + group, mask=listed, other=0)
        key = tl.minimum(group * GROUP + at % GROUP, nk - 1)
        near = k_ptr + key[:, None] * D + d[None, :]
        k = tl.load(near) if D == BD else tl.load(near, mask=(d < D)[None, :], other=0.0)
        s = tl.dot(k, tl.trans(q), input_precision="tf32x3")
        tl.store(maxima_ptr + at, tl.max(tl.where(own, s, -float("inf")), 1), mask=listed & (tile * R + m // T < count))
