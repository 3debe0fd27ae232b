"""Square windows of a view's patches: which patch is where, in plain torch, which torch.export can record."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lean3r.tables import table
from lean3r.tracing import is_traced


@dataclass(frozen=True)
class Windows:
    """The W windows of side x side patches that one view is divided into, row by row; those at the right and lower
    edge may be smaller.

    members [W, side * side]: the patches of each window, row by row, as indices into the view's patches in the
    layout's own order; -1 pads smaller windows. slots [P]: the position of each patch in `members`, flattened.
    `full`: no window is smaller. `adjacent`: in addition, the patches of each window are contiguous in the layout's
    own order, so that windows are a view of the tokens. In a traced model, which has any number of patches, both are
    False.
    """

    side: int
    members: Tensor
    slots: Tensor
    full: bool
    adjacent: bool

    @property
    def count(self) -> int:
        """Windows of one view."""
        return self.members.shape[0]

    @classmethod
    def of(cls, rows: int, cols: int, order: int | None, side: int, device: torch.device) -> Windows:
        """Windows of any side of rows x cols patches, which are in the order of windows of side `order` (None:
        row-major); cached."""
        members, slots = (table(make, (rows, cols, order, side), device) for make in (_members, _slots))
        if is_traced():
            return cls(side, members, slots, full=False, adjacent=False)
        full = rows % side == cols % side == 0
        row_major = order in (None, 1) or order >= cols or rows == 1
        adjacent = full and (side in (1, cols) if row_major else side == order)
        return cls(side, members, slots, full, adjacent)


def window_order(rows: int, cols: int, side: int, device: torch.device) -> Tensor:
    """Row-major index [P] of each patch, window by window; cached."""
    return table(_order, (rows, cols, side), device)


def _order(rows: int, cols: int, side: int) -> Tensor:
    return _places(rows, cols, side).argsort()


def _windows(length: int, side: int) -> int:
    """Windows along a side. Not -(-length // side): what becomes of a symbol in ONNX rounds towards zero."""
    return (length + side - 1) // side


def _places(rows: int, cols: int, side: int) -> Tensor:
    """[P] the place of each row-major patch, where windows of side x side places follow one another."""
    row, col = torch.arange(rows)[:, None], torch.arange(cols)
    window = row // side * _windows(cols, side) + col // side
    return ((window * side + row % side) * side + col % side).flatten()


def _members(rows: int, cols: int, order: int | None, side: int) -> Tensor:
    down, across = (torch.arange(_windows(length, side) * side).unflatten(0, (-1, side)) for length in (rows, cols))
    row, col = down[:, None, :, None], across[:, None]
    index = torch.where((row < rows) & (col < cols), row * cols + col, -1).flatten(2).flatten(0, 1)
    if order is None:
        return index
    own = _order(rows, cols, order).argsort()
    return own[index.clamp_min(0)].where(index >= 0, -1)


def _slots(rows: int, cols: int, order: int | None, side: int) -> Tensor:
    places = _places(rows, cols, side)
    return places if order is None else places[_order(rows, cols, order)]
