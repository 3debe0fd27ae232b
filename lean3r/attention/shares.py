"""The distribution of the attention of one window of patches over views and patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lean3r.attention.probe import Call, weights
from lean3r.errors import UsageError
from lean3r.types import TokenLayout, Views

SIDE = 4  # patches of a query window, as in the sparse mechanisms
MOST = 0.9


@dataclass(frozen=True)
class Window:
    """Patches [row, row + rows) x [col, col + cols) of one view."""

    row: int
    col: int
    rows: int
    cols: int

    def as_dict(self) -> dict[str, int]:
        """JSON-ready."""
        return dict(vars(self))


@dataclass(frozen=True)
class Shares:
    """Shares of the window's attention, averaged over heads.

    heat [S, rows, cols] by patch, by_view its sum over each view, special of all special tokens. tokens_of_most is the
    number of tokens that together receive 90 per cent.
    """

    heat: np.ndarray
    by_view: list[float]
    special: float
    tokens: int
    tokens_of_most: int


def query_window(layout: TokenLayout, views: Views, view: int, at: tuple[float, float] | None) -> Window:
    """The window around a point, given in pixels of the original picture; UsageError if it lies outside the picture."""
    height, width = views.images.shape[-2:]
    source = views.sources[view]
    x, y = at or (source.width / 2, source.height / 2)
    scale_x, scale_y, offset_x, offset_y = source.original_from_network
    col, row = (x - offset_x) / scale_x / width * layout.cols, (y - offset_y) / scale_y / height * layout.rows
    if not (0 <= x < source.width and 0 <= y < source.height and 0 <= col < layout.cols and 0 <= row < layout.rows):
        raise UsageError(
            f"--at is {x:g} {y:g}, outside the picture: {source.name} has {source.width} x {source.height} pixels."
        )
    top, left = int(row) // SIDE * SIDE, int(col) // SIDE * SIDE
    return Window(top, left, min(SIDE, layout.rows - top), min(SIDE, layout.cols - left))


def shares(call: Call, window: Window, view: int) -> Shares:
    """Shares of the attention of a window of one view, in the first scene of a batch."""
    layout = call.layout
    order = layout.order()
    place = torch.arange(layout.patches) if order is None else order.argsort()  # row-major -> the layout's order
    grid = place.unflatten(0, (layout.rows, layout.cols))
    members = grid[window.row : window.row + window.rows, window.col : window.col + window.cols].flatten()
    queries = view * layout.tokens + layout.special + members
    if call.projected.key_mask is not None:
        queries = queries[call.projected.key_mask[0].cpu()[queries]]
    if not len(queries):
        raise UsageError("this point is in padding; choose another with --at.")
    share = weights(call, queries.to(call.projected.v.device))[0].float().mean(0).cpu().clamp_min(0)
    share = share / share.sum()
    ranked = share.sort(descending=True).values.cumsum(0)
    by_view = share.unflatten(0, (layout.views, layout.tokens))
    patches = by_view[:, layout.special :][:, place].unflatten(1, (layout.rows, layout.cols))
    return Shares(
        patches.numpy(),
        patches.sum((1, 2)).tolist(),
        float(by_view[:, : layout.special].sum()),
        len(share),
        int((ranked < MOST).sum()) + 1,
    )
