"""Frames that are looked at before their turn change nothing: not the estimates, not what is resumed, not an error."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import lean3r
from lean3r import processes
from lean3r.errors import InputError, OutOfMemoryError
from lean3r.stream.engine import Estimate, Frame
from lean3r.stream.looks import Looks
from lean3r.stream.pace import Early
from lean3r.stream.solver import Solver
from lean3r.stream.windows import WindowEngine
from lean3r.types import Prediction, Views
from stream.walk import Knows, frame, walk

OPTIONS = lean3r.StreamOptions(window=8, overlap=3)


class Waits(Knows):
    """Waits for another process, as refinement does."""

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """See Knows."""
        processes.wait(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"]), 60)
        return super().forward(views, reference)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two films of one walk each; the second one is no continuation of the first."""
    folder = tmp_path_factory.mktemp("films")
    for name, count in (("a.mkv", 70), ("b.mkv", 40)):
        with av.open(str(folder / name), "w") as container:
            film = container.add_stream("ffv1", rate=10, width=160, height=112, pix_fmt="bgr0")
            for _, image in walk(count):
                container.mux(film.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(film.encode(None))
    return [str(folder / "a.mkv"), str(folder / "b.mkv")]


def ahead(stream: lean3r.stream.run.Stream) -> int:
    assert isinstance(stream.engine, WindowEngine)
    return len(stream.engine._ahead)


def assert_same(found: list[Estimate], plain: list[Estimate]) -> None:
    assert [each.index for each in found] == [each.index for each in plain]
    for each, other in zip(found, plain, strict=True):
        assert np.array_equal(each.cam_from_world, other.cam_from_world)
        assert np.array_equal(each.intrinsics, other.intrinsics) and each.flags == other.flags


def test_what_is_read_ahead_changes_no_estimate(films: list[str]) -> None:
    plain = list(lean3r.stream(Knows(), films, options=OPTIONS, refine="off"))
    stream = lean3r.stream(Waits(), films, options=OPTIONS, refine="off")
    found, most = [], 0
    for each in stream:
        found.append(each)
        most = max(most, ahead(stream))
    assert most > 5 and len(found) == 110
    assert_same(found, plain)
    once = lean3r.stream(Waits(), walk(40), options=OPTIONS, refine="off")  # nobody knows what it costs to ask for more
    assert not any(ahead(once) for _ in once)


def test_a_stream_that_had_read_ahead_is_resumed_with_the_same_result(
    films: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("lean3r.stream.run"), "SAVING", 1e9)  # a checkpoint for every window
    list(lean3r.stream(Knows(), films, tmp_path / "whole", options=OPTIONS, refine="off"))
    stream = lean3r.stream(Waits(), films, tmp_path / "out", options=OPTIONS, refine="off")
    estimates = iter(stream)
    given = next(each for each in estimates if each.index > 30 and ahead(stream))
    assert isinstance(estimates, Iterator)
    estimates.close()  # type: ignore[attr-defined]
    rest = lean3r.stream(Knows(), films, tmp_path / "out", options=OPTIONS, refine="off", resume=True)
    assert next(iter(rest)).index <= given.index + 30
    rest = lean3r.stream(Waits(), films, tmp_path / "out", options=OPTIONS, refine="off", resume=True)
    list(rest)
    for name in ("trajectory_tum.txt", "frames.bin", "cameras.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_error_waits_for_its_turn() -> None:
    def torn() -> Iterator[Frame]:
        for index in range(3):
            yield Frame(index, index / 10, np.zeros((2, 2, 3), np.uint8))
        raise InputError("torn")

    early, given = Early(torn()), []
    assert next(early).index == 0
    assert early.give(given.append) and early.give(given.append) and not early.give(given.append)
    assert [frame.index for frame in given] == [1, 2]
    with pytest.raises(InputError, match="torn"):
        next(early)
    assert not Early([]).give(given.append) and not list(Early([]))


def test_a_window_may_fail_at_the_first_of_two_keyframes_that_are_chosen_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A jump behind a sharper frame: both are keyframes, as soon as the second one is seen."""
    places = np.cumsum([0.05 if index % 9 else 0.9 for index in range(60)])
    film = [(index / 10, frame(float(x_m))) for index, x_m in enumerate(places)]
    looks = Looks(lean3r.StreamOptions().keyframe_step)
    chosen = [looks.at(Frame(index, *each)).chosen for index, each in enumerate(film)]
    first, second = next([keyframe.index for keyframe in each] for each in chosen if len(each) > 1)

    class There(Knows):
        def place(self, timestamp_s: float | None) -> float:
            return float(places[round(10 * (timestamp_s or 0.0))])

    run = Solver._run

    def fails(solver: Solver, pictures: Any, *more: Any) -> Any:
        if pictures.keyframes[-1].index == first:
            raise OutOfMemoryError("no memory for this window")
        return run(solver, pictures, *more)

    monkeypatch.setattr(Solver, "_run", fails)
    found = list(lean3r.stream(There(), film, options=lean3r.StreamOptions(window=5, overlap=2), refine="off"))
    assert "no memory for this window" in caplog.text
    assert [each.index for each in found] == list(range(60))
    assert "keyframe" in found[second].flags and "keyframe" not in found[first].flags
