"""Streams end to end, with a model that knows the answer: poses, bounded memory, stopping, resuming, bad input."""

from __future__ import annotations

import errno
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import lean3r
from lean3r.errors import InputError, OutOfMemoryError, UsageError
from lean3r.pipeline.memory import used_bytes
from lean3r.pipeline.observer import Observer
from lean3r.refine.options import RefineOptions
from lean3r.stream import windows
from lean3r.stream.engine import Estimate, Settings
from lean3r.stream.engine import Frame as StreamFrame
from lean3r.stream.frames import Source
from lean3r.stream.pace import Live
from lean3r.stream.pictures import Keyframe
from lean3r.stream.result import Result
from lean3r.stream.solver import Solver
from lean3r.view.folder import read_content
from stream.walk import Knows, Looks, frame, walk

SMALL = lean3r.StreamOptions(window=8, overlap=3)


def run(source: Any, out: Path | None = None, options: lean3r.StreamOptions = SMALL, **more: Any) -> list[Estimate]:
    return list(lean3r.stream(Knows(), source, out, options=options, refine="off", **more))


def centres(estimates: list[Estimate]) -> np.ndarray:
    return np.stack([np.linalg.inv(each.cam_from_world)[:3, 3] for each in estimates])


def written(out: Path) -> dict[str, bytes]:
    """The files of a result that a resumed stream must repeat; manifest.json states times."""
    names = [*out.glob("*.txt"), *out.glob("*.json"), *out.glob("*.ply"), *out.glob("*.npz"), *out.glob("keyframes/*")]
    kept = [path for path in names if path.name not in ("manifest.json", "checkpoint.npz")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in kept}


def test_every_frame_gets_one_estimate_on_the_true_way() -> None:
    found = run(walk(90))
    assert [each.index for each in found] == list(range(90))
    assert "anchor" in found[0].flags and found[60].flags & {"joined"}
    assert not any(each.flags & {"lost", "uncertain"} for each in found)
    way = centres(found)
    scale = way[-1, 0] / (89 * 0.12)
    assert np.allclose(way[:, 0] / scale, 0.12 * np.arange(90), atol=0.06)
    assert np.abs(way[:, 1:]).max() < 0.02 * way[-1, 0]
    keyframes = [each for each in found if each.depth is not None]
    assert 15 < len(keyframes) < 60
    for each in keyframes:  # the depth follows the scale of the world
        assert np.allclose(each.depth, 4 * scale, rtol=0.02)
    assert {each.window for each in found} == set(range(max(each.window for each in found) + 1))


@pytest.mark.parametrize(
    ("step_m", "jump_m", "pause_s"), [(0.03, 0.5, 0), (0.05, 1.0, 0), (0.05, 4.0, 0), (0.08, 3.0, 1)]
)
def test_no_frame_lies_between_two_places_of_a_camera_that_jumps(step_m: float, jump_m: float, pause_s: float) -> None:
    """By the time alone, the last frames before a cut, or before the camera was stopped for a while, would be far on
    the way to the first camera behind it."""
    xs, times_s = (
        each * np.arange(80.0) + more * (np.arange(80) > 39) for each, more in ((step_m, jump_m), (0.1, pause_s))
    )
    frames = [(time_s, frame(x)) for time_s, x in zip(times_s, xs, strict=True)]
    found = list(lean3r.stream(Looks(), frames, options=SMALL, refine="off"))
    sure = np.array(["uncertain" not in each.flags for each in found])
    way = centres(found)[:, 0]
    assert sure.sum() > 75
    assert np.abs(np.polyval(np.polyfit(way[sure], xs[sure], 1), way) - xs)[sure].max() < 0.1


