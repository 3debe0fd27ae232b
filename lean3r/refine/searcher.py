"""The process that searches frames for features ahead of their job: a few frames at a time, which it keeps (kept.py),
until it is ended. It runs where no other one would."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from lean3r.colmap_library import pycolmap
from lean3r.processes import end_with_input, give_memory_back, give_way
from lean3r.refine import features, matching
from lean3r.refine.job import Job
from lean3r.refine.sequence import AHEAD, pairs_along

BATCH = 4  # pictures: at most the work on so many is lost when the process is ended


def part_of(job: Job, first: int, end: int) -> Job:
    """The same job of some consecutive views alone."""
    within = [[view - first for view in run if first <= view < end] for run in job.sequences]
    runs = tuple(tuple(run) for run in within if len(run) > 1)
    part = slice(first, end)
    return replace(
        job,
        views=job.views[part],
        cam_from_world=job.cam_from_world[part],
        pinholes=job.pinholes[part],
        start=job.start[part],
        held=job.held[part],
        pairs=pairs_along(runs),
        sequences=runs,
    )


def main() -> None:
    """Search the frames of the job in the folder named on the command line."""
    end_with_input()
    give_way()
    pycolmap.logging.minloglevel = 3
    folder = Path(sys.argv[1])
    job = Job.read(folder)
    octave = features.octaves(job)[0]
    for start in range(0, len(job.views), BATCH):
        part = part_of(job, max(0, start - AHEAD[-1]), start + BATCH)
        matching.find(part, folder, folder / f"{start}.db", octave, loops=False)
        give_memory_back()


if __name__ == "__main__":
    main()
