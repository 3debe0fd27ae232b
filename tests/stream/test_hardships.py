"""Streams in trouble: sources too fast or standing still, ends by a signal, disks that fill, torn stores."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lean3r
from lean3r.cli.main import main
from lean3r.errors import InputError, OutOfMemoryError, UsageError
from lean3r.pipeline import load as loading
from lean3r.stream import frames as sources
from lean3r.stream import pace
from lean3r.stream import publish as publishing
from lean3r.stream import run as running
from lean3r.stream import store as stores
from lean3r.stream.pace import QUEUE
from lean3r.stream.publish import Publisher
from lean3r.stream.solver import Solver
from lean3r.stream.store import Store
from lean3r.stream.windows import WindowEngine
from stream.test_stream import SMALL, film, run, written
from stream.walk import Knows, frame, walk

SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
sys.path.insert(0, sys.argv[3])
import lean3r
from stream.walk import Knows
options = lean3r.StreamOptions(window=8, overlap=3)
for each in lean3r.stream(Knows(), sys.argv[1], sys.argv[2], options=options, refine="off"):
    if each.index == 37:
        print("begun", flush=True)
    if each.index >= 37:
        time.sleep(0.5)
"""


def test_a_fast_source_is_dropped_and_no_frame_waits_for_more_than_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the source is, at most QUEUE frames are taken between the arrival of one and its turn."""
    taken, arrived_at, waits = 0, {}, []
    live = pace.Live.__iter__

    def counted(self: pace.Live) -> Iterator[Any]:
        nonlocal taken
        for moment, each in live(self):
            taken += 1
            waits.append(taken - arrived_at[each.timestamp_s])
            yield moment, each

    def fast() -> Iterator[tuple[float, np.ndarray]]:
        for time_s, image in walk(1500, 0.02):
            arrived_at[time_s] = taken
            yield time_s, image

    monkeypatch.setattr(pace.Live, "__iter__", counted)
    options = lean3r.StreamOptions(window=8, overlap=3, drop="on")
    stream = lean3r.stream(Knows(), fast(), options=options, refine="off")
    found = list(stream)
    assert stream.dropped > 0 and len(found) + stream.dropped == 1500 == found[-1].index + 1
    assert stream.figures["dropped"] == stream.dropped and max(waits) <= QUEUE + 1
    way = np.stack([np.linalg.inv(each.cam_from_world)[0, 3] for each in found])
    assert np.allclose(way / way[-1], np.array([e.index for e in found]) / found[-1].index, atol=0.03)


def test_ctrl_c_keeps_a_result_and_the_stream_goes_on(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", 60)
    run(str(tmp_path / "walk.mkv"), tmp_path / "whole")
    arguments = [str(tmp_path / "walk.mkv"), str(tmp_path / "cut"), str(Path(__file__).parents[1])]
    with subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None and started.stdout.readline() == "begun\n"
        started.send_signal(signal.SIGINT)
        assert started.wait(60) != 0
    run(str(tmp_path / "walk.mkv"), tmp_path / "cut", resume=True)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


@pytest.mark.parametrize("is_torn", [False, True], ids=["left", "torn"])
def test_a_stream_that_is_left_or_whose_source_fails_keeps_what_was_given(is_torn: bool, tmp_path: Path) -> None:
    def torn() -> Iterator[tuple[float, np.ndarray]]:
        yield from walk(61)
        raise ConnectionError("gone")

    given = []
    with contextlib.suppress(ConnectionError):
        for each in lean3r.stream(Knows(), torn(), tmp_path / "out", options=SMALL, refine="off"):
            given.append(each.index)
            if not is_torn and each.index == 50:
                break
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not manifest["is_complete"] and manifest["stream"]["frames"] > given[-1]
    assert len(np.loadtxt(tmp_path / "out" / "trajectory_tum.txt")) == manifest["stream"]["frames"]


def test_a_film_that_has_grown_leaves_no_depth_of_the_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cameras of more keyframes, and moved by loops since, would lie beside depth of fewer."""

    class Grows(list):
        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()
            if len(self) == 80:
                raise KeyboardInterrupt

    def views(name: str) -> int:
        if name.endswith("npz"):
            return len(np.load(out / name)["names"])
        return len(json.loads((out / name).read_text())["views"])

    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    out, frames = tmp_path / "out", list(walk(90))
    run(Grows(frames[:40]), out)
    assert views("predictions.npz") == views("cameras.json")
    with pytest.raises(KeyboardInterrupt):
        run(Grows(frames[:80]), out, resume=True)
    assert not (out / "predictions.npz").exists()
    assert "predictions.npz" not in json.loads((out / "manifest.json").read_text())["files"]
    run(Grows(frames), out, resume=True)
    assert views("predictions.npz") == views("cameras.json")


