"""Calls of every operator with a Triton kernel, on tensors without values, such that together they launch all variants.

What an operator refuses to launch on the card is left out. "backbones" are shapes of the models and plans that the
package ships, "edges" the smallest, largest and oddest that a kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import get_args

import torch
import triton
from torch import Tensor

from lean3r.ops.block_select import kernel as select_kernel
from lean3r.ops.block_sparse import kernel as sparse_kernel
from lean3r.ops.block_sparse import kernel_fp8
from lean3r.ops.dispatch import why_too_large
from lean3r.ops.fp8.kernel import quantize_fused
from lean3r.ops.fp8.reference import Before
from lean3r.ops.join_windows.kernel import join_windows
from lean3r.ops.linear_attention.kernel import LinearAttention
from lean3r.ops.norm_rotate.kernel import norm_rotate
from lean3r.ops.rank_listed.kernel import rank_by_group
from lean3r.ops.residual.kernel import add_scaled, norm_to
from lean3r.ops.rope2d.kernel import Rope2d
from lean3r.ops.span_attention.kernel import span_attention
from lean3r.ops.span_attention.reference import FEW

HEADS = 2


@dataclass(frozen=True)
class Call:
    """One call; `shapes` is "backbones" or "edges"."""

    name: str
    shapes: str
    run: Callable[[], object]


def _card() -> SimpleNamespace:
    card = triton.runtime.driver.active
    limit = card.utils.get_device_properties(card.get_current_device())["max_shared_mem"]
    return SimpleNamespace(shared_memory_per_block_optin=limit)


def _qkv(tokens: int, dim: int, kind: torch.dtype) -> list[Tensor]:
    shape = (1, HEADS, tokens, dim)
    return [torch.zeros(shape, dtype=kind, device="meta").requires_grad_() for _ in range(3)]


def _precisions(kind: torch.dtype) -> tuple[str, ...]:
    """Settings of torch that change how float32 is multiplied."""
    return ("highest", "high") if kind == torch.float32 else ("highest",)


def _at(precision: str, run: Callable[[], Tensor]) -> None:
    """Forward and backward under a setting of torch."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        out = run()
        if out.requires_grad:
            out.sum().backward()
    finally:
        torch.set_float32_matmul_precision(before)


# name, shapes, head_dim, query block, key block, listed blocks; masks and dense keys. "gsa", "sla" and "block_sparse"
# are the mechanisms' own sizes.
_SPARSE = (
    *(("gsa", "backbones", 64, 16, 16, 32, *some) for some in product((False, True), repeat=2)),
    *(("sla", "backbones", 64, 64, 64, 40, *some) for some in ((False, False), (True, False))),
    *(("block_sparse", "backbones", 64, 128, 64, 40, *some) for some in ((False, True), (True, True))),
    ("nano", "backbones", 32, 16, 16, 32, False, True),
    ("odd head", "edges", 40, 48, 24, 3, True, True),
    ("long lists", "edges", 64, 16, 16, 512, True, True),
    *(("wide head", "edges", 128, queries, keys, 32, True, True) for queries, keys in product((16, 128), repeat=2)),
)


def _sparse(attend: Callable[..., Tensor], gradients: bool) -> Callable[[torch.dtype], Iterator[Call]]:
    def calls(kind: torch.dtype) -> Iterator[Call]:
        taken = [row for row in _SPARSE if not why_too_large(row[2], kind, max(row[3:5]), _card())]
        for (name, shapes, dim, queries, keys, listed, masked, dense), precision in product(taken, _precisions(kind)):

            def run(dim=dim, queries=queries, keys=keys, listed=listed, masked=masked, dense=dense) -> Tensor:
                count = 64
                q, k, v = (_qkv(count * block, dim, kind)[0] for block in (queries, keys, keys))
                lists = torch.zeros(1, HEADS, count, listed, dtype=torch.int32, device="meta")
                mask = torch.ones(1, count * keys, dtype=torch.bool, device="meta") if masked else None
                extra = tuple(_qkv(5, dim, kind)[:2]) if dense else None
                with torch.set_grad_enabled(gradients):
                    return attend(q, k, v, lists, queries, keys, dim**-0.5, mask, extra)

            marks = f"{' mask' if masked else ''}{' dense' if dense else ''}{' tf32' if precision == 'high' else ''}"
            called = f"{name} {dim} {queries}x{keys} top {listed}{marks}"
            yield Call(called, shapes, lambda run=run, precision=precision: _at(precision, run))

    return calls


