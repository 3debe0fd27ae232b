"""A model by one method, made in a process of its own while the refining process makes another.

Threads of one process would do, but the library's mappers share more than they say: side by side they gave another
model in one of forty runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lean3r.colmap_library import pycolmap
from lean3r.processes import end_with_input, python_command
from lean3r.refine import adjust
from lean3r.refine.job import Job

MODEL = "incremental-polished"


@contextmanager
def incremental_aside(
    job: Job, folder: Path, database: Path
) -> Iterator[Callable[[adjust.Mapper], pycolmap.Reconstruction | None]]:
    """Begin the incremental model of a job in another process; inside, the function that is given waits for it, and
    returns it polished. It is ended at the end, and when this process ends."""
    job.write(folder)
    command = python_command("lean3r.refine.aside", str(folder), str(database))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def wait(mapper: adjust.Mapper) -> pycolmap.Reconstruction | None:
        if code := process.wait():
            raise RuntimeError(f"the process of the incremental mapper ended with exit code {code}")
        if not (folder / MODEL).is_dir():
            return None
        model = pycolmap.Reconstruction(folder / MODEL)
        model.load(mapper.cache)  # the views that it lacks
        return model

    try:
        yield wait
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    """Make the model of the job in a folder, from a database: both are named on the command line."""
    end_with_input()
    pycolmap.logging.minloglevel = 3
    folder, database = map(Path, sys.argv[1:3])
    job = Job.read(folder)
    model = adjust.incremental_model(job, folder, database)
    if model is None:
        return
    adjust.restore_known(job, model)
    model = adjust.Mapper(job, database).polish(model)
    (folder / MODEL).mkdir()
    model.write(folder / MODEL)


if __name__ == "__main__":
    main()
