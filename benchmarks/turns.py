"""Seconds of several runs, taken in turns so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import contextlib
import statistics
import time
import timeit
from collections.abc import Callable, Iterator

import torch

from lean3r.models.base import Backbone
from lean3r.pipeline.predict import predict
from lean3r.types import Views


def share_of(model: Backbone, layers: list[str], views: Views, rounds: int) -> dict[str, float]:
    """Seconds of the processor, one thread, that the named layers take of a run; medians."""
    inside, whole, began = [], [], [0.0]

    def enter(*_: object) -> None:
        began[0] = time.process_time()

    def leave(*_: object) -> None:
        inside[-1] += time.process_time() - began[0]

    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(enter)
        model.get_submodule(name).register_forward_hook(leave)
    with one_thread():
        for _ in range(rounds + 1):
            inside.append(0.0)
            started = time.process_time()
            predict(model, views)
            whole.append(time.process_time() - started)
    layer_seconds, seconds = statistics.median(inside[1:]), statistics.median(whole[1:])
    return {"cpu_seconds": round(layer_seconds, 4), "share": round(layer_seconds / seconds, 3)}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, so that seconds of the processor count no waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def by_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each, one run of each in every round, and as a share of the first.

    "seconds" on the clock with all threads; "cpu_seconds" of the processor in further rounds with one thread.
    """
    table: dict[str, dict[str, float]] = {name: {} for name in runs}

    def measure(key: str, take: Callable[[Callable[[], object]], float]) -> None:
        times: dict[str, list[float]] = {name: [] for name in runs}
        with torch.inference_mode():
            for counted in range(-1, rounds):
                for name, run in runs.items():
                    seconds = take(run)
                    if counted >= 0:
                        times[name].append(seconds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        first = next(iter(medians.values()))
        for name, value in medians.items():
            table[name] |= {f"{key}seconds": round(value, 4), f"{key}of_float32": round(value / first, 3)}

    def on_processor(run: Callable[[], object]) -> float:
        started = time.process_time()
        run()
        return time.process_time() - started

    measure("", lambda run: timeit.timeit(run, number=1))
    with one_thread():
        measure("cpu_", on_processor)
    return table
