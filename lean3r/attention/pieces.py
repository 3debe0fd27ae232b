"""Long sums over tokens a piece at a time, in bounded memory, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lean3r.ops.repeats import pieces_of

CPU_PIECE = 1 << 20  # scores at once: what stays in the cache is several times faster
DEVICE_PIECE = 1 << 26


def pieces(total: int, each: int, device: torch.device) -> Iterator[slice]:
    """Slices of range(total) such that one has a bounded number of scores where a unit has `each`."""
    budget = CPU_PIECE if device.type == "cpu" else DEVICE_PIECE
    step = max(1, budget // max(1, each))
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def in_pieces(function: Callable[..., Tensor], slices: Iterator[slice], *tensors: Tensor) -> Tensor:
    """Concatenate function(slice, *tensors) along dimension 2; several pieces are computed again for gradients.

    What one piece needs in between is thus all that is ever held, in the backward pass too.
    """
    parts = list(slices)
    if len(parts) == 1:
        return function(parts[0], *tensors)
    if not torch.is_grad_enabled():
        return written(lambda part: function(part, *tensors), parts)
    return torch.cat([checkpoint(function, part, *tensors, use_reentrant=False) for part in parts], 2)


def written(function: Callable[[slice], Tensor], parts: list[slice]) -> Tensor:
    """As cat([function(part) for part in parts], 2), each result written to its place at once; not for gradients.

    The slices follow one another from 0 on, all but the last of one length.
    """
    out = None
    for part in pieces_of(parts):
        found = function(part)
        if out is None:
            out = found.new_empty(*found.shape[:2], parts[-1].stop, *found.shape[3:])
        out[:, :, part] = found
    assert out is not None
    return out
