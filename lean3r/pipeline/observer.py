"""Report the progress of a run: its stages, their progress and seconds, and the input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lean3r.types import Lens, Reconstruction, Source


class Observer:
    """Times the stages of a run. The hooks do nothing here; the command line overrides them to show progress.

    `seconds` maps the name of each finished stage to its wall time. `check` is called before the network runs, with the
    sources of the views and their known lenses (None: unknown), and may raise: it ends a run that nobody can use.
    """

    check: Callable[[Sequence[Source], Sequence[Lens | None]], None] | None = None

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time one stage; yield a function (done, total) to call as the work advances."""
        start = time.perf_counter()
        self.advanced(name, 0, 0)
        try:
            yield lambda done, total: self.advanced(name, done, total)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.finished(name)

    def read(self, used: Sequence[str], skipped: Sequence[tuple[str, str]]) -> None:
        """Hook: the input was read. `used` are names of views, `skipped` are (name, reason)."""

    def fitted(self, text: str) -> None:
        """Hook: the run was fitted into a memory budget, as `text` says."""

    def advanced(self, name: str, done: int, total: int) -> None:
        """Hook: `done` of `total` steps of a stage are finished (0 of 0: it starts, its length is unknown)."""

    def has_scene(self, scene: Reconstruction) -> None:
        """Hook: the scene as it is after a stage, yet without points."""

    def finished(self, name: str) -> None:
        """Hook: a stage ended, with or without an error."""
