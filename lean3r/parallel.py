"""Process many views in parallel, on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MAX_THREADS = 8  # more would mostly wait for the interpreter


def by_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call `work` on each item in a thread; return the results in the order of the items, as a loop would.

    This suits NumPy and many small torch calls. Work on one item must not depend on changes that another one makes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, MAX_THREADS)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)
