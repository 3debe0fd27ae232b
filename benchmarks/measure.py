"""Seconds, counted operations and peak memory of functions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import accumulate
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from lean3r.bench.meter import Operations

Run = Callable[[], Any]


def once(run: Run) -> float:
    """Seconds of one run, work on a GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def inside(module: ModuleType, names: tuple[str, ...], run: Run, repeats: int = 1) -> list[float]:
    """Median seconds a run spends in each of these functions of `module`, which calls them by name.

    A GPU is waited for before and after each call, so that they are a little longer than they are unwatched.
    """
    taken: dict[str, list[float]] = {name: [] for name in names}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            results = []
            taken[name][-1] += once(lambda: results.append(function(*args, **named)))
            return results[0]

        return call

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(module, name, timed(name, getattr(module, name))))
        for _ in range(repeats):
            for times in taken.values():
                times.append(0.0)
            run()
    return [statistics.median(times) for times in taken.values()]


def clock(run: Run, budget_s: float, most: int = 9) -> tuple[float, int]:
    """Median seconds, and of how many runs: as many as fit into the budget, 1 to `most`, after one uncounted."""
    run()
    times: list[float] = []
    while not times or (sum(times) + times[-1] < budget_s and len(times) < most):
        times.append(once(run))
    return statistics.median(times), len(times)


def observed(run: Run) -> tuple[float, int, int]:
    """Seconds, operations, and peak bytes on top of what was there before, of one profiled run."""
    counter = Operations()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with counter:
            seconds = once(run)
        return seconds, counter.total, torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch, counter:
        seconds = once(run)
    events = [e for e in watch.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    alive = accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0)  # type: ignore[attr-defined]
    return seconds, counter.total, max(alive)
