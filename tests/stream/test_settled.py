"""Short films whose last window goes on from all keyframes before it: what was given out before follows, everywhere."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import lean3r
from lean3r import processes
from lean3r.inputs.past import Past
from lean3r.refine.world import into_known
from lean3r.stream import sim3
from lean3r.stream.bend import bent
from lean3r.stream.film import Film
from lean3r.stream.loops import Loops
from lean3r.stream.pictures import Keyframe
from lean3r.stream.result import Result
from lean3r.stream.run import Stream
from lean3r.stream.solver import Solver
from stream.test_film import poses, result
from stream.walk import FOCAL, HEIGHT, WIDTH, Knows, walk

OPTIONS = lean3r.StreamOptions(window=8, overlap=3)
INTRINSICS = FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2
ASIDE = range(27)  # the frames of a film that its last window has elsewhere


def settling(monkeypatch: pytest.MonkeyPatch, *, looks_ahead: bool = False) -> list[Past | None]:
    """Windows as if they were refined, the last one of a film with its past; returns the pasts. Meanwhile the stream
    `looks_ahead` as far as it can, or not at all."""
    solve, given = Solver.window, list[Past | None]()

    def window(
        self: Solver, keyframes: Sequence[Keyframe], joined: Sequence[int], past: Past | None, *more: Any
    ) -> Any:
        piece = processes._pieces.get()
        while looks_ahead and piece is not None and piece():
            pass
        found = solve(self, keyframes, joined, None)
        given.append(past)
        if found is not None and past is not None:
            results, report = found
            shared = [(past.known[r.keyframe.name], r.pose) for r in results if r.keyframe.name in past.known]
            fit = into_known(*(np.stack(poses) for poses in zip(*shared, strict=True)))
            assert fit is not None
            poses = fit.apply_to_poses(torch.from_numpy(past.cam_from_world)).numpy()
            step = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).mean()
            aside = [round(10 * time_s) % 110 in ASIDE for time_s in past.times_s]
            poses[:, 1, 3] += 5 * step * np.array(aside)
            report["past"] = list(poses)
        return found

    monkeypatch.setattr(Solver, "window", window)
    monkeypatch.setattr(Solver, "refines", True)
    monkeypatch.setattr(Solver, "prepare", lambda *more: None)
    return given


def film(path: Path, count: int = 110) -> Path:
    """A video of the walk, without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10, width=WIDTH, height=HEIGHT, pix_fmt="bgr0")
        for _, image in walk(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    return path


def stream(source: Any, out: Path | None = None, **more: Any) -> Stream:
    return lean3r.stream(Knows(), source, out, options=OPTIONS, refine="off", intrinsics=INTRINSICS, **more)


def test_how_far_a_stream_looks_ahead_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is known only at the end lay in the cloud where it was before the last window settled."""
    path, clouds = film(tmp_path / "a.mkv", 103), []
    for looks_ahead in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module("lean3r.stream.windows"), "MOST_PENDING", 22)
            given, found = settling(patch, looks_ahead=looks_ahead), stream(path)
            assert len(list(found)) == 103 and given[-1] is not None and found.cloud is not None
            clouds.append(found.cloud)
    assert np.array_equal(clouds[0].xyz, clouds[1].xyz) and np.array_equal(clouds[0].frame, clouds[1].frame)


def test_a_window_bends_only_up_to_the_frames_that_the_last_one_shares() -> None:
    """Frames behind the last one of the past took its bend, though the last window has them where they were."""
    shown, still = Film(1600, 80), [np.eye(4)] * 3
    way = [result(i, pose) for i, pose in enumerate(poses(20))]
    shown.add(way[:6], 0)
    shown.add(way[6:16], 1)
    past = shown.past(way[12:], still[:2], [each.keyframe for each in way[12:]])
    assert past is not None and len(past.times_s) == 12
    told = [each.pose.copy() for each in way[:12]]
    told[11][:3, 3] += 5
    settled, bends = shown.settled(still, told, [(each, each) for each in way[12:]])
    assert np.allclose(settled, still, atol=1e-2) and list(bends) == [1]
    assert np.allclose(bent(bends, 1, 11, way[11].pose), told[11], atol=0.1)
    for each in way[12:16]:
        assert np.allclose(bent(bends, 1, each.keyframe.index, each.pose), each.pose, atol=0.1)


def test_a_film_in_which_the_lens_zoomed_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keyframes have focal lengths of their own, and the last window's would be taken for theirs."""
    given = settling(monkeypatch)
    solve = Solver.window

    def zooming(
        self: Solver, keyframes: Sequence[Keyframe], joined: Sequence[int], past: Past | None, *more: Any
    ) -> Any:
        found = solve(self, keyframes, joined, past, *more)
        if found is not None and keyframes[0].index == 0:
            found[1]["zooms"] = True
        return found

    monkeypatch.setattr(Solver, "window", zooming)
    list(stream(walk(110)))
    assert given and not any(given)


def test_a_film_of_frames_of_another_size_is_not_gone_on_from() -> None:
    """Shrunk, their pictures may look the same."""
    shown = Film(32, 80)
    shown.add([result(0, np.eye(4), size=(64, 48))], 0)
    assert shown.past([], [np.eye(4)], [result(1, np.eye(4), size=(64, 48)).keyframe]) is not None
    assert shown.past([], [np.eye(4)], [result(1, np.eye(4), size=(128, 96)).keyframe]) is None
    again = Film(32, 80)
    again.restore(shown.state())
    again.add([result(1, np.eye(4), size=(128, 96))], 0)
    assert again.bytes == 0


def test_what_is_located_in_a_window_that_bends_is_not_bent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered lies where the window has it now, so that only what was given out before has to follow."""
    settling(monkeypatch)
    found = stream(walk(110))
    list(found)
    engine: Any = found.engine
    (window, pose), image = (next(iter(engine.bends)), poses(2)[1]), np.asarray(next(walk(1))[1])
    monkeypatch.setattr(engine._loops, "locate", lambda *of: (window, pose, (np.eye(3), None)))
    located = found.locate(image)
    assert located is not None
    engine.version += 1  # as by a loop that moves nothing
    assert np.allclose(found.revised(located).cam_from_world, located.cam_from_world)
    assert np.allclose(located.cam_from_world, sim3.move_poses(engine.placements[window], pose))


def test_a_past_that_the_last_window_doubts_settles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then loops within the film are looked for as ever."""
    settling(monkeypatch)
    solve, search, starts = Solver.window, Loops.search, list[int]()

    def doubting(
        self: Solver, keyframes: Sequence[Keyframe], joined: Sequence[int], past: Past | None, *more: Any
    ) -> Any:
        found = solve(self, keyframes, joined, past, *more)
        if found is not None and past is not None:
            found[1]["past"] = [None] * len(past.times_s)
        return found

    def searching(self: Loops, results: Sequence[Result], placements: Any, solver: Solver, start: int) -> Any:
        starts.append(start - results[0].keyframe.index)
        return search(self, results, placements, solver, start)

    monkeypatch.setattr(Solver, "window", doubting)
    monkeypatch.setattr(Loops, "search", searching)
    found = stream(walk(110))
    list(found)
    assert found.figures["revisions"] == 0 and not any(starts)


def test_windows_within_a_film_go_on_from_its_last_keyframes_and_move_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last one puts those before elsewhere, as far as they are remembered."""
    given = settling(monkeypatch)
    for name in ("MOST", "MOST_AT_END"):
        monkeypatch.setattr(importlib.import_module("lean3r.stream.film"), name, OPTIONS.window + 10)
    found = stream(walk(210))
    frames = list(found)
    pasts = [past for past in given if past is not None]
    assert len(pasts) == len(given) - 1 > 3
    assert all(0 < len(past.times_s) <= 10 for past in pasts[:-1]), "without those that the window has too"
    assert 10 < len(pasts[-1].times_s) < 20, "it has fewer keyframes"
    engine: Any = found.engine
    assert found.figures["revisions"] == 1 and {frame.version for frame in frames} == {0, 1}
    early = [
        frame for frame in frames if frame.timestamp_s < pasts[-1].times_s[0] and frame.window < engine._film.window
    ]
    assert len(early) > 50
    assert all(np.array_equal(found.revised(frame).cam_from_world, frame.cam_from_world) for frame in early)
