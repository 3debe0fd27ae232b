"""The process that works on jobs, one after another, with its model kept; and its handle in the service."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from lean3r.errors import LeanError
from lean3r.pipeline.observer import Observer
from lean3r.processes import end_with_parent, family_memory_mb, memory_bytes, safely_started
from lean3r.serve.logs import Scrubber, explain

EVERY = 0.1  # seconds between two reports of progress within a stage
SHARE = 0.8  # of the machine's memory, for all workers, if no limit is given
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Task:
    """One start of a job: where its input is, the names of its files there, its options as they were given, and the
    new folder for its result."""

    job: str
    input: Path
    names: tuple[str, ...]
    options: Mapping[str, Any]
    out: Path


class Runner(Protocol):
    """What works on jobs: made once in each worker, from a device and the options for all jobs, then called for each.
    Its answer is the summary of the job, JSON-ready."""

    device: str

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None: ...

    def __call__(self, task: Task, observer: Observer) -> dict[str, Any]:
        """Work on one job and write its files."""
        ...


class _Reporter(Observer):
    """Sends what a run reports to the service."""

    def __init__(self, send: Any) -> None:
        super().__init__()
        self._send, self._last = send, 0.0

    def advanced(self, name: str, done: int, total: int) -> None:
        """Not more often than is shown."""
        now = time.monotonic()
        if done in (0, total) or now - self._last > EVERY:
            self._last = now
            self._send("progress", {"stage": name, "done": done, "total": total})

    def read(self, used: Any, skipped: Any) -> None:
        """How many pictures there are."""
        self._send("progress", {"views": len(used), "skipped": len(skipped)})

    def fitted(self, text: str) -> None:
        """What the memory budget changed."""
        self._send("log", ("info", text))


class _Messages(logging.Handler):
    """Sends log messages of the library to the service."""

    def __init__(self, send: Any) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a message is never worth a job
            self._send("log", (record.levelname.lower(), record.getMessage()))


def work(pipe: Connection, runner: str, device: str, settings: Mapping[str, Any]) -> None:
    """Of the worker process: answer each Task that comes through the pipe."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # the service ends it, after it has noted what becomes of the job
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # standard output is the service's
    sending = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with sending:
            pipe.send((kind, value))

    answer(pipe.recv, send, runner, device, settings)


def answer(
    receive: Callable[[], Task],
    send: Callable[[str, Any], None],
    runner: str,
    device: str,
    settings: Mapping[str, Any],
) -> None:
    """Make the runner ("module:name"), then answer each Task that comes, until EOFError. Any thread may `send`."""
    logger = logging.getLogger("lean3r")
    logger.addHandler(_Messages(send))
    logger.propagate = False
    try:
        module, _, name = runner.partition(":")
        run: Runner = getattr(importlib.import_module(module), name)(device, settings)
    except LeanError as error:
        send("broken", (str(error), error.exit_code))
        return
    except Exception as error:
        traceback.print_exc()
        send("broken", (f"the worker cannot start: {type(error).__name__}: {error}", LeanError.exit_code))
        return
    send("ready", run.device)
    while True:
        try:
            task = receive()
        except EOFError:
            return
        try:
            send("done", run(task, _Reporter(send)))
        except Exception as error:
            scrub = Scrubber([task.out, task.input, task.input.parents[2]])
            if not isinstance(error, LeanError):
                send("log", ("error", traceback.format_exc()))
            send("failed", scrub(explain(error)))


class Hand(Protocol):
    """A worker, from outside. Its methods raise EOFError or OSError if it is gone."""

    @property
    def pid(self) -> int | None:
        """Of its process, if that is known."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        ...

    @property
    def exit_code(self) -> int | None:
        """How it ended; minus the number of a signal; None if that is not known."""
        ...

    def send(self, task: Task) -> None:
        """Give it a job."""
        ...

    def receive(self, seconds: float) -> tuple[str, Any] | None:
        """Its next message; None if there is none in so many seconds."""
        ...

    def memory_mb(self) -> float | None:
        """What it and its own processes take now; None where that cannot be asked."""
        ...

    def end(self) -> None:
        """End it at once; its own processes end with it."""
        ...


class Crew(Protocol):
    """The workers of a service."""

    @property
    def names(self) -> Sequence[str]:
        """Of all, to start them by."""
        ...

    @property
    def share_mb(self) -> float | None:
        """What each may take of the main memory if the service sets no limit; None: as much as there is."""
        ...

    def start(self, name: str) -> Hand:
        """A new worker; it says "ready", or "broken" and why."""
        ...


class Processes:
    """A Crew: one process of this machine for each device."""

    def __init__(self, runner: str, settings: Mapping[str, Any], devices: Sequence[str]) -> None:
        self.runner, self.settings, self.names = runner, settings, devices
        whole = memory_bytes()
        self.share_mb = None if whole is None else SHARE * whole / 1e6 / len(devices)

    def start(self, name: str) -> Hand:
        """See Crew."""
        return Worker(self.runner, name, self.settings)


class Worker:
    """A Hand: a process of this machine."""

    def __init__(self, runner: str, device: str, settings: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, runner, device, dict(settings))
        # Not a daemon: the pipeline starts processes of its own. It ends with this one all the same (end_with_parent).
        self._process = context.Process(target=work, args=arguments, name=f"lean3r-worker-{device}", daemon=False)
        with safely_started():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    @property
    def exit_code(self) -> int | None:
        """How it ended; minus the number of a signal."""
        return self._process.exitcode

    def send(self, task: Task) -> None:
        """Give it a job; OSError if it is gone."""
        self._pipe.send(task)

    def receive(self, seconds: float) -> tuple[str, Any] | None:
        """Its next message; None if there is none in so many seconds, EOFError or OSError if it is gone."""
        return self._pipe.recv() if self._pipe.poll(seconds) else None

    def memory_mb(self) -> float | None:
        """What it and its own processes take now; None where that cannot be asked."""
        return None if self.pid is None else family_memory_mb(self.pid)

    def end(self) -> None:
        """End it at once; its own processes end with it."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.join(_END_SECONDS)
        self._pipe.close()