def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut leaves a checkpoint of frames that are gone, and the stream cannot be resumed."""
    synced: dict[int, int] = {}  # inode -> bytes
    sync, pack, checkpoints = os.fsync, stores.pack, []

    def fsync(number: int) -> None:
        sync(number)
        synced[os.fstat(number).st_ino] = os.fstat(number).st_size

    def packed(state: dict[str, Any], path: Path) -> None:
        files = [path for path in (tmp_path / "keyframes").iterdir() if path.suffix == ".npz"]
        sizes = [path.stat().st_size for path in files] + state["lengths"]
        files += [tmp_path / name for name in ("frames.bin", "windows.jsonl", "names.txt")]
        checkpoints.append([synced.get(path.stat().st_ino) == size for path, size in zip(files, sizes, strict=True)])
        pack(state, path)

    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(stores, "pack", packed)
    run(walk(60), tmp_path)
    assert len(checkpoints) > 1 and all(map(all, checkpoints))


def test_ctrl_c_ends_the_stream_of_a_camera_in_good_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(pace.Live):
        def __iter__(self) -> Iterator[Any]:
            for number, each in enumerate(super().__iter__()):
                if number == 40:
                    raise KeyboardInterrupt
                yield each

    monkeypatch.setattr(sources, "_camera", lambda _: walk(50))
    monkeypatch.setattr(running, "Live", Stopped)
    found = run("camera:0", tmp_path / "out")
    assert [each.index for each in found] == list(range(40))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["is_complete"]
    with pytest.raises(UsageError, match="cannot be resumed"):
        run("camera:0", tmp_path / "out", resume=True)


def test_ctrl_c_in_the_last_window_keeps_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    film(tmp_path / "walk.mkv", 50)
    source, window, ends = str(tmp_path / "walk.mkv"), Solver.window, []
    run(source, tmp_path / "whole")
    last = len((tmp_path / "whole" / "windows.jsonl").read_text().splitlines())

    def interrupted(self: Solver, *args: Any, **more: Any) -> Any:
        ends.append(self)
        if len(ends) == last:
            raise KeyboardInterrupt
        return window(self, *args, **more)

    monkeypatch.setattr(Solver, "window", interrupted)
    monkeypatch.setattr(sources, "_camera", lambda _: walk(50))
    monkeypatch.setattr(loading, "load", lambda *_, **__: Knows())
    options = ["--window", "8", "--overlap", "3", "--refine", "off"]
    for given, name in ((source, "cut"), ("camera:0", "camera")):
        ends.clear()
        assert main(["stream", given, "-o", str(tmp_path / name), *options]) == 130
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert not manifest["is_complete"] and manifest["stream"]["frames"] > 20
        assert ("go on with --resume" in capsys.readouterr().err) == (given == source)
    run(source, tmp_path / "cut", resume=True)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_a_stream_that_cannot_start_deletes_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any) -> Any:
        raise OutOfMemoryError("smallest window")

    monkeypatch.setattr(WindowEngine, "fit", fit)
    film(tmp_path / "walk.mkv", 20)
    source, out = str(tmp_path / "walk.mkv"), tmp_path / "out"
    run(source, out)
    (out / "images").mkdir()
    Image.fromarray(frame(0.0)).save(out / "images" / "a.png")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for folder in (out, tmp_path / "new"):
        with pytest.raises(InputError, match="no such file"):
            run(str(tmp_path / "typo.mp4"), folder, overwrite=True)
        with pytest.raises(OutOfMemoryError):
            run(source, folder, overwrite=True, memory="1MB")
        assert run([], folder, overwrite=True) == []
    with pytest.raises(UsageError, match="which --overwrite would replace"):
        run([str(out / "images")], out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


def test_a_stream_without_a_result_can_be_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "CHECKPOINT_FRAMES", 1000)
    film(tmp_path / "walk.mkv", 40)
    source, out = str(tmp_path / "walk.mkv"), tmp_path / "out"
    run(source, tmp_path / "whole")
    with monkeypatch.context() as killed:
        killed.setattr(running.Stream, "_publish", lambda *_, **__: None)
        list(itertools.islice(lean3r.stream(Knows(), walk(60), out, options=SMALL, refine="off"), 20))
    assert not (out / "manifest.json").exists()
    (out / "keyframes" / "mine_0001.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run(source, out)
    run(source, out, overwrite=True)
    assert (out / "keyframes" / "mine_0001.txt").read_text() == "mine"
    (out / "keyframes" / "mine_0001.txt").unlink()
    assert written(out) == written(tmp_path / "whole")


def test_a_stream_killed_in_its_first_window_is_resumed(tmp_path: Path) -> None:
    """Only the lock was there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lean3r-lock").touch()
    assert len(run(list(walk(20)), tmp_path / "out", resume=True)) == 20


