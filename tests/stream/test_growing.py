"""Films that are still being written, and sources that are no files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
import pytest

import lean3r
from lean3r.errors import InputError
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.listing import find_pictures
from lean3r.stream import run as running
from stream.test_stream import SMALL, run, written
from stream.walk import Knows, walk


@pytest.fixture
def halves(tmp_path: Path) -> tuple[bytes, bytes]:
    """A film in two parts, as a recorder writes it: its length is not stated."""
    with av.open(str(tmp_path / "whole.mkv"), "w", options={"live": "1"}) as container:
        film = container.add_stream("ffv1", rate=10, width=160, height=112, pix_fmt="bgr0")
        for _, image in walk(90):
            container.mux(film.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(film.encode(None))
    content = (tmp_path / "whole.mkv").read_bytes()
    middle = 5 * len(content) // 9
    return content[:middle], content[middle:]


def test_a_film_that_is_still_written_says_so_and_goes_on_with_the_rest(
    halves: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    first, rest = halves
    path, out = tmp_path / "walk.mkv", tmp_path / "out"
    path.write_bytes(first)
    growing = lean3r.stream(Knows(), str(path), out, options=SMALL, refine="off")
    given = []
    for each in growing:
        if not given:
            with path.open("ab") as file:
                file.write(rest)
        given.append(each.index)
    assert len(given) < 60
    told = [reason for _, reason in skipped_by(out) if "has grown" in reason]
    assert len(told) == 1 and "run again with --resume" in told[0]
    assert growing.notes["films that are still being written"] == 1
    run(str(path), out, resume=True)
    run(str(path), tmp_path / "whole")
    assert written(out) == written(tmp_path / "whole")
    assert not [reason for _, reason in skipped_by(out) if "has grown" in reason]


def test_frames_are_chosen_from_what_there_is_of_a_growing_film(halves: tuple[bytes, bytes], tmp_path: Path) -> None:
    first, rest = halves
    path = tmp_path / "walk.mkv"
    path.write_bytes(first)
    listing = find_pictures([path])
    with path.open("ab") as file:
        file.write(rest)
    skipped = dict(listing.choose(FrameChoice()).skipped)
    assert "has grown" in skipped["walk.mkv"]


def test_a_pipe_is_refused_with_what_to_do(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "live.ts")
    with pytest.raises(InputError, match=r"a pipe or a device, which can be read only once: record it into a file"):
        find_pictures([tmp_path / "live.ts"])
    with pytest.raises(InputError, match="no such file or folder: -;"):
        find_pictures(["-"])


def skipped_by(out: Path) -> list[Any]:
    manifest = json.loads((out / "manifest.json").read_text())
    return [(each["name"], each["reason"]) for each in manifest["skipped"]]
