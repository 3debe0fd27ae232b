"""The process that searches photos for features while torch and a network are loaded: the coarse features of all, then
the fine ones, a photo at a time. It keeps them (kept.py) until it is ended, and runs where no other one would."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.errors import InputError
from lean3r.inputs.decoding import own_pixel_limit
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.listing import Still, find_pictures
from lean3r.inputs.upright import decode_sized
from lean3r.processes import end_with_input, give_way
from lean3r.refine import features
from lean3r.refine.job import PICTURES, Group, Job, View
from lean3r.refine.kept import Kept
from lean3r.refine.pictures import Size, searched

MOST = 64  # photos; features take 1.3 MB of the disk each


def search(
    folder: Path, kept: Path, inputs: Sequence[str], max_views: int | None, side: int, most_features: int
) -> None:
    """Search the photos of these inputs, of which at most `max_views` are used, shrunk to `side` pixels, for at most so
    many features each. A folder that holds films is left to those that decode them."""
    chosen = find_pictures(inputs).choose(FrameChoice(max_views=max_views)).items
    photos = [photo for photo in chosen if isinstance(photo, Still)]
    if len(photos) < len(chosen):
        return
    jobs = [job for photo in photos[:MOST] if (job := job_of(photo, folder, kept, side, most_features)) is not None]
    for octave in (features.COARSE, features.FINE):
        for number, job in enumerate(jobs):
            memory, database = Kept(job, folder, octave), folder / f"{number}_{octave}.db"
            features.detect(job, folder, database, octave, memory)
            memory.keep(database)
            database.unlink()


def job_of(photo: Still, folder: Path, kept: Path, side: int, most_features: int) -> Job | None:
    """A job of one photo, with a camera of which only the size is right; None if it cannot be read."""
    try:
        with own_pixel_limit(), photo.open() as file:
            image, (width, height) = decode_sized(file, photo.name, side)
    except (InputError, OSError):
        return None
    if (grey := searched(image, Size(width, height), side)) is None:
        return None
    number = sum(1 for _ in folder.glob(f"{PICTURES}/*"))
    file = f"{number}/{number:06d}.bmp"
    (folder / PICTURES / str(number)).mkdir(parents=True)
    grey.save(folder / PICTURES / file)
    group = Group(*grey.size, "SIMPLE_PINHOLE", (max(grey.size), grey.width / 2, grey.height / 2))
    pose = np.eye(4)[None]
    view, held = View(0, 1.0, file), np.zeros(1, bool)
    return Job((view,), (group,), pose, np.ones((1, 4)), pose, held, None, most_features, 1, kept=kept)


def main() -> None:
    """Search what the command line names: a folder to work in, one to keep features in, and the rest as JSON."""
    end_with_input()
    give_way()
    pycolmap.logging.minloglevel = 3
    search(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))


if __name__ == "__main__":
    main()