# name, shapes, head_dim, keys, chosen, masks
_SELECT = (
    *(("gsa", "backbones", 64, keys, 32, masked) for keys in (1000, 50_000) for masked in (False, True)),
    ("nano", "backbones", 32, 1000, 32, False),
    *(("edge", "edges", dim, 50_000, 32, True) for dim in (16, 40, 128)),
    *(("search", "edges", 64, 200_000, chosen, False) for chosen in (64, 128, 256, 512)),
)


def _block_select(kind: torch.dtype) -> Iterator[Call]:
    for name, shapes, dim, keys, chosen, masked in _SELECT:
        if why_too_large(dim, kind, 1, _card()):
            continue

        def run(dim=dim, keys=keys, chosen=chosen, masked=masked) -> Tensor:
            mask = torch.ones(1, keys, dtype=torch.bool, device="meta") if masked else None
            q = _qkv(256, dim, kind)[0]
            _, out, lse = select_kernel.select(q, *_qkv(keys, dim, kind)[:2], chosen, dim**-0.5, mask, ())
            return out.sum() + lse.sum()

        called = f"{name} {dim} {keys} top {chosen}{' mask' if masked else ''}"
        yield Call(called, shapes, lambda run=run: _at("highest", run))


def _linear_attention(kind: torch.dtype) -> Iterator[Call]:
    for dim, feature, masked in product((64, 16, 40, 128), ("softmax", "elu", "relu"), (False, True)):
        shapes = "backbones" if dim == 64 else "edges"

        def run(dim=dim, feature=feature, masked=masked) -> Tensor:
            mask = torch.ones(1, 4096, dtype=torch.bool, device="meta") if masked else None
            return LinearAttention.apply(*_qkv(4096, dim, kind), mask, feature, 1e-6)

        yield Call(f"{feature} {dim}{' mask' if masked else ''}", shapes, lambda run=run: _at("highest", run))


