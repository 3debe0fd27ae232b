"""Features and matches of pictures that a later job will show, found in idle moments and kept for it.

A job has stages that keep one processor busy, and so have what follows it and, before the first one, loading torch and
a network. Meanwhile a process of the lowest priority searches the frames that wait (searcher.py), or the photos
(photo_searcher.py). Nothing depends on how far it comes: the job finds the rest itself.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lean3r.processes import python_command, with_threads_of_its_own
from lean3r.refine.job import PICTURES, Group, Job, View
from lean3r.refine.options import RefineOptions
from lean3r.refine.pictures import scale_of, size_of, write_originals
from lean3r.refine.sequence import pairs_along, sequences
from lean3r.scratch import temporary_folder

if TYPE_CHECKING:
    from lean3r.inputs.pictures import Pictures
    from lean3r.types import Source


class Ahead:
    """The `process` that works ahead, if there is one; and a folder in which what it finds in photos is `kept`."""

    def __init__(self) -> None:
        self.kept: Path | None = None
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
        self._start("searcher", str(folder))

    def begin_photos(self, inputs: Sequence[str], max_views: int | None, options: RefineOptions) -> None:
        """Search the photos of these inputs, of which at most `max_views` are used, and keep what is found in `kept`.
        This needs no torch."""
        wanted = {"inputs": list(inputs), "max_views": max_views, "side": options.side}
        wanted["most_features"] = options.features
        folder = self._folder.enter_context(temporary_folder("ahead"))
        self._start("photo_searcher", str(folder), str(self.kept), json.dumps(wanted))

    def _start(self, module: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            python_command(f"lean3r.refine.{module}", *arguments),
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


@contextmanager
def ahead_of_photos(inputs: Sequence[str], max_views: int | None, options: RefineOptions) -> Iterator[Ahead]:
    """Inside, photos are searched until `end`, and what was found is kept."""
    with ExitStack() as stack:
        ahead = Ahead()
        with suppress(OSError):  # a full disk: what is not found now is found later
            ahead.kept = stack.enter_context(temporary_folder("kept"))
            stack.callback(ahead.end)
            ahead.begin_photos(inputs, max_views, options)
        yield ahead


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
