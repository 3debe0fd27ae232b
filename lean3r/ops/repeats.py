"""Loops and values that behave differently while costs are only counted (models/summary.py)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

T = TypeVar("T")
_counting: dict[int, list[int]] = {}  # by thread: factors of the loops that are running; empty outside `counting`


def _factors() -> list[int]:
    """Those of this thread: others may run models meanwhile."""
    return _counting.get(threading.get_ident(), []) if _counting else []


def pieces_of(items: Sequence[T]) -> Iterator[T]:
    """Yield the items in turn. All but the last must cost the same: while costs are counted, only the first and the
    last run, and the first counts for all of these."""
    factors = _factors()
    if not factors or len(items) < 3:
        yield from items
        return
    factors.append(len(items) - 1)
    try:
        yield items[0]
    finally:
        factors.pop()
    yield items[-1]


def results_of(call: Callable[..., Sequence[Tensor]], pieces: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """What call(*piece) gives for the pieces in turn, cut along their first axis. All but the last must cost the same:
    while costs are counted, of those between the first and the last one runs and counts for all, beside memory for the
    results of the others."""
    factors = _factors()
    if not factors or len(pieces) < 4:
        return [call(*piece) for piece in pieces]
    first, others = call(*pieces[0]), len(pieces) - 3
    kept = [part.new_empty(others * len(part), *part.shape[1:]) for part in first]
    factors.append(others + 1)
    try:
        middle = call(*pieces[-2])
    finally:
        factors.pop()
    return [first, kept, middle, call(*pieces[-1])]


@contextmanager
def counting() -> Iterator[None]:
    """Inside, loops run only their first and last piece, and results mean nothing. Costs count `factor()` times."""
    thread = threading.get_ident()
    _counting[thread] = [1]
    try:
        yield
    finally:
        del _counting[thread]


def factor() -> int:
    """How often the current piece of work would run outside `counting`."""
    return math.prod(_factors())


def with_values(make: Callable[[], Tensor]) -> Tensor:
    """Return make(), a table that depends on shapes alone; inside `counting`, an empty tensor of its true shape."""
    if not _factors():
        return make()
    # A table of what is not zero has as many rows as there are, which tensors without values cannot know.
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        table = make()
    return torch.empty(table.shape, dtype=table.dtype)


def number(value: Tensor, expected: int) -> int:
    """int(value); inside `counting`, where tensors have no values, `expected`."""
    return expected if _factors() else int(value)
