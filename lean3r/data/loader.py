"""Batches computed ahead in other processes or threads, handed over as if they were computed when asked for."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from types import TracebackType
from typing import Any, Literal

import torch

from lean3r.data.base import SceneBatch
from lean3r.errors import LeanError, UsageError

logger = logging.getLogger("lean3r")

BatchFn = Callable[[int, Any, int, int], SceneBatch]
_compute: BatchFn | None = None  # in a worker process: what it computes


class Prefetch:
    """`batch_fn(step, stage, rank, world_size)` with the next `ahead` steps of each rank under way in the background.

    A context manager, called like `batch_fn`, which has to be a pure function: what comes back is the same for any
    number of workers, whatever order it was finished in. An error is raised by the call for its step. `kind` is where
    batches are computed: "processes" (started afresh, so `batch_fn` must be picklable and scripts need the usual
    `if __name__ == "__main__"`), "threads", or "auto", processes where `batch_fn` can be pickled. `stage_at(step)`
    tells the stage of a later step, None past the end; without it, stages are taken to go on, and the first batch of
    another one is computed when it is asked for. With 0 workers nothing is computed ahead.
    """

    def __init__(
        self,
        batch_fn: BatchFn,
        workers: int,
        ahead: int = 2,
        *,
        kind: Literal["auto", "processes", "threads"] = "auto",
        stage_at: Callable[[int], Any] | None = None,
    ) -> None:
        if workers < 0 or ahead < 1:
            raise UsageError(f"loading ahead: {workers} workers, {ahead} steps ahead; expected 0 or more and 1 or more")
        self.batch_fn, self.workers, self.ahead, self.stage_at = batch_fn, workers, ahead, stage_at
        self._waiting: dict[tuple[int, int, int], tuple[Any, Future[Any]]] = {}
        self._pool: Executor | None = None
        packed = None if kind == "threads" or not workers else _packed(batch_fn, must=kind == "processes")
        if packed is not None:
            self._pool = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(packed,)
            )
        elif workers:
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
        self._in_processes = packed is not None

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, step: int, stage: Any, rank: int, world_size: int) -> SceneBatch:
        """The batch of a step; raises what `batch_fn` raised for it, LeanError when a worker process died."""
        if self._pool is None:
            return self.batch_fn(step, stage, rank, world_size)
        self._forget(step, rank, world_size)
        future = self._asked(step, stage, rank, world_size)
        for later in range(step + 1, step + 1 + self.ahead):
            following = stage if self.stage_at is None else self.stage_at(later)
            if following is not None:
                self._asked(later, following, rank, world_size)
        self._waiting.pop((step, rank, world_size))
        try:
            made = future.result()
        except BrokenProcessPool as error:
            self.close()
            raise LeanError(
                f"a process that prepares batches ended before step {step} was ready, perhaps for lack of memory; "
                "try fewer workers, or 0 to see its error"
            ) from error
        return _unpacked(made) if self._in_processes else made

    def _asked(self, step: int, stage: Any, rank: int, world_size: int) -> Future[Any]:
        """The future of a batch; started unless it is under way for this very stage."""
        key = (step, rank, world_size)
        known = self._waiting.get(key)
        if known is not None and known[0] == stage:
            return known[1]
        if known is not None:
            known[1].cancel()
        assert self._pool is not None
        work = _work if self._in_processes else self.batch_fn
        try:
            future = self._pool.submit(work, step, stage, rank, world_size)
        except RuntimeError as error:  # BrokenProcessPool is one; so is a pool that was shut down
            raise LeanError(f"no batch of step {step}: the processes that prepare batches have ended") from error
        self._waiting[key] = (stage, future)
        return future

    def _forget(self, step: int, rank: int, world_size: int) -> None:
        """Give up what is no longer ahead of this rank, after a jump."""
        span = range(step, step + self.ahead + 1)
        stale = [k for k in self._waiting if k[0] < step or (k[1:] == (rank, world_size) and k[0] not in span)]
        for key in stale:
            self._waiting.pop(key)[1].cancel()

    def close(self) -> None:
        """Give up what is under way and end the workers; waits for the batches that they are at."""
        for _, future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _packed(batch_fn: BatchFn, must: bool) -> bytes | None:
    try:
        return pickle.dumps(batch_fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if must:
            raise UsageError(
                f"batches cannot be prepared in other processes: {error}. Give a function of a module, or an object "
                'with __call__, whose parts can be pickled; or kind="threads"'
            ) from error
        logger.info("batches are prepared in threads: their function cannot be sent to a process (%s)", error)
        return None


def _start(packed: bytes) -> None:
    """In a worker process: Ctrl-C is the parent's business, and without a parent there is nothing to do."""
    global _compute
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _compute = pickle.loads(packed)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(step: int, stage: Any, rank: int, world_size: int) -> dict[str, Any]:
    """In a worker process: a batch as arrays. They go through a pipe, as containers may have little shared memory."""
    assert _compute is not None
    batch = _compute(step, stage, rank, world_size)
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {k: v.contiguous().numpy() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def _unpacked(values: dict[str, Any]) -> SceneBatch:
    tensors: dict[str, Any] = {
        k: torch.from_numpy(v) if hasattr(v, "__array_interface__") else v for k, v in values.items()
    }
    return SceneBatch(**tensors)
