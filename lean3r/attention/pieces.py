"""Long sums over tokens, one piece at a time, in bounded memory, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lean3r.ops.repeats import pieces_of

CPU_PIECE = 1 << 20  # scores at once, which fit into the cache: several times faster
DEVICE_PIECE = 1 << 26


def pieces(total: int, each: int, device: torch.device) -> Iterator[slice]:
    """Slices of range(total) with a bounded number of scores each; one unit has `each` scores."""
    budget = CPU_PIECE if device.type == "cpu" else DEVICE_PIECE
    step = max(1, budget // max(1, each))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def in_pieces(function: Callable[..., Tensor], slices: Iterable[slice], *tensors: Tensor) -> Tensor:
    """Concatenate function(slice, *tensors) along dimension 2; if there are several pieces, gradients recompute them.

    Only the intermediate results of one piece exist at a time, in the backward pass too.
    """
    parts = list(slices)
    if len(parts) == 1:
        return function(parts[0], *tensors)
    if not torch.is_grad_enabled():
        return write_pieces(lambda part: function(part, *tensors), parts)
    return torch.cat([checkpoint(function, part, *tensors, use_reentrant=False) for part in parts], 2)


def write_pieces(function: Callable[[slice], Tensor], parts: list[slice]) -> Tensor:
    """Like cat([function(part) for part in parts], 2), but write each result to its place at once; without gradients.

    The slices follow one another from 0 on; all but the last have one length.
    """
    out = None
    for part in pieces_of(parts):
        piece = function(part)
        if out is None:
            out = piece.new_empty(*piece.shape[:2], parts[-1].stop, *piece.shape[3:])
        out[:, :, part] = piece
    assert out is not None
    return out
