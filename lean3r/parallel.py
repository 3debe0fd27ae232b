"""Work on many views at once, on the threads that torch was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 8  # threads: more of them mostly wait for the interpreter


def by_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`work` of each item, in their order. For work of numpy, or of many small calls of torch, each on one thread.

    What each item gives must depend on nothing that another one changes: then the results are those of a loop.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, MOST)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)
