"""Processes that train together: start them, name them, average over them. The one reader of launcher variables."""

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
    """This process among `size` equal ones; rank 0 alone writes files."""

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
        """A picklable value of every process, in order of rank, on every process."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise on every process the LeanError that one of them raises within the block; all must enter it."""
        problem: LeanError | None = None
        try:
            yield
        except LeanError as error:
            problem = error
        problems = [found for found in self.gather(problem) if found is not None]
        if problems:
            raise problem or problems[0]

    def broadcast_(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of rank 0."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


def current_world() -> World:
    """The group this process was started in; a world of one outside `launch` and torchrun."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def is_main_process() -> bool:
    """Whether this process is the one of torchrun's that writes what comes after the group has ended; true outside."""
    return os.environ.get("RANK", "0") == "0"


def processes_of(wanted: int) -> int:
    """How many processes `launch(wanted, ...)` makes: torchrun's number where torchrun started this one."""
    return int(os.environ["WORLD_SIZE"]) if _by_torchrun() else wanted


def _by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, fn: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run fn(*args, **options) in `processes` local processes that form one group; return what rank 0 returned.

    `fn`, what it is given and the result must be picklable when processes > 1. Started by torchrun, the group is
    torchrun's and `processes` is ignored. SIGINT and SIGTERM are passed on to all processes, which `fit`
    answers by leaving at the end of the step. A LeanError of any process is raised here as itself.
    """
    if processes < 1:
        raise UsageError(f"cannot start {processes} processes; expected 1 or more")
    if _by_torchrun():
        return _in_torchrun(partial(fn, *args, **options))
    if processes == 1:
        return fn(*args, **options)
    # What the children say, each a few hundred bytes: it must fit into the queue's pipe until they have ended.
    with safely_started():
        said = get_context("spawn").SimpleQueue()
    with temporary_folder("group") as folder:
        arguments = (processes, str(folder), said, partial(fn, *args, **options))
        with safely_started():
            context = start_processes(_child, arguments, processes, join=False, start_method="spawn")
        assert context is not None
        with _forward_signals(context.pids()) as signals:
            try:
                while not context.join():
                    pass
            except (ProcessRaisedException, ProcessExitedException):
                while not said.empty():
                    if isinstance(error := said.get(), LeanError):
                        raise error from None
                if signals:
                    # It came before `fit` was there to answer it: nothing was begun, nothing is lost.
                    raise SystemExit(128 + signals[0]) from None
                raise
        result = said.get()
        if signals and not result:  # it came when `fit` had just ended: what would follow is not begun
            raise SystemExit(128 + signals[0])
        return result


def _child(rank: int, size: int, folder: str, said: SimpleQueue[T | LeanError], work: Callable[[], T]) -> None:
    # The group lives on this machine: without a name for its own address gloo may fail to find one.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    share_cores(size)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", _TIMEOUT, world_size=size, rank=rank)
    try:
        result = work()
    except LeanError as error:
        said.put(error)
        raise
    if rank == 0:
        said.put(result)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the group's libraries that still run would abort an ordinary end now and then.
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
    """Limit torch to this process's share of the cores; never more threads than it had."""
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
    """Numbers of the signals that came."""

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
        """What `work` returns; None where a signal came before, or comes meanwhile, which ends it at once."""
        try:
            try:
                self._interrupts = True
                return None if self else work()
            finally:
                self._interrupts = False
        except _Interrupted:
            return None


class _Interrupted(BaseException):
    """Ends a block that a signal may end."""


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopSignals]:
    """Within the block SIGINT and SIGTERM only add their number to the list it gives.

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
