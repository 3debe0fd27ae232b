"""Write the predictions of a program for the items of a benchmark, in processes that may die."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lean3r.errors import LeanError
from lean3r.eval.protocols.items import Item
from lean3r.eval.runs.folder import FORMAT, ITEM, PREDICTIONS, hash_of, is_done, write_json
from lean3r.processes import end_with_parent, safely_started
from lean3r.scratch import DISK_FULL

_PART = ".part-"
Predict = Callable[[Sequence[np.ndarray], tuple[str, ...], Path], Mapping[str, Any]]
"""predict(pictures [H, W, 3] uint8, names, folder) writes predictions.npz into the folder and returns its costs."""


class Program(Protocol):
    """What is evaluated; it is sent to the processes, so it holds no weights."""

    def start(self, worker: int, workers: int) -> tuple[Predict, dict[str, Any]]:
        """Load it for one of `workers` processes; return how to run it, and its description for run.json."""
        ...


@dataclass(frozen=True)
class Task:
    """An item and the folder of its predictions."""

    item: Item
    place: Path


def predict_all(
    program: Program,
    tasks: Sequence[Task],
    *,
    processes: int,
    begin: Callable[[dict[str, Any]], None],
    advanced: Callable[[int], None],
) -> None:
    """Run the program on all tasks that are not done yet; what it cannot do is recorded in the item's item.json.

    `begin` gets the description of the program once it is loaded, before anything is written; `advanced` the number of
    finished tasks. A process that dies is replaced, and its item recorded as failed. Raises what loading the program
    raises, and OSError if the disk is full.
    """
    team = _Team(program, processes)
    try:
        worker = team.start(0)
        begin(worker.description)
        todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        left = [task for task in tasks if not is_done(task.place)]
        for task in left:
            todo.put(task)
        count = min(processes, len(left))
        advanced(len(tasks) - len(left))

        def work(number: int) -> None:
            own = worker if number == 0 else None
            while not team.is_stopping:
                try:
                    task = todo.get_nowait()
                except queue.Empty:
                    return
                own = own or team.start(number)
                if not own.run(task):
                    own = None
                advanced(len(tasks) - todo.qsize() - team.busy())

        with ThreadPoolExecutor(max(count, 1)) as pool:
            try:
                jobs = [pool.submit(work, number) for number in range(count)]
                for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                    job.result()
            finally:
                team.stop()
    finally:
        team.stop()


class _Team:
    """The living processes of a run."""

    def __init__(self, program: Program, processes: int):
        self.program, self.processes = program, processes
        self.is_stopping = False
        self.workers: dict[int, _Worker] = {}

    def start(self, number: int) -> _Worker:
        """A process with the program loaded; raises what loading raises."""
        worker = self.workers[number] = _Worker(self, number)
        worker.load()
        return worker

    def busy(self) -> int:
        """Number of processes at work."""
        return sum(worker.is_busy for worker in self.workers.values())

    def stop(self) -> None:
        """End all processes."""
        self.is_stopping = True
        for worker in self.workers.values():
            worker.process.terminate()
        for worker in self.workers.values():
            worker.process.join()


class _Worker:
    def __init__(self, team: _Team, number: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.team, self.is_busy = team, False
        self.process = context.Process(target=_serve, args=(theirs, team.program, number, team.processes), daemon=True)
        with safely_started():
            self.process.start()
        theirs.close()

    def load(self) -> None:
        """Wait until the program is loaded."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise LeanError(f"the program died while it was loaded ({_ending(self.process)})") from None
        if isinstance(answer, Exception):
            raise answer
        self.description: dict[str, Any] = answer

    def run(self, task: Task) -> bool:
        """Work on a task, and whether the process still lives; OSError if the disk is full."""
        self.is_busy = True
        try:
            self.pipe.send(task)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            if not self.team.is_stopping:
                _record(task, error=f"its process died ({_ending(self.process)})")
            return False
        finally:
            self.is_busy = False
        if isinstance(answer, Exception):
            raise answer
        return True


def _ending(process: Any) -> str:
    code = process.exitcode
    return f"signal {-code}, perhaps too little memory" if code is not None and code < 0 else f"exit code {code}"


def _serve(pipe: Connection, program: Program, number: int, workers: int) -> None:
    """What a process does: load the program, then tasks until it is stopped, or its parent is gone."""
    end_with_parent()
    try:
        predict, description = program.start(number, workers)
        pipe.send(description)
    except Exception as error:
        pipe.send(error if isinstance(error, LeanError) else LeanError(f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        try:
            _predict_one(predict, task)
            pipe.send(None)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            pipe.send(OSError(error.errno, error.strerror, error.filename or str(task.place)))


def _predict_one(predict: Predict, task: Task) -> None:
    """Write the predictions of an item, or why there are none."""
    task.place.mkdir(parents=True, exist_ok=True)
    for left in task.place.glob(f"{_PART}*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        start = time.perf_counter()
        pictures = [view.image for view in task.item.read()]
        digest = hash_of(task.item.names, pictures)
        reading = time.perf_counter() - start
        with tempfile.TemporaryDirectory(prefix=_PART, dir=task.place) as folder:
            costs = dict(predict(pictures, task.item.names, Path(folder)))
            os.replace(Path(folder) / PREDICTIONS, task.place / PREDICTIONS)
        costs["seconds"] = {"data": reading, **costs.get("seconds", {})}
        _record(task, pictures_sha256=digest, **costs)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        kind = "" if isinstance(error, LeanError) else f"{type(error).__name__}: "
        text = str(error).strip() or "no message"
        _record(task, error=f"{kind}{text}")


def _record(task: Task, *, error: str | None = None, **more: Any) -> None:
    task.place.mkdir(parents=True, exist_ok=True)
    if error is not None:
        (task.place / PREDICTIONS).unlink(missing_ok=True)
    record = {"format": FORMAT, "id": task.item.id, "views": list(task.item.names), "error": error}
    write_json(task.place / ITEM, record | more)
