"""Selection among many numbers in Triton: the smallest that is taken, places for all of those, one sort at the end.

Numbers are [C, R, L] int32: those of each of R rows, in the order of their positions along L and then along C. A
program has a multiple of 32 L threads in that order, so that counting along C takes no exchange, and along L one.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)  # score of what is below all others, NaN too; -inf is no candidate
NOTHING = tl.constexpr(-2139095041)  # the bits of -inf, made to sort as an integer
UNCHECKED = tl.constexpr(4)  # halvings between two looks at whether all rows are done


@triton.jit
def ordered(score):
    """int32 that sort as float32 do, -0.0 below +0.0."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def take(x, wanted, K: tl.constexpr):
    """Which of [C, R, L] are the `wanted` <= K largest of their row, equal ones by position.

    NOTHING is taken too where a row has too few others.
    """
    # Of K parts of a row each holds a number that reaches the lowest of their maxima. Where the parts are the spans or
    # groups that were taken before, few others do.
    parts: tl.constexpr = max(1, K // x.shape[2])
    peak = tl.max(tl.reshape(x, [parts, x.shape[0] // parts, x.shape[1], x.shape[2]]), 1)
    filled = peak > NOTHING
    high = tl.max(tl.max(peak, 0), 1) + 1
    low = tl.min(tl.min(tl.where(filled, peak, 0x7FFFFFFF), 0), 1)
    low = tl.where(tl.sum(tl.sum(filled.to(tl.int32), 0), 1) < wanted, NOTHING, low)
    one = tl.minimum(wanted, 1)  # unknown to the compiler, which would pack ones as bits to count them
    found = _count(x, low, one)
    # `low` is reached by at least as many as are wanted, `high` by fewer.
    left = _left(found, wanted, low, high)
    while left > 1:
        for _ in tl.static_range(UNCHECKED):
            middle = _between(low, high)
            count = _count(x, middle, one)
            enough = count >= wanted
            low = tl.where(enough, middle, low)
            found = tl.where(enough, count, found)
            high = tl.where(enough, high, middle)
        left = _left(found, wanted, low, high)
    least = low[None, :, None]
    if left > 0:
        equal = (x == least).to(tl.int32)
        room = (wanted - _count(x, low + 1, one))[None, :, None]
        x = tl.where((equal > 0) & (places(equal) >= room), NOTHING - 1, x)
    return x >= least


@triton.jit
def _left(found, wanted, low, high):
    """What is left to do in any row: 2 to halve, 1 to choose among equal numbers."""
    return tl.max(tl.where(found > wanted, tl.where(_between(low, high) > low, 2, 1), 0), 0)


@triton.jit
def places(marked):
    """How many marks (0 or 1) of [C, R, L] stand in front of each one in its row; of use where a mark is."""
    each = tl.sum(marked, 0)
    return tl.cumsum(marked, 0) + (tl.cumsum(each, 1) - each - 1)[None, :, :]


@triton.jit
def _count(x, least, one):
    return tl.sum(tl.sum(tl.where(x >= least[None, :, None], one, 0), 0), 1)


@triton.jit
def _between(low, high):
    return (low & high) + ((low ^ high) >> 1)  # a sum could overflow


@triton.jit
def entry(rank, index):
    """int64 that sort by rank, then by falling index."""
    return (rank.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def best_first(x, R: tl.constexpr, K: tl.constexpr):
    """Indices [R, K] of entries [R, K], the largest first; -1 where the rank is NOTHING.

    A bitonic network on [R, K / 32, 32], so that partners in either direction come by a shuffle or two. (tl.sort
    exchanges by reductions, which take the interpreter minutes; unrolled, the rounds of K = 512 take the compiler
    minutes.)
    """
    x = tl.reshape(x, [R, K // 32, 32])
    size = 2
    while size <= K:
        x = _rounds(x, size, R, K)
        size *= 2
    x = tl.reshape(x, [R, K])
    return tl.where((x >> 32) > NOTHING, (0x7FFFFFFF - (x & 0x7FFFFFFF)).to(tl.int32), -1)


@triton.jit
def _rounds(x, size, R: tl.constexpr, K: tl.constexpr):
    """Exchanges over halving distances that sort runs of `size`, of which every second rises unless it is the last."""
    C: tl.constexpr = K // 32
    line = tl.arange(0, C)
    lane = tl.arange(0, 32)
    falls = (((line[:, None] * 32 + lane[None, :]) & size) == 0) | (size == K)  # [C, 32]
    step = size // 2
    if C > 1:
        while step >= 32:
            far = step // 32
            other = tl.gather(x, tl.broadcast_to((line ^ far)[None, :, None], [R, C, 32]), 1)
            larger = falls == ((line & far) == 0)[:, None]
            x = tl.where(larger[None, :, :] == (x < other), other, x)
            step = step // 2
    while step > 0:
        other = tl.gather(x, tl.broadcast_to((lane ^ step)[None, None, :], [R, C, 32]), 2)
        larger = falls == ((lane & step) == 0)[None, :]
        x = tl.where(larger[None, :, :] == (x < other), other, x)
        step = step // 2
    return x
