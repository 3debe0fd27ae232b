"""A model by one method, made in a process of its own while the refining process makes another.

Threads of one process would do, but the library's mappers share more than they say: side by side they gave another
model in one of forty runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lean3r.colmap_library import pycolmap
from lean3r.processes import end_with_input, python_command
from lean3r.refine import adjust, matching
from lean3r.refine.built import Built
from lean3r.refine.job import Job
from lean3r.refine.settle import SETTLING, most_again, settled_once

MODEL = "aside"


@dataclass
class Aside:
    """The incremental model of a job, which another process makes, and then settles (settle.py) without being asked:
    how often it is asked depends on the model that is made meanwhile."""

    job: Job
    matches: matching.Matches
    mapper: adjust.Mapper
    folder: Path
    process: subprocess.Popen[str]
    steps: int = field(default=0, init=False)

    def made(self) -> Built | None:
        """The model, polished."""
        has_model, _ = self._next()
        return self._built() if has_model else None

    def settled(self, built: Built, most: int) -> tuple[Built | None, int]:
        """What `settled_once` has for the model. That process knows what it had before, and how many frames it may
        register again."""
        del built, most
        is_better, left = self._next()
        return (self._built() if is_better else None), left

    def _next(self) -> tuple[bool, int]:
        """Whether its next step has a model, and the frames that it may register again after that."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the incremental mapper ended with exit code {self.process.wait()}")
        self.steps += 1
        has_model, left = json.loads(line)
        return has_model, left

    def _built(self) -> Built | None:
        return Built.of(self.job, self.matches, read(self.mapper, self.folder, self.steps - 1), False)


@contextmanager
def incremental_aside(
    job: Job, matches: matching.Matches, mapper: adjust.Mapper, folder: Path, database: Path
) -> Iterator[Aside]:
    """Begin the incremental model of a job in another process. It is ended at the end, and when this process ends."""
    job.write(folder)
    command = python_command("lean3r.refine.aside", str(folder), str(database))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Aside(job, matches, mapper, folder, process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def read(mapper: adjust.Mapper, folder: Path, step: int) -> pycolmap.Reconstruction:
    """The model that a step left in a folder, with the views that it lacks."""
    model = pycolmap.Reconstruction(folder / f"{MODEL}{step}")
    model.load(mapper.cache)
    return model


def steps(job: Job, folder: Path, database: Path) -> Iterator[tuple[pycolmap.Reconstruction | None, int]]:
    """The incremental model, if there is one, and what settles it, step by step; with the frames that may be registered
    again after each."""
    model = adjust.incremental_model(job, folder, database)
    if model is None:
        yield None, 0
        return
    adjust.restore_known(job, model)
    mapper = adjust.Mapper(job, database)
    left = most_again(job)
    yield mapper.polish(model), left
    matches = matching.read_matches(job, database)
    built = Built.of(job, matches, read(mapper, folder, 0), False)
    for _ in range(SETTLING):
        if built is None or not left:
            return
        better, left = settled_once(job, matches, mapper, built, left)
        built = better or built
        yield None if better is None else better.model, left


def main() -> None:
    """Make the model of the job in a folder, from a database: both are named on the command line."""
    end_with_input()
    pycolmap.logging.minloglevel = 3
    folder, database = map(Path, sys.argv[1:3])
    for step, (model, left) in enumerate(steps(Job.read(folder), folder, database)):
        if model is not None:
            (folder / f"{MODEL}{step}").mkdir()
            model.write(folder / f"{MODEL}{step}")
        print(json.dumps([model is not None, left]), flush=True)


if __name__ == "__main__":
    main()
