"""Workers on the machines of a Ray cluster. The jobs stay with the service; their files go through its folder, which
all machines see under the same path."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from lean3r.errors import UsageError
from lean3r.pipeline.cluster import ClusterOptions, connect
from lean3r.processes import family_memory_mb
from lean3r.serve.worker import Hand, Task, answer

END_SECONDS = 10.0


class Actors:
    """A Crew (worker.py): `count` workers, each a process on a machine that has room for it. UsageError if there is no
    cluster, or several devices are named."""

    share_mb = None  # the machines may differ, and Ray watches their memory

    def __init__(
        self, runner: str, settings: Mapping[str, Any], count: int, devices: Sequence[str], cluster: ClusterOptions
    ) -> None:
        if len(devices) != 1:
            raise UsageError("--devices names several; on a Ray cluster expected one, and --workers N of it.")
        self.names = tuple(f"worker {number + 1}" for number in range(count))
        self._ray = connect(cluster)
        self._make = self._ray.remote(max_restarts=0, max_task_retries=0, **cluster.resources)(Seat)
        self._arguments = (runner, devices[0], dict(settings))

    def start(self, name: str) -> Hand:
        """See Crew."""
        return Actor(self._ray, self._make.remote(*self._arguments))


class Seat:
    """On a machine of the cluster: the process of a worker, which Ray calls."""

    def __init__(self, runner: str, device: str, settings: Mapping[str, Any]) -> None:
        self._said: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        arguments = (self._receive, self._send, runner, device, settings)
        self._thread = threading.Thread(target=answer, args=arguments, daemon=True)
        self._thread.start()

    def _receive(self) -> Task:
        """The next task. A folder that this machine does not see is an error of the job, which says what to do."""
        while True:
            task = self._tasks.get()
            if task.input.is_dir():
                return task
            machine = os.uname().nodename
            self._send("failed", f"the machine {machine} does not see the folder of the service (--data)")

    def _send(self, kind: str, value: Any) -> None:
        self._said.put((kind, value))

    def hear(self, seconds: float) -> tuple[int, float | None, list[tuple[str, Any]]]:
        """Its process, the memory in MB that this takes, and what it has said, after at most so many seconds."""
        said = []
        with suppress(queue.Empty):
            said.append(self._said.get(timeout=max(seconds, 1e-3)))
            while True:
                said.append(self._said.get_nowait())
        if not said and not self._thread.is_alive():
            raise EOFError
        return os.getpid(), family_memory_mb(os.getpid()), said

    def tell(self, task: Task) -> None:
        """Give it a task."""
        self._tasks.put(task)


class Actor:
    """A Hand (worker.py): a Seat somewhere in the cluster. Its answers are asked for one at a time, and never waited
    for longer than the caller wants: the machine may be out of reach."""

    exit_code = None

    def __init__(self, ray: Any, seat: Any) -> None:
        self._ray, self._seat = ray, seat
        self._asked: Any = None
        self._said: deque[tuple[str, Any]] = deque()
        self._pid: int | None = None
        self._memory_mb: float | None = None
        self._is_lost = False

    @property
    def pid(self) -> int | None:
        """On its machine."""
        return self._pid

    @property
    def is_alive(self) -> bool:
        """As far as is known: that it is lost shows at the next question."""
        with suppress(EOFError):
            self._hear(0.0)
        return not self._is_lost

    def send(self, task: Task) -> None:
        """Give it a job."""
        if self._is_lost:
            raise EOFError
        self._seat.tell.remote(task)  # if it is lost, so is its next answer

    def receive(self, seconds: float) -> tuple[str, Any] | None:
        """Its next message; None if there is none in so many seconds."""
        if not self._said:
            self._hear(seconds)
        return self._said.popleft() if self._said else None

    def memory_mb(self) -> float | None:
        """What it took when it last answered."""
        return self._memory_mb

    def end(self) -> None:
        """End it, and wait until the cluster knows."""
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(self._seat)
        with suppress(EOFError):
            while not self._is_lost:
                self._hear(END_SECONDS)
                if self._asked is not None:
                    return  # out of reach

    def _hear(self, seconds: float) -> None:
        if self._is_lost:
            raise EOFError
        if self._asked is None:
            self._asked = self._seat.hear.remote(seconds)
        ready, _ = self._ray.wait([self._asked], timeout=seconds)
        if not ready:
            return
        self._asked = None
        try:
            self._pid, self._memory_mb, said = self._ray.get(ready[0])
            self._said.extend(said)
        except self._ray.exceptions.RayError as error:
            self._is_lost = True
            raise EOFError(f"the worker on the cluster is lost ({type(error).__name__})") from error
