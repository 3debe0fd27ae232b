"""The contract of a mechanism: it sees one call's projections and the layout of its tokens, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lean3r.types import TokenLayout


@dataclass(frozen=True)
class Projected:
    """One attention call before any mixing.

    x [B, N, C] is the block's normalised input; q, k, v [B, H, N, D] come before norm and rotation, so that
    a mechanism may pool them first; finish(q, k) applies both, and finish(q, k, positions) does so for pooled
    tokens at rows and columns positions [n, 2], or [n / m, 2] where m views repeat them. key_mask [B, N] is False
    on padding, None when every token counts. positions [T, 2] float, or [N, 2], are the rows and columns that
    finish(q, k) rotates by, in the order of the tokens; None where nothing is rotated.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    finish: Callable[..., tuple[Tensor, Tensor]]
    key_mask: Tensor | None = None
    positions: Tensor | None = None


class Mechanism(nn.Module):
    """Base of all mechanisms: forward(projected, layout) -> [B, H, N, D].

    `window` is the side of the windows in whose order a mechanism would have its tokens, None where any order
    will do; the trunk grants it. A mechanism works on every layout that it is handed.

    Two lists of settings say how to try it. With `COMPLETE` ones it leaves nothing out, so that it equals dense
    attention; there are none where it always leaves something out. With `SMALL` ones it does on some twenty tokens
    what it is for; with the first of them, how much it computes depends on shapes alone.
    """

    COMPLETE: ClassVar[Sequence[Mapping[str, object]]] = ()
    SMALL: ClassVar[Sequence[Mapping[str, object]]] = ({},)
    window: int | None = None

    def unsupported(self, head_dim: int) -> str | None:
        """What its Triton kernels have against heads of so many channels; None when they take them, or it has none."""
        return None

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Mix values over tokens; subclasses say how. Padding never attends and is never attended to."""
        raise TypeError(f"{type(self).__name__} defines no forward")


@dataclass(frozen=True)
class Record:
    """What one call of a mechanism reported: `values` by name, tensors detached.

    Names that readers understand: "density", the share of (query, key) pairs attended to, a number, a scalar or
    [B, H]; "blocks" [B, H, query blocks, K], key blocks that each query block attends to, -1 where there is none;
    "gate" [B, ...], weights between two branches. Others are free.
    """

    mechanism: Mechanism
    layout: TokenLayout
    values: dict[str, object]

    @property
    def density(self) -> float | None:
        """Mean share of pairs attended to; None where the mechanism did not say."""
        found = self.values.get("density")
        if isinstance(found, Tensor):
            return float(found.float().mean())
        return float(found) if isinstance(found, int | float) else None


_logs: list[list[Record]] = []


def record(mechanism: Mechanism, layout: TokenLayout, **values: object) -> None:
    """Report what a call did to whoever is recording; nobody, by default, and then this does nothing.

    A value that costs something is given as a function without arguments, called only when somebody records.
    """
    if _logs:
        found = {name: value() if callable(value) else value for name, value in values.items()}
        found = {name: value.detach() if isinstance(value, Tensor) else value for name, value in found.items()}
        _logs[-1].append(Record(mechanism, layout, found))


@contextmanager
def recording() -> Iterator[list[Record]]:
    """The records of every mechanism that runs inside, in order; the innermost of nested recordings gets them.

    Records hold their tensors until the list goes. One recording at a time in a process with several threads.
    """
    log: list[Record] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.pop()
