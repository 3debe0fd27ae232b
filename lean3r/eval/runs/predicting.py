"""Write the predictions of a program for the items of a benchmark, in processes that may die."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lean3r.errors import LeanError, UsageError
from lean3r.eval.protocols.items import Item
from lean3r.eval.runs.folder import FORMAT, ITEM, PREDICTIONS, is_done, write_json
from lean3r.processes import safely_started

_PART = ".part-"
Pictures = Sequence[np.ndarray]
Predict = Callable[[Pictures, tuple[str, ...], Path], Mapping[str, Any]]
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


class _Worker:
    def __init__(self, program: Program, number: int, workers: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.number = number
        self.task: Task | None = None
        self.is_ready = False
        self.process = context.Process(target=_serve, args=(theirs, program, number, workers), daemon=True)
        with safely_started():
            self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        """Let it work on a task."""
        self.task = task
        self.pipe.send(task)

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


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
    raises, and UsageError if the disk is full.
    """
    workers = [_Worker(program, number, processes) for number in range(processes)]
    try:
        waiting: Iterator[Task] | None = None
        finished = 0
        while workers:
            for pipe in wait([worker.pipe for worker in workers]):
                worker = next(each for each in workers if each.pipe is pipe)
                answer = _receive(worker)
                if isinstance(answer, BaseException):
                    raise answer
                if not worker.is_ready and answer is None:
                    raise LeanError(f"the program died while it was loaded ({_ending(worker.process.exitcode)})")
                if not worker.is_ready:
                    worker.is_ready = True
                    if waiting is None:
                        begin(answer)
                        open_tasks = [task for task in tasks if not is_done(task.place)]
                        finished = len(tasks) - len(open_tasks)
                        waiting = iter(open_tasks)
                        advanced(finished)
                else:
                    if answer is None:
                        assert worker.task is not None
                        record(worker.task, error=f"its process died ({_ending(worker.process.exitcode)})")
                    finished += 1
                    advanced(finished)
                assert waiting is not None
                task = next(waiting, None)
                if worker.process.exitcode is not None or not worker.process.is_alive():
                    workers.remove(worker)
                    worker.stop()
                    if task is not None:
                        worker = _Replacement(program, worker.number, processes, task).worker
                        workers.append(worker)
                elif task is None:
                    workers.remove(worker)
                    worker.stop()
                else:
                    worker.give(task)
    finally:
        for worker in workers:
            worker.stop()
