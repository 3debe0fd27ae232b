"""What several mechanisms share: reading a layout, clean projections, long sums in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lean3r.attention.base import Projected
from lean3r.errors import UsageError
from lean3r.ops.dispatch import describe
from lean3r.ops.repeats import pieces_of, with_values
from lean3r.types import TokenLayout

CPU_PIECE = 1 << 20  # scores at once: what stays in the cache is several times faster
DEVICE_PIECE = 1 << 26


def shown(module: nn.Module, *names: str) -> str:
    """Settings of a module for its repr; of `implementation`, what "auto" comes to as well."""

    def text(name: str) -> str:
        value = getattr(module, name)
        return describe(value, torch_path=True) if name == "implementation" else repr(value)

    return ", ".join(f"{name}={text(name)}" for name in names)


def check_share(name: str, value: float, *, positive: bool = False) -> float:
    """Return `value` if it lies in [0, 1], and is not 0 where it must be `positive`; raise UsageError otherwise."""
    if isinstance(value, bool | str) or not 0 <= value <= 1:
        raise UsageError(f"{name} is a share from 0 to 1, got {value!r}")
    if positive and not value:
        raise UsageError(f"{name} is a share above 0, got 0: something must be attended to; 1 keeps everything")
    return value


def check_flag(name: str, value: bool) -> bool:
    """Return `value` if it is True or False; raise UsageError otherwise, for texts such as "no" count as true."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is True or False, got {value!r}")
    return value


def check_count(name: str, value: int) -> int:
    """Return `value` if it is at least 1; raise UsageError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is a whole number from 1 on, got {value!r}")
    return value


def view_count(p: Projected, layout: TokenLayout) -> int:
    """Views whose tokens this call sees: one in a frame block, whatever the layout has in all."""
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


@lru_cache(maxsize=512)
def cached(
    make: Callable[..., Tensor],
    views: int,
    special: int,
    rows: int,
    cols: int,
    window: int | None,
    device: torch.device,
    *settings,
) -> Tensor:
    """make(TokenLayout(views, special, rows, cols, window=window), *settings) on `device`, remembered."""
    # Not made under inference mode: a later training step would refuse the table.
    with torch.inference_mode(False):
        layout = TokenLayout(views, special, rows, cols, window=window)
        return with_values(lambda: make(layout, *settings)).to(device)


def table(make: Callable[..., Tensor], layout: TokenLayout, views: int, device: torch.device, *settings) -> Tensor:
    """A table of token indices that depends on a layout's shape only, remembered for later calls."""
    return cached(make, views, layout.special, layout.rows, layout.cols, layout.window, device, *settings)


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
    return torch.cat([checkpoint(function, part, *tensors, use_reentrant=False) for part in parts], 2)  # type: ignore[arg-type]


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


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of x [B, H, N, D] by index [M], the same in every scene, or [B, M] -> [B, H, M, D]."""
    if index.ndim == 1:
        return x[:, :, index]
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def marks_of(mask: Tensor | None, index: Tensor) -> Tensor | None:
    """Entries of mask [B, N] by index [M] or [B, M] -> [B, M]."""
    if mask is None:
        return None
    return mask[:, index] if index.ndim == 1 else mask.gather(1, index)
