"""Functions of tensors as CUDA graphs: a processor needs longer to launch thousands of small kernels than they run.

A graph replays the same kernels on the same memory, so that results are those of a plain run bit for bit; what a run
decides in Python is decided once, when it is recorded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lean3r.tables import noting

R = TypeVar("R")
T = TypeVar("T")

WARM_UP = 2  # runs: kernels are tuned, tables made, workspaces taken
MOST = 2  # recordings of one Recorder; each keeps the working memory of a run

logger = logging.getLogger("lean3r")


@dataclass(frozen=True)
class Captured(Generic[T]):
    """A graph, the result that each replay writes over, and what it reads by address and must outlive it."""

    graph: torch.cuda.CUDAGraph
    result: T
    kept: dict[int, object]


def capture(run: Callable[[], T], like: Tensor, name: str) -> Captured[T] | None:
    """Run and record on the device of `like`; None, and a warning, where something asks the GPU for a value or copies
    to it meanwhile, or where there is no memory for what a graph keeps."""
    with torch.cuda.device_of(like), _casts_not_kept(), noting() as kept:
        main, aside = torch.cuda.current_stream(), _stream(like.device, "recording")
        aside.wait_stream(main)
        try:
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    run()
        finally:
            main.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context brings back the stream where the inner one fails to. Torch's own stream for graphs is on
            # one device only.
            with (
                torch.cuda.stream(main),
                torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"),
            ):
                result = run()
        except RuntimeError as error:  # lack of memory among them: the run alone had room
            cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            reason = next(iter(str(cause).splitlines()), "")
            logger.warning("%s runs without CUDA graphs, which cannot be recorded: %s", name, reason)
            return None
    return Captured(graph, result, kept)


def together(first: Callable[[], T], second: Callable[[], R], like: Tensor) -> tuple[T, R]:
    """(first(), second()); on the GPU of `like` beside each other, for kernels that leave much of it idle. What the
    first makes must not be read by anything that `second` launches."""
    if not like.is_cuda:
        return first(), second()
    with torch.cuda.device_of(like):
        main, beside = torch.cuda.current_stream(), _stream(like.device, "beside")
        beside.wait_stream(main)  # also orders the next use of memory that is given back to this stream
        try:
            with torch.cuda.stream(beside):
                found = first()
            other = second()
        finally:
            main.wait_stream(beside)
    return found, other


@lru_cache
def _stream(device: torch.device, use: str) -> torch.cuda.Stream:
    """Of the current device, always the same for a use: libraries keep working memory for each stream that they saw."""
    return torch.cuda.Stream()


def casts(device: torch.device) -> torch.dtype | None:
    """The type to which autocast brings products on a device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


class Recorder:
    """Replays a function whose inputs are tensors, once it was called twice under the same conditions.

    `run` may read other memory too, which `key` must name. It runs three times when it is recorded, and so must change
    nothing that a repetition would change again. Copies have no recordings.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[tuple[Tensor, ...], Captured[Any]]] = {}
        self._seen: deque[Hashable] = deque(maxlen=MOST)  # called once, lately
        self._fails = False

    def __deepcopy__(self, memo: dict) -> Recorder:
        return Recorder()

    def __call__(self, key: Hashable, run: Callable[..., R], *inputs: Tensor, name: str) -> R:
        """run(*inputs), a dataclass of tensors and other values. With gradients, and once recording failed, which is
        logged, it runs as without graphs."""
        if self._fails or torch.is_grad_enabled():
            return run(*inputs)
        key = (key, *((tuple(x.shape), x.dtype, x.device) for x in inputs), casts(inputs[0].device))
        if key not in self._found:
            if key not in self._seen:
                self._seen.append(key)
                return run(*inputs)
            while len(self._found) >= MOST:
                del self._found[next(iter(self._found))]
            with torch.inference_mode(False), torch.no_grad():
                fixed = tuple(x.clone() for x in inputs)
            captured = capture(lambda: run(*fixed), inputs[0], name)
            self._fails = captured is None
            if captured is None:
                return run(*inputs)
            self._found[key] = fixed, captured
        fixed, captured = self._found[key] = self._found.pop(key)  # the one that was used last is behind all others
        for held, given in zip(fixed, inputs, strict=True):
            held.copy_(given)
        captured.graph.replay()
        own = captured.result
        parts = {f.name: getattr(own, f.name) for f in fields(own)}
        return replace(own, **{name: x.clone() for name, x in parts.items() if isinstance(x, Tensor)})


@contextmanager
def _casts_not_kept() -> Iterator[None]:
    """Autocast would keep cast weights until it ends; a graph would read them afterwards."""
    kept = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
