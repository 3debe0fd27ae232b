"""Flash attention to runs of rows in Triton: a program some queries of a head, which reads the runs where they lie.

Where a run ends is known on the device alone. Its whole tiles are read without masks, in a loop that the compiler
pipelines; the rest of it, behind them, once with masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from lean3r.ops.span_attention.reference import FEW
from lean3r.ops.tiles import LOG2_E, fitting, last_dim_dense, launch, place

LONG, TALL = 4096, 4096  # rows of a buffer, and queries, from which on the autotuner learns anew


def span_attention(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float) -> Tensor:
    """See `span_attention` of the package."""
    q, (heads, count, dim) = last_dim_dense(q), q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    padded = max(16, triton.next_power_of_2(dim))
    direct = dim == padded and q.dtype != torch.float32
    kernel = _few if count <= FEW else _many if direct else _small
    launch(
        *(kernel, lambda meta: triton.cdiv(count, meta["BM"]) * heads),
        *(q, k, v, spans.contiguous(), out, count, len(spans), scale),
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
        D=dim,
        BD=padded,
        LONG=int(k.shape[1] >= LONG),
        TALL=int(count >= TALL),
        PRECISION="tf32x3",
    )
    return out


def _tuned(*shapes: tuple[int, int, int, int]) -> Callable:
    """Tries tiles of (queries, keys) with warps and stages; the interpreter times nothing and takes the last."""
    configs = [triton.Config({"BM": bm, "BN": bn}, num_warps=w, num_stages=s) for bm, bn, w, s in shapes]
    configs = configs[-1:] if triton.knobs.runtime.interpret else configs
    return triton.autotune(configs, key=["D", "LONG", "TALL"], prune_configs_by=fitting("BM", "BN", "BD"))


@triton.jit(do_not_specialize=["count", "runs"])
def _attend(
    q_ptr, k_ptr, v_ptr, spans_ptr, out_ptr, count, runs, scale,
    q_head, q_row, k_head, k_row, v_head, v_row,
    D: tl.constexpr, BD: tl.constexpr, LONG: tl.constexpr, TALL: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    tile, head = place(tl.cdiv(count, BM))
    row = tile.to(tl.int64) * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    used = (row < count)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + head * q_head + row[:, None] * q_row + d[None, :], mask=used, other=0.0)
    n = tl.arange(0, BN)
    k_tile, v_tile = n[:, None] * k_row + d[None, :], n[:, None] * v_row + d[None, :]
    k_ptr += head * k_head
    v_ptr += head * v_head
    to_log2 = scale * LOG2_E

    highest = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    for run in range(runs):
        first = tl.load(spans_ptr + 2 * run).to(tl.int64)
        length = tl.load(spans_ptr + 2 * run + 1).to(tl.int64)
        k_run, v_run = k_ptr + first * k_row, v_ptr + first * v_row
        full = length // BN * BN  # keys in whole tiles
        for start in range(0, full, BN):
            highest, total, acc = _absorb(
                q, k_run + start * k_row + k_tile, v_run + start * v_row + v_tile, BN,
                highest, total, acc, to_log2, D, BD, BN, PRECISION, False,
            )  # fmt: skip
        if full < length:
            highest, total, acc = _absorb(
                q, k_run + full * k_row + k_tile, v_run + full * v_row + v_tile, length - full,
                highest, total, acc, to_log2, D, BD, BN, PRECISION, True,
            )  # fmt: skip
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + (head * count + row)[:, None] * D + d[None, :], out, mask=used)


@triton.jit
def _absorb(
    q, k_at, v_at, left, highest, total, acc, to_log2,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of keys, at least one of which counts: maxima stay finite, and nothing guards against -inf - -inf."""
    s = tl.dot(q, tl.trans(_rows(k_at, left, D, BD, BN, MASKED)), input_precision=PRECISION)
    if MASKED:
        s = tl.where((tl.arange(0, BN) < left)[None, :], s, -float("inf"))
    raised = tl.maximum(highest, tl.max(s, 1))
    level = raised * to_log2
    fade = tl.exp2(highest * to_log2 - level)
    p = tl.exp2(s * to_log2 - level[:, None])
    v = _rows(v_at, left, D, BD, BN, MASKED)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return raised, total * fade + tl.sum(p, 1), acc


@triton.jit
def _rows(at, left, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr):
    """What lies at pointers [BN, BD], zero behind the first `left` rows and D columns."""
    if MASKED:
        return tl.load(at, mask=(tl.arange(0, BN) < left)[:, None] & (tl.arange(0, BD) < D)[None, :], other=0.0)
    if D == BD:
        return tl.load(at)
    return tl.load(at, mask=(tl.arange(0, BD) < D)[None, :], other=0.0)


# One function, tuned apart. With few queries there are few programs, and no tile of theirs suits many queries. Larger
# tiles spill where operands pass through registers: in float32, and where a head is padded.
_MANY = ((64, 128, 4, 3), (64, 64, 4, 3), (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (64, 32, 4, 2))
_many = _tuned(*_MANY)(_attend)
_small = _tuned((128, 64, 8, 3), (64, 32, 4, 2), (32, 32, 4, 2))(_attend)
_few = _tuned((16, 64, 8, 3), (16, 128, 8, 3), (16, 64, 4, 3), (16, 32, 4, 2))(_attend)
