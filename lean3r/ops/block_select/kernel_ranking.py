"""Sorted lists of scores and indices in Triton: the largest of a list and of new candidates, by a bitonic network."""

from __future__ import annotations

import triton
import triton.language as tl

_NOTHING = tl.constexpr(-2139095041)  # the bits of -inf, made to sort as an integer


@triton.jit
def empty_list(R: tl.constexpr, K: tl.constexpr):
    """An empty list [R, K]."""
    return tl.full([R, K], _NOTHING, tl.int64) << 32


@triton.jit
def merge(best, score, index, R: tl.constexpr, LOG_K: tl.constexpr):
    """The K largest of a descending list [R, K] and of K new scores, as 64-bit integers of score and index.

    A bitonic network on [R, K / 32, 32], so that partners in either direction come by a shuffle or two. (tl.sort
    exchanges by reductions, which take the interpreter minutes; unrolled, the 54 rounds of K = 512 take the compiler
    minutes.)
    """
    bits = score.to(tl.int32, bitcast=True)
    rank = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    new = tl.reshape((rank << 32) | (0x7FFFFFFF - index).to(tl.int64), [R, 1 << (LOG_K - 5), 32])
    for i in range(1, LOG_K + 1):
        new = _rounds(new, i, 1 << i, R, LOG_K)
    # One falls, the other rises: their larger halves are the K largest of both, as a bitonic sequence.
    best = tl.maximum(tl.reshape(best, [R, 1 << (LOG_K - 5), 32]), new)
    return tl.reshape(_rounds(best, LOG_K, 0, R, LOG_K), [R, 1 << LOG_K])


@triton.jit
def _rounds(x, count, rising, R: tl.constexpr, LOG_K: tl.constexpr):
    """`count` rounds of exchanges over halving distances; entries fall where their place has the bit `rising` set.

    With rising = 0 all fall.
    """
    C: tl.constexpr = 1 << (LOG_K - 5)
    line = tl.arange(0, C)
    lane = tl.arange(0, 32)
    falls = ((line[:, None] * 32 + lane[None, :]) & rising) == rising  # [C, 32]
    if C > 1:
        for j in range(count - 5):
            step = 1 << (count - 6 - j)  # in lines
            other = tl.gather(x, tl.broadcast_to((line ^ step)[None, :, None], [R, C, 32]), 1)
            larger = falls == ((line & step) == 0)[:, None]
            x = tl.where(larger[None, :, :] == (x < other), other, x)
    for j in range(tl.minimum(count, 5)):
        step = 1 << (tl.minimum(count, 5) - 1 - j)
        other = tl.gather(x, tl.broadcast_to((lane ^ step)[None, None, :], [R, C, 32]), 2)
        larger = falls == ((lane & step) == 0)[None, :]
        x = tl.where(larger[None, :, :] == (x < other), other, x)
    return x


@triton.jit
def indices_of(best):
    """Indices of a list, -1 where it is empty."""
    return tl.where((best >> 32) > _NOTHING, (0x7FFFFFFF - (best & 0x7FFFFFFF)).to(tl.int32), -1)
