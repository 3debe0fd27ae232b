"""Prefetching: batches are computed ahead in processes or threads; the results are the same as without it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import secrets
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from lean3r.data.base import SceneBatch
from lean3r.errors import LeanError, UsageError
from lean3r.processes import end_with_parent, safely_started

logger = logging.getLogger("lean3r")

S = TypeVar("S")  # the stage of a step
BatchFn = Callable[[int, S, int, int], SceneBatch]
Call = tuple[int, S, int, int]  # step, stage, rank, number of processes
Values = dict[str, object]
Result = SceneBatch | tuple[str | None, Values]
"""The result of a worker. Threads return a batch; processes return the name of the shared memory that holds the
arrays (None: no shared memory) and all other values."""
# Decoding and resizing release the interpreter lock, and threads pass batches on without a copy: on two cores, two
# threads were twice as fast as two processes (benchmarks/loading_data.py). Many threads would wait for each other.
MOST_THREADS = 4
_WORKER_DIED = (
    "a worker process ended before the batch of step {step} was ready, perhaps for lack of memory; "
    "use fewer workers, or 0 to see its error"
)
_compute: BatchFn[object] | None = None  # in a worker process: the function that makes batches


class Prefetch(Generic[S]):
    """`batch_fn(step, stage, rank, world_size)` with the next `ahead` batches computed in the background.

    A context manager, called like `batch_fn`. `batch_fn` must be a pure function; results are then the same for any
    number of workers. An error is raised by the call for its step. `kind` is where batches are computed: in
    "processes" (spawned, so `batch_fn` must be picklable and scripts need `if __name__ == "__main__"`), in "threads",
    or "auto": threads for up to MOST_THREADS workers or if `batch_fn` cannot be pickled, otherwise processes.
    `after(*call)` returns the arguments of the call after one, None past the end; without it, calls are assumed to
    differ in their steps only. What is not called as assumed is computed on request. `ahead` is by default two batches
    for each worker; with 0 workers nothing is computed ahead.
    """

    def __init__(
        self,
        batch_fn: BatchFn[S],
        workers: int,
        ahead: int | None = None,
        *,
        kind: Literal["auto", "processes", "threads"] = "auto",
        after: Callable[[int, S, int, int], Call[S] | None] | None = None,
    ) -> None:
        if workers < 0 or (ahead is not None and ahead < 1):
            raise UsageError(
                f"prefetching: got {workers} workers and {ahead} batches ahead; expected at least 0 workers and 1 batch"
            )
        self.batch_fn, self.workers, self.after = batch_fn, workers, after or _next_step
        self.ahead = 2 * workers if ahead is None else ahead
        self._waiting: dict[tuple[int, int, int], tuple[S, Future[Result]]] = {}
        self._pool: Executor | None = None
        in_threads = kind == "threads" or (kind == "auto" and workers <= MOST_THREADS)
        packed = None if in_threads or not workers else _pickle_batch_fn(batch_fn, must=kind == "processes")
        if packed is not None:
            with safely_started():
                self._pool = ProcessPoolExecutor(
                    workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(packed,)
                )
        elif workers:
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self._in_processes = packed is not None

    def __enter__(self) -> Prefetch[S]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, step: int, stage: S, rank: int, world_size: int) -> SceneBatch:
        """The batch of a step. Raises the error of `batch_fn` for this step; LeanError if a worker process died."""
        if self._pool is None:
            return self.batch_fn(step, stage, rank, world_size)
        calls: list[Call[S]] = [(step, stage, rank, world_size)]
        while len(calls) <= self.ahead and (later := self.after(*calls[-1])) is not None:
            calls.append(later)
        self._forget_all_but(calls)
        future, *_ = [self._request(*call) for call in calls]
        self._waiting.pop((step, rank, world_size))
        try:
            result = future.result()
        except BrokenProcessPool as error:
            self.close()
            raise LeanError(_WORKER_DIED.format(step=step)) from error
        return result if isinstance(result, SceneBatch) else _unpack(*result)

    def _request(self, step: int, stage: S, rank: int, world_size: int) -> Future[Result]:
        """The future of a batch; starts the computation if none is under way for this stage."""
        key = (step, rank, world_size)
        known = self._waiting.get(key)
        if known is not None and known[0] == stage:
            return known[1]
        if known is not None:
            self._give_up(known[1])
        assert self._pool is not None
        work: Callable[[int, S, int, int], Result] = _work if self._in_processes else self.batch_fn
        try:
            with safely_started():
                future = self._pool.submit(work, step, stage, rank, world_size)
        except RuntimeError as error:  # BrokenProcessPool, or the pool was shut down
            raise LeanError(_WORKER_DIED.format(step=step)) from error
        self._waiting[key] = (stage, future)
        return future

    def _forget_all_but(self, calls: list[Call[S]]) -> None:
        """Drop the batches of other calls, after a jump."""
        for key in self._waiting.keys() - {(step, rank, world_size) for step, _, rank, world_size in calls}:
            self._give_up(self._waiting.pop(key)[1])

    def close(self) -> None:
        """Drop all pending batches and end the workers; waits for the batches in progress."""
        for _, future in self._waiting.values():
            self._give_up(future)
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _give_up(self, future: Future[Result]) -> None:
        """Drop a batch; if it is in progress, its shared memory is released when it is done."""
        if not future.cancel() and self._in_processes:
            future.add_done_callback(_drop)


def _next_step(step: int, stage: S, rank: int, world_size: int) -> Call[S]:
    return step + 1, stage, rank, world_size


def _pickle_batch_fn(batch_fn: Callable[..., SceneBatch], must: bool) -> bytes | None:
    try:
        return pickle.dumps(batch_fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if must:
            raise UsageError(
                f"batch_fn cannot be sent to worker processes: {error}. Use a module-level function or an object with "
                '__call__ that can be pickled, or kind="threads"'
            ) from error
        logger.info("batches are prepared in threads: batch_fn cannot be sent to worker processes (%s)", error)
        return None


def _start(packed: bytes) -> None:
    """In a worker process: leave Ctrl-C to the parent, and end when the parent ends."""
    global _compute
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    torch.set_num_threads(1)
    _compute = pickle.loads(packed)


def _work(step: int, stage: object, rank: int, world_size: int) -> tuple[str | None, Values]:
    """In a worker process: compute a batch; return the name of the shared memory with its arrays, and all other values.

    Without shared memory the name is None and the arrays go through a pipe, which is several times slower."""
    assert _compute is not None
    batch = _compute(step, stage, rank, world_size)
    held = {field.name: getattr(batch, field.name) for field in fields(batch)}
    values: Values = {k: v.contiguous().numpy() if isinstance(v, torch.Tensor) else v for k, v in held.items()}
    arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
    memory = _memory(sum(_pad_size(v.nbytes) for v in arrays.values()))
    if memory is None:
        return None, values
    offset = 0
    for key, array in arrays.items():
        np.ndarray(array.shape, array.dtype, memory.buf, offset)[...] = array
        values[key] = _Place(offset, array.shape, array.dtype.str)
        offset += _pad_size(array.nbytes)
    memory.close()
    return memory.name, values


@dataclass(frozen=True)
class _Place:
    """The location of an array in shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