def _quantize_rows(kind: torch.dtype) -> Iterator[Call]:
    for width, shapes in ((1024, "backbones"), (4096, "backbones"), (40, "edges"), (1 << 15, "edges")):
        x = torch.zeros(256, width, dtype=kind, device="meta")
        gain = torch.zeros(width, dtype=kind, device="meta")
        for before in get_args(Before):
            affine = (gain, gain) if before == "norm" else (None, None)

            def run(x=x, before=before, affine=affine, width=width) -> object:
                padded = -(-width // 16) * 16
                return quantize_fused(x, before, *affine, 1e-6, dtype=kind, scale_dtype=torch.float32, padded=padded)

            yield Call(f"{before}, rows of {width}", shapes, run)


def _rope2d(kind: torch.dtype) -> Iterator[Call]:
    for dim, shapes, grid in product((64, 4, 40, 128), ("backbones", "edges"), (torch.int64, torch.float32)):
        if (dim == 64) == (shapes == "backbones"):
            at = torch.zeros(1024, 2, dtype=grid, device="meta")
            called = f"{dim} {'real' if grid.is_floating_point else 'integer'} positions"
            yield Call(called, shapes, lambda dim=dim, at=at: Rope2d.apply(_qkv(1024, dim, kind)[0], at, 100.0))


def _norm_rotate(kind: torch.dtype) -> Iterator[Call]:
    tokens = 5 + 864
    rows = product((64, 16, 40, 128), (True, False), (True, False), (0, 16))
    for dim, norm, turned, window in rows:
        shapes = "backbones" if dim == 64 and norm else "edges"

        def run(dim=dim, norm=norm, turned=turned, window=window) -> object:
            x, affine = _qkv(4 * tokens, dim, kind)[0].detach(), torch.zeros(dim, device="meta")
            table = torch.zeros(tokens, dim, dtype=kind, device="meta")
            given = (*((affine, affine) if norm else (None, None)), *((table, table) if turned else (None, None)))
            return norm_rotate(x, *given, tokens, 5, window, 1e-5, kind, window > 0, False)

        parts = [*(["norm"] * norm), *(["rotation"] * turned), *([f"windows of {window}"] * bool(window))]
        if parts:
            yield Call(f"{dim} {', '.join(parts)}", shapes, run)
    for dim, norm in product((64, 16, 40, 128), (True, False)):

        def in_pairs(dim=dim, norm=norm) -> object:
            x, affine = _qkv(tokens, dim, kind)[0].detach(), torch.zeros(dim, device="meta") if norm else None
            table = torch.zeros(tokens, dim // 2, device="meta")
            return norm_rotate(x, affine, affine, table, table, tokens, 0, 0, 1e-5, kind, False, True)

        called = f"{dim} {'norm, ' * norm}rotation of pairs"
        yield Call(called, "backbones" if dim == 64 and norm else "edges", in_pairs)


def _join_windows(kind: torch.dtype) -> Iterator[Call]:
    for dim, size, shapes in ((64, 16, "backbones"), (32, 16, "backbones"), (40, 9, "edges"), (128, 64, "edges")):
        for gates, special in product((0, 1, 2), (0, 5)):

            def run(dim=dim, size=size, gates=gates, special=special) -> Tensor:
                tokens = special + 6 * size
                made = torch.zeros(1, 2 * tokens, HEADS * gates, dtype=kind, device="meta") if gates else None
                apart = _qkv(2 * special, dim, kind)[0].detach() if special else None
                values = (_qkv(n, dim, kind)[0].detach() for n in (12 * size, 12))
                return join_windows(*values, made, apart, tokens, size)

            yield Call(f"{dim} windows of {size}, {gates} gates, {special} special", shapes, run)


def _rank_listed(kind: torch.dtype) -> Iterator[Call]:
    for dim, listed, shapes in ((64, 64, "backbones"), (40, 3, "edges"), (16, 256, "edges"), (128, 64, "edges")):
        if 4 * listed * dim * kind.itemsize > 1 << 16:
            continue

        def run(dim=dim, listed=listed) -> Tensor:
            q, k = (x.detach().unflatten(2, (-1, 4)) for x in _qkv(4096, dim, kind)[:2])
            lists = torch.zeros(1, HEADS, 1024, listed, dtype=torch.int32, device="meta")
            names = torch.zeros(1024, 4, dtype=torch.int32, device="meta")
            return rank_by_group(q, k, lists, names, names[None] > 0, 32)

        yield Call(f"{dim} of {listed} groups", shapes, run)


def _residual(kind: torch.dtype) -> Iterator[Call]:
    for width, shapes in ((1024, "backbones"), (384, "backbones"), (40, "edges"), (1 << 13, "edges")):
        x, gain = torch.zeros(256, width, device="meta"), torch.zeros(width, device="meta")
        branch = torch.zeros(256, width, dtype=kind, device="meta")
        yield Call(f"norm of {width}", shapes, lambda x=x, gain=gain: norm_to(x, gain, gain, 1e-6, kind))
        for scale in (gain, None):

            def run(x=x, branch=branch, scale=scale) -> Tensor:
                return add_scaled(x, branch, scale, None)

            yield Call(f"{'sum' if scale is None else 'scaled sum'} of {width}", shapes, run)


def _span_attention(kind: torch.dtype) -> Iterator[Call]:
    rows = ((64, 1003, "backbones"), (128, 1, "backbones"), (20, 70, "edges"), (128, 1003, "edges"), (64, 1, "edges"))
    for dim, count, shapes in rows:
        if count > FEW and why_too_large(dim, kind, 1, _card()):
            continue

        def run(dim=dim, count=count) -> Tensor:
            q, (k, v) = (torch.zeros(*at, dim, dtype=kind, device="meta") for at in ((HEADS, count), (2, HEADS, 4096)))
            return span_attention(q, k, v, torch.zeros(3, 2, dtype=torch.int32, device="meta"), dim**-0.5)

        yield Call(f"{dim}, {count} queries", shapes, run)


OPERATORS: dict[str, Callable[[torch.dtype], Iterator[Call]]] = {
    "block_select": _block_select,
    "block_sparse": _sparse(sparse_kernel.attend, gradients=True),
    "block_sparse_fp8": _sparse(kernel_fp8.attend, gradients=False),
    "join_windows": _join_windows,
    "linear_attention": _linear_attention,
    "norm_rotate": _norm_rotate,
    "quantize_rows": _quantize_rows,
    "rank_listed": _rank_listed,
    "residual": _residual,
    "rope2d": _rope2d,
    "span_attention": _span_attention,
}
