"""What whoever only counts costs does otherwise: loops over pieces of one shape, and values that costs depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

T = TypeVar("T")
_factors: list[int] = []  # of the loops that are running; empty when nobody counts


def pieces_of(items: Sequence[T]) -> Iterator[T]:
    """The items in turn. All but the last must cost the same: while somebody counts, the first stands for these."""
    if not _factors or len(items) < 3:
        yield from items
        return
    _factors.append(len(items) - 1)
    try:
        yield items[0]
    finally:
        _factors.pop()
    yield items[-1]


@contextmanager
def counting() -> Iterator[None]:
    """Inside, loops run their first and last piece only; results mean nothing. What runs counts `factor()` times."""
    _factors.append(1)
    try:
        yield
    finally:
        _factors.pop()


def factor() -> int:
    """How often what runs now would run if nobody counted."""
    return math.prod(_factors)


def with_values(make: Callable[[], Tensor]) -> Tensor:
    """make(), a table that depends on shapes alone: while somebody counts, made for real, and its shape returned."""
    if not _factors:
        return make()
    # A table of what is not zero has as many rows as there are, which tensors without values cannot know.
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        found = make()
    return torch.empty(found.shape, dtype=found.dtype)


def number(value: Tensor, expected: int) -> int:
    """int(value); `expected` while somebody counts, when tensors have no values."""
    return expected if _factors else int(value)