def _pad_size(size: int) -> int:
    return -(-size // 64) * 64


def _memory(size: int) -> SharedMemory | None:
    """Allocate shared memory; None if there is too little, as in many containers (writing past it is fatal)."""
    if not hasattr(os, "posix_fallocate"):
        return None
    memory = SharedMemory(f"lean3r_{os.getppid()}_{secrets.token_hex(6)}", create=True, size=max(1, size))
    try:
        os.posix_fallocate(memory._fd, 0, max(1, size))  # type: ignore[attr-defined]
    except OSError as error:
        logger.debug("no shared memory for a batch of %d bytes: %s", size, error)
        memory.close()
        memory.unlink()
        return None
    return memory


def _drop(future: Future[Result]) -> None:
    if not future.cancelled() and future.exception() is None and isinstance(result := future.result(), tuple):
        _unpack(*result)


def _unpack(name: str | None, values: Values) -> SceneBatch:
    """Copy the batch out of shared memory, then release the shared memory."""
    if name is not None:
        memory = SharedMemory(name)
        for key, place in values.items():
            if isinstance(place, _Place):
                values[key] = np.ndarray(place.shape, place.dtype, memory.buf, place.offset).copy()
        memory.close()
        memory.unlink()
    tensors: dict[str, Any] = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return SceneBatch(**tensors)
