"""Work on many views at once, on as many threads as torch uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 8  # threads: more of them mostly wait for the interpreter


def by_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results of `work`, in the order of the items. For numpy, or many small torch calls; one thread an item.

    No item's result may depend on what another one changes; the results are then those of a loop.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, MOST)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)
