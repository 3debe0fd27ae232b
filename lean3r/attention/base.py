"""The interface of a mechanism: its only inputs are the projections of one call and the layout of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lean3r.types import TokenLayout


@dataclass(frozen=True)
class Projected:
    """One attention call before any mixing.

    x [B, N, C] is the normalised input of the block; for mechanisms that do not read it, bytes without meaning. q, k
    and v [B, H, N, D] are taken before norm and rotation, so that a mechanism may pool them first. finish(q, k)
    applies both; finish(q, k, positions) does so for pooled tokens at the rows and columns positions [n, 2], or
    [n / m, 2] if m views repeat them. key_mask [B, N] is False on padding, None if there is none. positions [T, 2]
    float, or [N, 2], are the rows and columns that finish(q, k) rotates by, in the order of the tokens; None without
    rotation. finish_and_pool(q, k, window) -> (finished q, means of q), (finished k, means of k) also averages each
    `window` neighbouring patches of q and k as they were, in one pass over them; the patches of all views come first
    in what is finished, then all special tokens. None where no kernel does that.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    finish: Callable[..., tuple[Tensor, Tensor]]
    key_mask: Tensor | None = None
    positions: Tensor | None = None
    finish_and_pool: Callable[..., tuple[tuple[Tensor, Tensor], ...]] | None = None


class Mechanism(nn.Module):
    """Base of all mechanisms: forward(projected, layout) -> [B, H, N, D].

    With `window`, the trunk orders tokens by windows of this side; None if any order is acceptable. A mechanism must
    work on every layout, but one with a `share` only if `why_not_shared` gives no reason. `reads_input` is False if it
    never reads the numbers of `Projected.x`, `multiplies_input` is True if it only multiplies them by weights.

    Two lists of settings are for tests. With `COMPLETE` settings, no key is left out and the result equals dense
    attention; the list is empty if keys are always left out. `SMALL` settings have an effect on as few as twenty
    tokens; with the first of them, the amount of computation depends only on shapes.
    """

    COMPLETE: ClassVar[Sequence[Mapping[str, object]]] = ()
    SMALL: ClassVar[Sequence[Mapping[str, object]]] = ({},)
    window: int | None = None
    reads_input: ClassVar[bool] = True
    multiplies_input: ClassVar[bool] = False

    def unsupported(self, head_dim: int) -> str | None:
        """The reason why its Triton kernels cannot run with `head_dim` channels; None if they can or if it has none."""
        return None

    def why_not_shared(self) -> str | None:
        """Why it cannot attend to views that other processes have (`TokenLayout.share`); None if it can."""
        return "it needs the tokens of all views in one process"

    def why_not_traced(self) -> str | None:
        """Why torch.export cannot record it as one graph for any number of views (lean3r/deploy); None if it can."""
        return "its lists have other lengths for other numbers of views"

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Mix values over tokens; subclasses define how. Padding never attends and is never attended to."""
        raise TypeError(f"{type(self).__name__} defines no forward")


def in_own_type(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) in the type of x, multiplied in the type of the layer's parameters, which may be another one.

    In a model held in half precision, what a mechanism gets and what it has differ: its parameters stay as they are if
    it was compressed before, and the block's input stays in float32.
    """
    kind = next((parameter.dtype for parameter in layer.parameters()), x.dtype)
    if kind == x.dtype or (not x.is_meta and torch.is_autocast_enabled(x.device.type)):  # meta knows no autocast
        return layer(x)
    return layer(x.to(kind)).to(x.dtype)


@dataclass(frozen=True)
class Record:
    """The report of one call of a mechanism: `values` by name, tensors detached.

    Reserved names: "density", the share of (query, key) pairs attended to, a number, a scalar or [B, H]; "blocks"
    [B, H, query blocks, K], the key blocks that each query block attends to, -1 for none; "gate" [B, ...], weights
    between two branches. Other names are free.
    """

    mechanism: Mechanism
    layout: TokenLayout
    values: dict[str, object]

    @property
    def density(self) -> float | None:
        """Mean share of pairs attended to; None if the mechanism did not report it."""
        density = self.values.get("density")
        if isinstance(density, Tensor):
            return float(density.float().mean())
        return float(density) if isinstance(density, int | float) else None


_logs: list[list[Record]] = []


def record(mechanism: Mechanism, layout: TokenLayout, **values: object) -> None:
    """Report values of a call to the innermost `recording`; do nothing if there is none.

    Pass a value that is costly to compute as a function without arguments: it is called only while recording.
    """
    if _logs:
        computed = {name: value() if callable(value) else value for name, value in values.items()}
        detached = {name: value.detach() if isinstance(value, Tensor) else value for name, value in computed.items()}
        _logs[-1].append(Record(mechanism, layout, detached))


@contextmanager
def recording() -> Iterator[list[Record]]:
    """Collect the records of every mechanism that runs inside, in order; of nested recordings the innermost gets them.

    Records keep their tensors alive. Not safe for several threads at once.
    """
    log: list[Record] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.pop()
