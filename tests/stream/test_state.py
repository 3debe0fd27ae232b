"""States of a stream: other streams begin with them, and pictures are located, without a trace in the stream itself."""

from __future__ import annotations

import gc
import importlib
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import lean3r
from lean3r.errors import UsageError
from lean3r.stream.engine import Estimate
from stream.walk import Knows, Looks, frame, walk

OPTIONS = lean3r.StreamOptions(window=8, overlap=3)


def places(estimates: list[Estimate]) -> np.ndarray:
    return np.stack([np.linalg.inv(each.cam_from_world)[:3, 3] for each in estimates])


def back(count: int) -> list[tuple[float, np.ndarray]]:
    """Another walk along a part of the same way, from its middle to the start."""
    return [(i / 10, frame((count - i) * 0.12)) for i in range(count)]


def test_a_stream_goes_on_with_another_source_in_the_same_world() -> None:
    first = lean3r.stream(Looks(), walk(60), options=OPTIONS, refine="off")
    old = list(first)
    scale = places(old)[30, 0] / (30 * 0.12)
    second = lean3r.stream(Looks(), back(40), options=OPTIONS, refine="off", state=first.state())
    new = [second.revised(each) for each in list(second)]
    assert [each.index for each in new] == list(range(60, 100))
    assert new[0].timestamp_s == pytest.approx(old[-1].timestamp_s + 1)
    assert second.figures["revisions"] > 0 and any("loop" in each.flags for each in new)
    assert np.allclose(places(new)[:, 0] / scale, 0.12 * np.arange(40, 0, -1), atol=0.3)
    assert first.figures["frames"] == 60 and second.figures["frames"] == 40