@pytest.mark.parametrize("what", [(Store, "save"), (Publisher, "_trajectories")], ids=["checkpoint", "result"])
def test_a_disk_that_fills_at_a_checkpoint_or_in_the_result(
    what: tuple[type, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "walk.mkv", 60)
    source = str(tmp_path / "walk.mkv")
    run(source, tmp_path / "whole")
    kind, name = what
    whole, calls = getattr(kind, name), []

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def sometimes(self: Any, *arguments: Any) -> Any:
        calls.append(name)
        if len(calls) < 2 and name == "save":
            return whole(self, *arguments)
        with monkeypatch.context() as patch:
            patch.setattr(stores, "pack", full)
            return whole(self, *arguments) if name == "save" else full()

    monkeypatch.setattr(running, "SAVING", 1e9)  # a checkpoint for every window, however slow the disk is
    monkeypatch.setattr(kind, name, sometimes)
    with pytest.raises(UsageError, match=r"disk .* is full.*--resume"):
        run(source, tmp_path / "cut")
    monkeypatch.setattr(kind, name, whole)
    run(source, tmp_path / "cut", resume=True)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_a_disk_that_fills_under_the_model_leaves_the_one_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one without points, or half a one."""
    run(walk(30), tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "sparse" / "0").iterdir()}
    assert len(before["points3D.bin"]) > 1000

    def full(_: Any) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publishing, "_points", full)
    with pytest.raises(UsageError, match="is full"):
        run(walk(30), tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "sparse" / "0").iterdir()} == before


def test_a_stream_of_one_picture_over_and_over() -> None:
    """A source that hangs: the same picture, with times that stand still."""
    image = frame(0.3)
    stream = lean3r.stream(Knows(), ((1.0, image) for _ in range(200)), options=SMALL, refine="off")
    found = list(stream)
    times = np.array([each.timestamp_s for each in found])
    assert len(found) == 200 and (np.diff(times) > 0).all() and stream.keyframes == 1
    assert stream.notes == {}, "equal times are no fault"


def test_only_black_frames_and_no_frames_at_all(tmp_path: Path) -> None:
    black = np.zeros((112, 160, 3), np.uint8)
    found = run([(i / 10, black) for i in range(30)], tmp_path / "black")
    assert len(found) == 30 and all(each.flags >= {"no-content", "lost"} for each in found)
    assert run([], None) == []


def test_where_the_camera_goes_while_nothing_is_seen_is_uncertain() -> None:
    """Frames beside a dark part lie on no straight way between the keyframes on its two sides."""
    before = []
    for dark in (25, 27):
        frames = list(walk(60))
        frames[dark:40] = [(time_s, np.zeros_like(image)) for time_s, image in frames[dark:40]]
        found = run(frames)
        keyframes = [each.index for each in found if "keyframe" in each.flags]
        before.append(max(i for i in keyframes if i < dark))
        after = min(i for i in keyframes if i > 39)
        doubted = [each.index for each in found if each.flags & {"uncertain", "lost"}]
        assert doubted == list(range(before[-1] + 1, after))
    assert before == [23, 26], "what was seen last is a keyframe, unless that is near the one before"


def test_a_torn_checkpoint_and_torn_records_are_named(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", 40)
    source, out = str(tmp_path / "walk.mkv"), tmp_path / "out"
    run(source, out)
    records = (out / "frames.bin").read_bytes()
    (out / "frames.bin").write_bytes(records[: len(records) // 4])
    with pytest.raises(InputError, match=r"frames\.bin is shorter than its checkpoint"):
        run(source, out, resume=True)
    (out / "frames.bin").write_bytes(records)
    content = (out / "checkpoint.npz").read_bytes()
    (out / "checkpoint.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"checkpoint\.npz cannot be read.*--overwrite"):
        run(source, out, resume=True)


def test_a_film_whose_first_windows_fail_is_certain_from_the_first_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What nothing joins to uncertain windows alone is not lost; what nothing joins to certain ones is."""
    solve = Solver.window

    def doubting(self: Solver, keyframes: Sequence[Any], *args: Any, **more: Any) -> Any:
        found = solve(self, keyframes, *args, **more)
        for result in found[0] if found else ():
            result.is_certain = 80 <= result.keyframe.index < 140 or result.keyframe.index >= 200
        return found

    monkeypatch.setattr(Solver, "window", doubting)
    found = run(walk(260), tmp_path / "out", options=lean3r.StreamOptions(window=16, overlap=4))
    uncertain = np.array(["uncertain" in each.flags for each in found])
    assert uncertain[:80].all() and not uncertain[84:136].any() and uncertain[142:].all()
    assert "apart" not in found[100].flags and "apart" in found[230].flags and "lost" in found[200].flags
    assert b"element vertex 0" not in (tmp_path / "out" / "points.ply").read_bytes()[:400]


def test_a_command_without_a_frame_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: Knows())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no picture")
    assert main(["stream", str(tmp_path / "broken"), "-o", str(tmp_path / "out")]) == InputError.exit_code
    err = capsys.readouterr().err
    assert "no usable picture in" in err and "(files that cannot be used: 1); expected a video" in err
    assert not (tmp_path / "out").exists()
