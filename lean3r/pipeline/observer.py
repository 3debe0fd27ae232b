"""Who is told how a run goes: the stages, their progress, their seconds and what was read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class Observer:
    """Times the stages of a run; the command line shows them by overriding the three hooks, which here do nothing.

    `seconds` maps the name of each finished stage to its wall time.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time one stage; the value is a function (done, total) to call as the work advances."""
        start = time.perf_counter()
        self.advanced(name, 0, 0)
        try:
            yield lambda done, total: self.advanced(name, done, total)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.finished(name)

    def read(self, used: Sequence[str], skipped: Sequence[tuple[str, str]]) -> None:
        """Hook: the input was read; names of the used views, and (name, reason) of the skipped ones."""

    def fitted(self, text: str) -> None:
        """Hook: what was chosen so that the run stays within a budget of memory."""

    def advanced(self, name: str, done: int, total: int) -> None:
        """Hook: `done` of `total` steps of a stage are finished (0 of 0: it starts, length unknown)."""

    def finished(self, name: str) -> None:
        """Hook: a stage ended, well or not."""
