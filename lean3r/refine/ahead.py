"""Features and matches of frames that a later job will show, found in idle moments and kept for it.

A job has stages that keep one processor busy, and so has what follows it. Meanwhile a process of the lowest priority
(searcher.py) searches the frames that wait. Nothing depends on how far it comes: the job finds the rest itself.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from lean3r.inputs.pictures import Pictures
from lean3r.processes import python_command, with_threads_of_its_own
from lean3r.refine.job import PICTURES, Group, Job, View
from lean3r.refine.options import RefineOptions
from lean3r.refine.pictures import scale_of, size_of, write_originals
from lean3r.refine.sequence import pairs_along, sequences
from lean3r.scratch import temporary_folder
from lean3r.types import Source


class Ahead:
    """The `process` that works ahead, if there is one."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._folder, self._names = ExitStack(), ()

    def begin(self, sources: Sequence[Source], pictures: Pictures, options: RefineOptions) -> None:
        """Search these frames of a video, and keep what is found in `pictures.kept`; go on, if it does already."""
        names = tuple(source.name for source in sources)
        if len(names) < 2 or names == self._names or pictures.kept is None:
            return
        self.end()
        self._names = names
        folder = self._folder.enter_context(temporary_folder("ahead"))
        try:
            write_job(sources, pictures, options, folder)
        except OSError:  # a full disk: what is not found now is found later
            return
        self.process = subprocess.Popen(
            python_command("lean3r.refine.searcher", str(folder)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=with_threads_of_its_own(),
        )

    def end(self) -> None:
        """Stop, wherever it is."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            self.process.stdin.close()
        self.process, self._names = None, ()
        self._folder.close()


def write_job(sources: Sequence[Source], pictures: Pictures, options: RefineOptions, folder: Path) -> None:
    """A job of these frames in a folder, with cameras of which only the sizes are right."""
    scales = [scale_of(source, options.side) for source in sources]
    sizes = [size_of(source, scale) for source, scale in zip(sources, scales, strict=True)]
    groups = list(dict.fromkeys(sizes))
    files = [f"{groups.index(size)}/{view:06d}.bmp" for view, size in enumerate(sizes)]
    for number in range(len(groups)):
        (folder / PICTURES / str(number)).mkdir(parents=True)
    written = write_originals(sources, pictures, options.side, [folder / PICTURES / file for file in files])
    poses, runs = np.tile(np.eye(4), (len(sources), 1, 1)), sequences(sources)
    Job(
        tuple(
            View(groups.index(size), scale, file if is_there else None, source.timestamp_s)
            for size, scale, file, is_there, source in zip(sizes, scales, files, written, sources, strict=True)
        ),
        tuple(Group(*size, "SIMPLE_PINHOLE", (max(size), size[0] / 2, size[1] / 2)) for size in groups),
        poses,
        np.ones((len(sources), 4)),
        poses,
        np.zeros(len(sources), bool),
        pairs_along(runs),
        options.features,
        1,
        tuple(map(tuple, runs)),
        pictures.kept,
    ).write(folder)
