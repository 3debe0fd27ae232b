"""Tokens of one call: number of views, padding, positions, selection by index."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lean3r import tables
from lean3r.attention.base import Projected
from lean3r.ops.repeats import with_values
from lean3r.types import TokenLayout


def view_count(p: Projected, layout: TokenLayout) -> int:
    """Number of views whose tokens this call sees: one in a frame block, whatever the layout says."""
    return p.q.shape[2] // layout.tokens


def without_padding(p: Projected) -> Projected:
    """The same projections with zeros in the rows of padding, which may hold anything, NaN included."""
    if p.key_mask is None:
        return p
    hidden = ~p.key_mask
    x = p.x.masked_fill(hidden[:, :, None], 0.0)
    q, k, v = (t.masked_fill(hidden[:, None, :, None], 0.0) for t in (p.q, p.k, p.v))
    return replace(p, x=x, q=q, k=k, v=v)


def grid_positions(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """(row, column) [P] of each patch of a view, counted from 0, in the layout's order, on the CPU."""
    order = layout.order()
    index = torch.arange(layout.patches) if order is None else order
    return index // layout.cols, index % layout.cols


def _of_layout(module: str, name: str, shape: tuple[int, int, int, int, int | None], settings: tuple) -> Tensor:
    views, special, rows, cols, window = shape
    layout = TokenLayout(views, special, rows, cols, window=window)
    return with_values(lambda: getattr(importlib.import_module(module), name)(layout, *settings))


def table(make: Callable[..., Tensor], layout: TokenLayout, views: int, device: torch.device, *settings) -> Tensor:
    """A table of token indices that depends on the shape of a layout only, cached for later calls.

    `make` is a function of a module, called with a layout and `settings`, which are literals.
    """
    shape = (views, layout.special, layout.rows, layout.cols, layout.window)
    return tables.table(_of_layout, (make.__module__, make.__name__, shape, settings), device)


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of x [B, H, N, D] by index [M], the same for every scene, or [B, M] -> [B, H, M, D]."""
    if index.ndim == 1:
        return x[:, :, index]
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def marks_of(mask: Tensor | None, index: Tensor) -> Tensor | None:
    """Entries of mask [B, N] by index [M] or [B, M] -> [B, M]."""
    if mask is None:
        return None
    return mask[:, index] if index.ndim == 1 else mask.gather(1, index)
