"""Loops over pieces of one shape, which whoever only counts costs need not run through one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

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