def test_a_stream_that_began_with_a_state_is_resumed_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("lean3r.stream.run"), "SAVING", 1e9)  # a checkpoint for every window
    first = lean3r.stream(Looks(), walk(30), options=OPTIONS, refine="off")
    list(first)

    def fork(name: str, *, resume: bool = False) -> Iterator[Estimate]:
        state, frames, out = first.state(), list(walk(70)), tmp_path / name
        return iter(lean3r.stream(Looks(), frames, out, options=OPTIONS, refine="off", state=state, resume=resume))

    whole = list(fork("whole"))
    part = fork("cut")
    assert [next(part).index for _ in range(35)] == list(range(30, 65))
    del part
    rest = list(fork("cut", resume=True))
    assert 30 < rest[0].index < 99 and rest[-1].timestamp_s == whole[-1].timestamp_s == pytest.approx(2.9 + 1 + 6.9)
    for name in ("trajectory_tum.txt", "frames.bin", "cameras.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "state", "more", "why"),
    [
        (Knows(), None, {}, "another model .model: looks there, knows now"),
        (Looks(), {}, {}, "that of no stream"),
        (Looks(), None, {"memory": "8GB"}, "leave out memory and window"),
        (Looks(), None, {"options": lean3r.StreamOptions(window=16)}, "8 keyframes in a window, which stay"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(model: Knows, state: object, more: dict[str, Any], why: str) -> None:
    first = lean3r.stream(Looks(), walk(9), options=OPTIONS, refine="off")
    list(first)
    with pytest.raises(UsageError, match=why):
        lean3r.stream(model, walk(9), refine="off", state=first.state() if state is None else state, **more)
    with pytest.raises(UsageError, match="iterated over once"):
        list(first)


def test_films_of_one_stream_are_joined_where_they_meet(tmp_path: Path) -> None:
    for name, frames in (("a.mkv", [image for _, image in walk(60)]), ("b.mkv", [image for _, image in back(40)])):
        with av.open(str(tmp_path / name), "w") as container:
            film = container.add_stream("ffv1", rate=10, width=160, height=112, pix_fmt="bgr0")
            for image in frames:
                container.mux(film.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(film.encode(None))
    stream = lean3r.stream(Looks(), [str(tmp_path / "a.mkv"), str(tmp_path / "b.mkv")], options=OPTIONS, refine="off")
    found = [stream.revised(each) for each in list(stream)]
    assert len(found) == 100 and stream.figures["revisions"] > 0
    assert found[60].window > found[59].window and any("loop" in each.flags for each in found)
    way = places(found)[:, 0]
    assert np.allclose(way[60:] / way[30] * 30 * 0.12, 0.12 * np.arange(40, 0, -1), atol=0.3)


def test_what_never_meets_is_lost() -> None:
    first = lean3r.stream(Looks(), walk(40), options=OPTIONS, refine="off")
    list(first)
    away = [(i / 10, frame(20 + i * 0.12)) for i in range(40)]
    second = lean3r.stream(Looks(), away, options=OPTIONS, refine="off", state=first.state())
    found = list(second)
    assert all("uncertain" in each.flags for each in found) and "lost" in found[0].flags
    assert second.figures["revisions"] == 0
    there, here = second.locate(frame(20 + 2.4)), second.locate(frame(2.4))
    assert there is not None and there.flags == {"apart", "lost", "uncertain"}, "in no world that others share"
    assert here is not None and not here.flags


def test_what_was_apart_is_certain_once_it_meets(tmp_path: Path) -> None:
    first = lean3r.stream(Looks(), walk(60), options=OPTIONS, refine="off")
    scale = places(list(first))[30, 0] / (30 * 0.12)
    nearer = [(i / 10, frame(15 - i * 0.12)) for i in range(100)]
    second = lean3r.stream(Looks(), nearer, tmp_path / "out", options=OPTIONS, refine="off", state=first.state())
    given = list(second)
    assert given[0].flags >= {"apart", "uncertain", "lost"}
    now = [second.revised(each) for each in given]
    assert not any(each.flags & {"apart", "uncertain", "lost"} for each in now)
    assert second.figures["uncertain"] == 0
    cameras = json.loads((tmp_path / "out" / "cameras.json").read_text())["views"]
    assert not any(view["uncertain"] for view in cameras)
    assert np.allclose(places(now)[:, 0] / scale, 15 - 0.12 * np.arange(100), atol=0.4)


def test_streams_with_one_state_are_the_same_and_leave_no_trace() -> None:
    def run(ask: bool) -> tuple[list[Estimate], list[np.ndarray]]:
        stream = lean3r.stream(Looks(), walk(60), options=OPTIONS, refine="off")
        found, forks = [], []
        for each in stream:
            found.append(each)
            if ask and each.index == 30:
                state = stream.state()
                for _ in range(2):
                    fork = lean3r.stream(Looks(), back(30), options=OPTIONS, refine="off", state=state)
                    forks.append(places(list(fork)))
                stream.locate(frame(2.0))
        return found, forks

    asked, forks = run(ask=True)
    plain, _ = run(ask=False)
    assert np.array_equal(*forks)
    assert all(np.array_equal(a.cam_from_world, b.cam_from_world) for a, b in zip(asked, plain, strict=True))


def test_a_picture_is_located_or_not_found() -> None:
    stream = lean3r.stream(Looks(), walk(60), options=OPTIONS, refine="off")
    assert stream.locate(frame(1.0)) is None
    with pytest.raises(UsageError, match="before its first frame"):
        stream.state()
    way = places(list(stream))
    for x_m in (1.0, 3.3, 5.0):
        found = stream.locate(frame(x_m))
        assert found is not None
        assert np.linalg.inv(found.cam_from_world)[0, 3] / way[30, 0] * 30 * 0.12 == pytest.approx(x_m, abs=0.1)
    assert stream.locate(frame(20.0)) is None
    assert stream.locate(np.zeros((112, 160, 3), np.uint8)) is None
    assert stream.figures["frames"] == 60


def test_frames_are_forgotten_without_a_garbage_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays are invisible to Python's collector, which thus runs seldom: what waits for it fills the memory."""
    monkeypatch.setattr(importlib.import_module("lean3r.stream.run"), "SAVING", 1e9)  # a checkpoint for every window
    alive: list[weakref.ref] = []

    def frames() -> Iterator[np.ndarray]:
        for _, image in walk(60):
            alive.append(weakref.ref(whole := image.copy()))
            yield whole

    gc.collect()
    gc.disable()
    try:
        most = 0
        for _ in lean3r.stream(Looks(), frames(), tmp_path / "out", options=OPTIONS, refine="off"):
            most = max(most, sum(each() is not None for each in alive))
    finally:
        gc.enable()
    assert OPTIONS.window is not None and 0 < most <= OPTIONS.window
