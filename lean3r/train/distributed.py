"""Groups of training processes: launch, ranks, averaging. Only this module reads the variables of launchers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from lean3r.errors import LeanError, UsageError
from lean3r.processes import safely_started
from lean3r.scratch import temporary_folder

T = TypeVar("T")
P = ParamSpec("P")

# Rank 0 validates while the others wait inside an all-reduce.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The rank of this process in a group of `size` processes; only rank 0 writes files."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """Collect a picklable value from every process, in rank order; every process receives the list."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """If any process raises a LeanError in the block, raise it on every process; all must enter the block."""
        problem: LeanError | None = None
        try:
            yield
        except LeanError as error:
            problem = error
        problems = [error for error in self.gather(problem) if error is not None]
        if problems:
            raise problem or problems[0]

    def broadcast_(self, model: nn.Module) -> None:
        """Copy the parameters and buffers of rank 0 to every process."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def current_world() -> World:
    """The group this process was started in; a world of one outside `launch` and torchrun."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def is_main_process() -> bool:
    """Whether this process writes files after the group has ended: rank 0 under torchrun, always true otherwise."""
    return os.environ.get("RANK", "0") == "0"


def processes_of(processes: int) -> int:
    """How many processes `launch(processes, ...)` runs on; under torchrun, torchrun's number."""
    return int(os.environ["WORLD_SIZE"]) if _by_torchrun() else processes


def _by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, fn: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run fn(*args, **options) in `processes` local processes that form one group; return the result of rank 0.

    `fn`, its arguments and its result must be picklable if processes > 1. Under torchrun, the group is torchrun's and
    `processes` is ignored. SIGINT and SIGTERM are forwarded to all processes; `fit` then stops at the end of the
    current step. A LeanError raised in any process is raised here unchanged.
    """
    if processes < 1:
        raise UsageError(f"cannot start {processes} processes; expected 1 or more")
    if _by_torchrun():
        return _in_torchrun(partial(fn, *args, **options))
    if processes == 1:
        return fn(*args, **options)
    # Results and errors of the children, a few hundred bytes each: all must fit into the pipe until the children end.
    with safely_started():
        outcomes = get_context("spawn").SimpleQueue()
    with temporary_folder("group") as folder:
        arguments = (processes, str(folder), outcomes, partial(fn, *args, **options))
        with safely_started():
            context = start_processes(_child, arguments, processes, join=False, start_method="spawn")
        assert context is not None
        with _forward_signals(context.pids()) as signals:
            try:
                while not context.join():
                    pass
            except (ProcessRaisedException, ProcessExitedException):
                while not outcomes.empty():
                    if isinstance(error := outcomes.get(), LeanError):
                        raise error from None
                if signals:
                    # The signal came before `fit` could handle it, so no work is lost.
                    raise SystemExit(128 + signals[0]) from None
                raise
        result = outcomes.get()
        if signals and not result:  # the signal came just after `fit` had ended, so start nothing else
            raise SystemExit(128 + signals[0])
        return result


def _child(rank: int, size: int, folder: str, outcomes: SimpleQueue[T | LeanError], work: Callable[[], T]) -> None:
    # All processes run on this machine; gloo may fail to find an address unless the interface is named.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    share_cores(size)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", _TIMEOUT, world_size=size, rank=rank)
    try:
        result = work()
    except LeanError as error:
        outcomes.put(error)
        raise
    if rank == 0:
        outcomes.put(result)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Library threads that still run sometimes abort a normal exit.
    os._exit(0)


def _in_torchrun(work: Callable[[], T]) -> T:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    else:
        share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        return work()
    finally:
        dist.destroy_process_group()


def share_cores(processes: int) -> None:
    """Limit torch to this process's share of the cores; never raise its number of threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores // processes)))


@contextlib.contextmanager
def _forward_signals(pids: Sequence[int | None]) -> Iterator[list[int]]:
    caught: list[int] = []

    def forward(number: int, _frame: object) -> None:
        caught.append(number)
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals(list[int]):
    """Numbers of the signals received."""

    def __init__(self) -> None:
        super().__init__()
        self._interrupts = False

    def note(self, number: int, _frame: object) -> None:
        """The handler of a signal."""
        self.append(number)
        if self._interrupts:
            self._interrupts = False
            raise _Interrupted

    def unless_any(self, work: Callable[[], T]) -> T | None:
        """Return work(), or None if a signal came before; a signal during the call ends it at once and gives None."""
        try:
            try:
                self._interrupts = True
                return None if self else work()
            finally:
                self._interrupts = False
        except _Interrupted:
            return None


class _Interrupted(BaseException):
    """Raised by a signal to end `unless_any`."""


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopSignals]:
    """Within the block, SIGINT and SIGTERM only append their number to the yielded list.

    Outside the main thread, where Python allows no handlers, the list stays empty.
    """
    caught = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {n: signal.signal(n, caught.note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