def test_what_lies_between_a_certain_and_a_doubted_keyframe_is_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its camera would be that of the certain one, which has moved on."""
    solve = Solver.window

    def doubting(self: Solver, keyframes: Sequence[Keyframe], joined: Sequence[int], *more: Any) -> Any:
        found = solve(self, keyframes, joined, *more)
        for result in found[0] if found else ():
            result.is_certain = result.keyframe.index < 40
        return found

    monkeypatch.setattr(Solver, "window", doubting)
    found = run(walk(50), options=lean3r.StreamOptions(window=16, overlap=3))
    last = max(each.index for each in found if "keyframe" in each.flags and each.index < 40)
    assert 30 < last < 39
    assert [each.index for each in found if "uncertain" not in each.flags] == list(range(last + 1))


def test_a_window_goes_back_to_certain_cameras_but_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubted ones do not tell where the next window lies. It has new keyframes too, and where that does not help, the
    stream leaves the doubted part behind, and says that nothing joins what follows."""
    solve, windows = Solver.window, []

    def doubting(self: Solver, keyframes: Sequence[Keyframe], joined: Sequence[int], *more: Any) -> Any:
        found = solve(self, keyframes, joined, *more)
        for place, result in enumerate(found[0] if found else ()):
            first = not windows and place > 7
            result.is_certain = not first and not is_dark[result.keyframe.index]
        windows.append(([each.index for each in keyframes], list(joined)))
        return found

    monkeypatch.setattr(Solver, "window", doubting)
    is_dark = np.zeros(160, bool)
    options = lean3r.StreamOptions(window=16, overlap=4)
    found = run(walk(120), options=options)
    (first, _), (second, joined), *_ = windows
    assert joined == [0, 1, 2, 3] and second[:12] == first[4:], "the last certain ones, and those behind them"
    assert not any("uncertain" in each.flags for each in found)
    windows.clear()
    is_dark[30:120] = True
    found = run(walk(160), options=options)
    starts = [keyframes[0] for keyframes, _ in windows]
    assert starts == sorted(set(starts)) and max(len(keyframes) for keyframes, _ in windows) == 16
    assert "uncertain" in found[50].flags and {"apart", "uncertain"} <= found[150].flags


def test_frames_of_a_window_that_the_next_one_contradicts_keep_what_it_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at a cut within a film: the next window sees two places, and puts what it shares anywhere."""
    solve, calls = Solver.window, []

    def contradicting(self: Solver, keyframes: Sequence[Keyframe], joined: Sequence[int], *more: Any) -> Any:
        found = solve(self, keyframes, joined, *more)
        calls.append([each.index for each in keyframes])
        if len(calls) == 2 and found is not None:
            for result, side in zip(found[0], np.random.default_rng(0).normal(size=(16, 3)), strict=False):
                result.pose[:3, 3] += 5 * side
        return found

    monkeypatch.setattr(Solver, "window", contradicting)
    found = run(walk(120), options=lean3r.StreamOptions(window=16, overlap=4))
    last = calls[0][-1]
    assert last > calls[1][0] and found[last].window == 0 and found[last + 1].window == 1
    assert not any("uncertain" in each.flags for each in found[: last + 1]) and "apart" in found[last + 1].flags
    way = centres(found[: last + 1])
    assert np.allclose(way[:, 0] / way[10, 0], np.arange(last + 1) / 10, atol=0.1)


def test_what_comes_before_the_first_known_camera_is_uncertain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would get that one's camera, though it was elsewhere; and the manifest says how many there are."""
    solve = Solver.window

    def doubting(self: Solver, keyframes: Sequence[Keyframe], joined: Sequence[int], *more: Any) -> Any:
        found = solve(self, keyframes, joined, *more)
        for result in found[0] if found else ():
            result.is_certain = result.is_registered = result.keyframe.index >= 20
        return found

    monkeypatch.setattr(Solver, "window", doubting)
    found = run(walk(50), tmp_path / "out", options=lean3r.StreamOptions(window=30, overlap=3))
    first = min(each.index for each in found if "uncertain" not in each.flags)
    assert first >= 20 and "keyframe" in found[first].flags
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["warnings"]
    assert [each["code"] for each in told] == ["uncertain-views"] and f"{first} of 50 frames" in told[0]["text"]
    assert told[0]["views"] == [f"frame_{e.index:06d}.png" for e in found[:first] if "keyframe" in e.flags]


def test_frames_between_two_keyframes_follow_a_zoom(monkeypatch: pytest.MonkeyPatch) -> None:
    zoom = property(lambda self: np.diag([100.0 + self.keyframe.index] * 2 + [1]))
    monkeypatch.setattr(Result, "original_intrinsics", zoom)
    found = run(walk(50))
    last = max(each.index for each in found if "keyframe" in each.flags)
    assert [each.intrinsics[0, 0] for each in found[:last]] == pytest.approx([100.0 + i for i in range(last)])


def test_a_resting_camera_keeps_nothing_and_needs_no_more_memory() -> None:
    still = frame(0.5)
    stream = lean3r.stream(Knows(), ((i / 30, still) for i in range(700)), options=SMALL, refine="off")
    held = []
    found = []
    for each in stream:
        found.append(each)
        held.append(stream.figures["held_mb"])
    assert len(found) == 700 and sum("keyframe" in each.flags for each in found) == 1
    assert all("still" in each.flags for each in found[1:])
    assert np.ptp(centres(found), axis=0).max() == 0
    assert held[560] == held[-1]


def test_single_photos_are_all_keyframes_unless_the_camera_rests() -> None:
    """Between photos that were taken apart nothing says where the camera was."""
    photos = [(2.0 * i, frame(0.15 * min(i, 9))) for i in range(14)]
    found = run(photos)
    assert [each.index for each in found if "keyframe" in each.flags] == list(range(10))
    assert all("still" in each.flags for each in found[10:])


def test_windows_wait_for_keyframes_while_the_camera_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them tell the way badly; but a camera that rests for ever does not let its frames wait for ever."""
    monkeypatch.setattr(windows, "MOST_PENDING", 10)
    images = [image for _, image in walk(16, 0.5) for _ in range(8)]
    stream = lean3r.stream(Knows(), images, options=SMALL, refine="off")
    assert len(list(stream)) == len(images)
    sizes = [report["keyframes"] for report in stream.reports]
    assert len(sizes) > 2 and min(sizes) >= 4
    at = [each for each, _ in zip(lean3r.stream(Knows(), itertools.repeat(images[0])), range(200), strict=False)]
    assert len(at) == 200


def test_the_frames_of_a_live_camera_that_rests_do_not_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_PENDING", 10)

    def longest(waits: bool) -> int:
        engine = windows.WindowEngine(
            Knows(), Settings(window=16, overlap=3, refine=RefineOptions(when="off"), waits=waits)
        )
        given, most = 0, 0
        for index in range(100):
            given += len(engine.push(StreamFrame(index, index / 10, frame(0.3 * min(index, 3)))))
            most = max(most, index + 1 - given)
        return most

    assert longest(waits=False) <= 11 and longest(waits=True) > 70
    for drop in ("on", "off"):
        options = lean3r.StreamOptions(drop=drop)
        stream = lean3r.stream(Knows(), walk(5), options=options, refine="off")
        assert len(list(stream)) == 5 and stream.settings.waits == (drop == "off")


def test_a_film_that_repeats_its_frames_does_not_jump() -> None:
    """As one of ten frames a second that was made one of thirty."""
    found = run([(index / 30, frame(0.34 * (index // 3))) for index in range(120)])
    assert not any(each.flags & {"uncertain", "lost"} for each in found)


def test_a_slow_camera_gets_keyframes_too() -> None:
    found = run(walk(400, 0.004))
    assert 3 <= sum("keyframe" in each.flags for each in found) <= 12


def test_a_result_can_be_read_by_everything_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run(walk(60), out)
    lines = (out / "trajectory_tum.txt").read_text().splitlines()[1:]
    assert len(lines) == 60 and lines[10].split()[0] == "1"
    kitti = np.loadtxt(out / "trajectory_kitti.txt").reshape(-1, 3, 4)
    assert np.allclose(kitti[:, :, 3], centres(found), atol=1e-6)
    from lean3r.colmap_library import pycolmap
    from lean3r.eval.predicted.npz import read
    from lean3r.inputs.cameras import read_given
    from lean3r.inputs.trajectory import read_trajectory

    keyframes = [each for each in found if "keyframe" in each.flags]
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    assert model.num_images() == len(keyframes) and model.num_points3D() > 100
    assert len(read_given(out / "cameras.json").match([f"frame_{e.index:06d}.png" for e in keyframes], [])) > 0
    predicted = read(out / "predictions.npz")
    assert predicted.depth is not None and len(predicted.depth) == len(keyframes)
    assert np.allclose(predicted.depth[3], keyframes[3].depth)
    assert len(read_trajectory(out / "trajectory_tum.txt").times_s) == 60
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["is_complete"] and manifest["stream"]["frames"] == 60
    assert set(manifest["files"]) == {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}


def test_a_trajectory_says_which_poses_are_uncertain(tmp_path: Path) -> None:
    frames = list(walk(60))
    frames[20:23] = [(time_s, np.zeros_like(image)) for time_s, image in frames[20:23]]
    found = run(frames, tmp_path)
    doubted = [bool(each.flags & {"lost", "uncertain"}) for each in found]
    said, is_doubted = [], False
    for line in (tmp_path / "trajectory_tum.txt").read_text().splitlines()[1:]:
        if line.startswith("#"):
            is_doubted = "uncertain from here" in line
        else:
            said.append(is_doubted)
    assert said == doubted and 3 <= sum(said) < 30


def test_each_point_knows_the_keyframe_that_saw_it(tmp_path: Path) -> None:
    found = run(walk(60), tmp_path / "out")
    keyframes = [each for each in found if "keyframe" in each.flags]
    points = read_content(tmp_path / "out").points
    assert points.view.min() == 0 and points.view.max() == len(keyframes) - 1 and len(set(points.view.tolist())) > 3
    for view, each in enumerate(keyframes):
        assert each.image is not None and each.source is not None
        mine = points[points.view == view]
        seen = (mine.xyz @ each.cam_from_world[:3, :3].T + each.cam_from_world[:3, 3]) @ each.intrinsics.T
        sx, sy, ox, oy = each.source.original_from_network
        columns, rows = np.floor((seen[:, :2] / seen[:, 2:] - [ox, oy]) / [sx, sy]).astype(int).T
        assert (each.image[rows, columns] == mine.rgb).all()


@pytest.mark.parametrize("at", [17, 41])
def test_a_stream_that_is_killed_goes_on_with_the_same_result(at: int, tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", 60)
    run(str(tmp_path / "walk.mkv"), tmp_path / "whole")
    stream = lean3r.stream(Knows(), str(tmp_path / "walk.mkv"), tmp_path / "cut", options=SMALL, refine="off")
    taken = list(itertools.islice(stream, at))  # the generator is dropped: nothing is finished or published
    del stream
    assert len(taken) == at
    rest = run(str(tmp_path / "walk.mkv"), tmp_path / "cut", resume=True)
    assert rest[-1].index == 59
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_kill_minus_nine(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", 60)
    run(str(tmp_path / "walk.mkv"), tmp_path / "whole")
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "import os, signal, lean3r\n"
        "from stream.walk import Knows\n"
        "options = lean3r.StreamOptions(window=8, overlap=3)\n"
        "for each in lean3r.stream(Knows(), sys.argv[1], sys.argv[2], options=options, refine='off'):\n"
        "    if each.index == 37: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [str(tmp_path / "walk.mkv"), str(tmp_path / "cut"), str(Path(__file__).parents[1])]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    assert ended.returncode == -signal.SIGKILL
    run(str(tmp_path / "walk.mkv"), tmp_path / "cut", resume=True)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_a_store_of_another_model_or_version_is_refused(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", 40)
    source, out = str(tmp_path / "walk.mkv"), tmp_path / "out"
    run(source, out)
    with pytest.raises(UsageError, match="not empty"):
        run(source, out)
    with pytest.raises(UsageError, match=r"another stream \(overlap \d there, 2 now; window \d there, 6 now\)"):
        run(source, out, lean3r.StreamOptions(window=6, overlap=2), resume=True)
    stored = json.loads((out / "stream.json").read_text())
    for key, value in (("format", 99), ("model", "vggt")):
        (out / "stream.json").write_text(json.dumps({**stored, key: value}))
        with pytest.raises(UsageError, match=rf"another stream.*{key}"):
            run(source, out, resume=True)
    (out / "stream.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        run(source, out, resume=True)
    run(source, out, overwrite=True)


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "walk.mkv", 60)
    source = str(tmp_path / "walk.mkv")
    run(source, tmp_path / "whole")
    from lean3r.stream.store import Store

    whole, calls = Store._add_keyframe, []

    def full(self: Store, each: Estimate) -> None:
        calls.append(each.index)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, each)

    monkeypatch.setattr(Store, "_add_keyframe", full)
    with pytest.raises(UsageError, match=r"disk .* is full.*--resume"):
        run(source, tmp_path / "cut")
    monkeypatch.setattr(Store, "_add_keyframe", whole)
    run(source, tmp_path / "cut", resume=True)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_interrupted_streams_keep_what_is_there(tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[float, np.ndarray]]:
        yield from walk(50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted(), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert not manifest["is_complete"] and manifest["stream"]["frames"] > 20
    assert (tmp_path / "out" / "points.ply").stat().st_size > 10_000


def test_options_of_another_kind_are_refused() -> None:
    for more in ({"options": {"window": 8}}, {"points": 100_000}):
        with pytest.raises(UsageError, match="Options are expected"):
            lean3r.stream(Knows(), walk(2), **more)  # pyright: ignore[reportArgumentType]


def test_black_frames_and_duplicates_are_no_keyframes() -> None:
    frames = list(walk(40))
    frames[20:20] = [(1.99, np.zeros_like(frames[0][1]))] * 3
    frames[30:30] = [frames[29]] * 5
    found = run(frames)
    assert len(found) == 48
    assert all(each.flags >= {"no-content", "lost"} for each in found[20:23])
    assert sum("keyframe" in each.flags for each in found[29:35]) <= 2
    assert not any("lost" in each.flags for each in (*found[:20], *found[23:]))


def test_frames_that_change_their_size() -> None:
    frames = [(t, image if i < 20 else image[:, 8:-8]) for i, (t, image) in enumerate(walk(40))]
    found = run(frames)
    assert len(found) == 40 and found[5].width == 160 and found[35].width == 144
    assert not any(each.flags & {"lost"} for each in found)


def test_a_camera_that_jumps_still_gets_keyframes() -> None:
    frames = [(i / 10, frame(0.12 * i + (12 if i >= 20 else 0))) for i in range(40)]
    found = run(frames)
    assert len(found) == 40 and "keyframe" in (found[20].flags | found[21].flags | found[22].flags)


def test_times_that_go_back_and_unusable_frames_are_counted() -> None:
    frames: list[Any] = list(walk(30))
    frames[10] = (0.1, frames[10][1])
    frames[15] = (1.5, np.zeros((4, 4, 3), np.uint8))
    stream = lean3r.stream(Knows(), frames, options=SMALL, refine="off")
    found = list(stream)
    times = [each.timestamp_s for each in found]
    assert len(found) == 29 and all(b > a for a, b in itertools.pairwise(times))
    assert stream.notes == {"frames whose time goes back": 1, "frames that cannot be used": 1}


def test_a_torn_stream_gives_what_came_before(tmp_path: Path) -> None:
    film(tmp_path / "walk.mkv", 60)
    content = (tmp_path / "walk.mkv").read_bytes()
    (tmp_path / "torn.mkv").write_bytes(content[: len(content) * 2 // 3])
    stream = lean3r.stream(Knows(), str(tmp_path / "torn.mkv"), options=SMALL, refine="off")
    found = list(stream)
    assert 20 < len(found) < 60

    def broken() -> Iterator[Any]:
        yield from walk(20)
        raise av.error.InvalidDataError(1, "torn")

    stream = lean3r.stream(Knows(), broken(), options=SMALL, refine="off")
    assert len(list(stream)) == 20 and "damage" in stream.notes


def test_a_folder_of_pictures_and_pictures_in_memory(tmp_path: Path) -> None:
    for number, (_, image) in enumerate(walk(12)):
        Image.fromarray(image).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "005.png").write_bytes(b"damaged")
    assert len(list(Source(tmp_path))) == 11
    pictures = [Image.fromarray(image) for _, image in walk(3)]
    assert np.array_equal(next(iter(Source(pictures))).image, np.asarray(pictures[0]))
    with pytest.raises(InputError, match="expected a file"):
        Source(3)
    with pytest.raises(InputError, match="camera"):
        next(iter(Source("camera:77")))


def test_a_source_that_is_faster_than_the_model_is_thinned() -> None:
    live = Live(Source([(i / 10, frame(0.0)) for i in range(1000)]), most=16)
    time.sleep(0.2)
    got = []
    for _, each in live:
        got.append(each.index)
        time.sleep(0.002)
    assert live.dropped > 500 and len(got) + live.dropped == 1000
    assert all(b > a for a, b in itertools.pairwise(got))


def test_memory_gives_the_window(tmp_path: Path) -> None:
    said: list[str] = []

    class Hears(Observer):
        def fitted(self, text: str) -> None:
            said.append(text)

    points = lean3r.PointOptions(max_points=1000)
    model = lean3r.load("nano")
    memory = used_bytes(torch.device("cpu")) + 1_500_000_000  # this process has run other tests
    stream = lean3r.stream(model, walk(2), memory=memory, resolution=128, refine="off", points=points, observer=Hears())
    next(iter(stream))
    large = stream.settings.window
    assert 8 <= large <= 48 and "keyframes of" in said[0] and "GB" in said[0]
    with pytest.raises(OutOfMemoryError, match="smallest window"):
        next(iter(lean3r.stream(model, walk(2), memory="50MB", resolution=128, refine="off", points=points)))


def film(path: Path, count: int, start: int = 0) -> None:
    """A video of the walk from one of its frames on, without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 112, "bgr0"
        for _, image in list(walk(start + count))[start:]:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
