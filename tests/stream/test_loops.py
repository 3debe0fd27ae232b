"""Loops: found where a place comes back, earlier frames revised, false ones refused, a bounded memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lean3r
from lean3r.stream.engine import Estimate
from lean3r.stream.graph import Edge
from lean3r.stream.loops import LEAST_TIES, Loops
from lean3r.stream.run import Stream
from lean3r.stream.solver import Meeting, ties
from stream.walk import Drifts, there_and_back

COUNT, BEND = 100, 0.02
OPTIONS = {
    "on": lean3r.StreamOptions(window=8, overlap=3),
    "off": lean3r.StreamOptions(window=8, overlap=3, loops="off"),
}


def run(model: Drifts, loops: str = "on", out: Path | None = None) -> tuple[Stream, list[Estimate]]:
    stream = lean3r.stream(model, there_and_back(COUNT), out, options=OPTIONS[loops], refine="off")
    return stream, list(stream)


def gap(estimates: list[Estimate]) -> float:
    """Between where the walk ends and where it began, as a share of its reach."""
    places = np.stack([np.linalg.inv(each.cam_from_world)[:3, 3] for each in estimates])
    return float(np.linalg.norm(places[-1] - places[0]) / np.linalg.norm(places - places[0], axis=1).max())


def test_a_place_that_comes_back_takes_the_drift_away(tmp_path: Path) -> None:
    model = Drifts((COUNT - 1) / 10, BEND)
    _, drifted = run(model, "off")
    stream, first = run(model, "on", tmp_path / "out")
    revised = [stream.revised(each) for each in first]
    assert gap(drifted) > 0.05 and gap(revised) < 0.2 * gap(drifted)
    assert stream.figures["revisions"] == revised[0].version > 0
    assert any("loop" in each.flags for each in first) and not any("lost" in each.flags for each in first)
    assert stream.revised(revised[5]) is revised[5]
    # What is on the disk is what is known now; so is the cloud.
    written = np.loadtxt(tmp_path / "out" / "trajectory_kitti.txt").reshape(-1, 3, 4)
    assert np.allclose(written, [np.linalg.inv(each.cam_from_world)[:3] for each in revised], atol=1e-6)
    reports = [json.loads(line) for line in (tmp_path / "out" / "windows.jsonl").read_text().splitlines()]
    assert sum("loop" in each for each in reports) == stream.figures["revisions"]


def test_a_walk_that_never_returns_closes_no_loop() -> None:
    from stream.walk import Knows, walk

    stream = lean3r.stream(Knows(), walk(150), options=OPTIONS["on"], refine="off")
    assert not [each for each in stream if "loop" in each.flags] and stream.figures["revisions"] == 0


@pytest.mark.parametrize("count", [LEAST_TIES - 1, LEAST_TIES])
def test_a_loop_that_few_points_hold_is_refused(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else speaks for it."""
    model, asked = Loops(Drifts(9.9, BEND), 16), []
    landmark: Any = SimpleNamespace(window=0, keyframe=SimpleNamespace(index=0), picture=lambda: None)
    model._landmarks = [landmark]
    new: Any = SimpleNamespace(keyframe=SimpleNamespace(index=9))
    solver: Any = SimpleNamespace(together=lambda old, fresh: Meeting([landmark, new], count))
    monkeypatch.setattr(sys.modules[Loops.__module__], "meeting", lambda first, second: asked.append(second) or 0.0)
    assert model._check(0, [new], 0, [np.eye(4)] * 3, solver) is None
    assert bool(asked) == (count >= LEAST_TIES)


def test_points_that_hold_two_sides_are_seen_twice_by_one_and_by_the_other() -> None:
    seen = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 1]], bool)
    point, view = np.nonzero(seen)
    sparse = SimpleNamespace(xyz=np.zeros((5, 3)), point=point, view=view)
    scene: Any = SimpleNamespace(sparse=sparse, sources=range(4))
    assert ties(scene, 2) == 1  # two of the first, of which one of the others: two; the other way round: one
    scene.sparse = None
    assert ties(scene, 2) == np.inf


def test_a_loop_joins_only_what_sound_joins_lead_to() -> None:
    """Between two joins that failed, windows stay apart although a later one closes a loop."""
    loops = Loops(Drifts(9.9, BEND), 16)

    def edge(first: int, second: int, *, is_failed: bool = False, is_loop: bool = False) -> Edge:
        return Edge(first, second, np.eye(4), np.zeros(3), 0.01, 0.01, 0.01, is_loop, is_failed)

    loops.edges = [edge(i, i + 1, is_failed=i in (1, 3)) for i in range(5)]
    assert loops.joined(6, 0) == {0, 1}
    assert loops.joined(6, 2) == {2, 3}
    loops.edges.append(edge(0, 5, is_loop=True))
    assert loops.joined(6, 0) == {0, 1, 4, 5}
    loops.edges.append(edge(2, 4, is_loop=True))
    assert loops.joined(6, 0) == set(range(6))


def test_a_loop_never_meets_frames_of_its_own_window() -> None:
    """Where a window went back, the one after the next may share frames with it."""
    loops = Loops(Drifts(9.9, BEND), 16)
    for index in range(12):
        keyframe = SimpleNamespace(index=index)
        landmark = SimpleNamespace(window=0, keyframe=keyframe, appearance=np.eye(12)[index])
        loops._landmarks.append(landmark)  # type: ignore[arg-type]
    seen = np.eye(12)[[9, 10]]
    assert {loops._landmarks[old].keyframe.index for old, _ in loops._candidates(seen, 0, np.inf)} & {9, 10}
    assert all(old < 9 for old, _ in loops._candidates(seen, 0, 9))
    assert [each.keyframe.index for each in loops._near(8, 9)] == [6, 7, 8]


def test_a_place_that_only_looks_the_same_is_refused() -> None:
    """Without drift, places that are taken for each other contradict the way between them."""
    from stream.walk import Knows, frame

    class Fooled(Drifts):
        def place(self, timestamp_s: float | None) -> float:
            return Knows.place(self, timestamp_s)

    same = [(i / 10, frame(0.12 * (i % 75))) for i in range(150)]  # the second half looks like the first
    stream = lean3r.stream(Fooled(7.5, fooled=True), same, options=OPTIONS["on"], refine="off")
    found = list(stream)
    assert stream.figures["revisions"] == 0 and found[-1].cam_from_world[0, 3] != 0


def test_the_memory_is_bounded_and_forgets_places_not_single_keyframes() -> None:
    from lean3r.stream.loops import GROUP, landmark_bytes
    from lean3r.stream.windows import WindowEngine

    model = Drifts((COUNT - 1) / 10)
    stream = lean3r.stream(model, there_and_back(COUNT), options=OPTIONS["on"], refine="off")
    stream._settings = type(stream.settings)(**{**vars(stream.settings), "landmarks": 20})
    list(stream)
    assert isinstance(stream.engine, WindowEngine)
    kept = stream.engine._loops._landmarks
    assert 5 <= len(kept) <= 20
    assert all(each.bytes <= landmark_bytes(112, 160, 112, 160) for each in kept)
    numbers = [each.number for each in kept]
    assert numbers[:GROUP] == list(range(GROUP)) and stream.keyframes > 40


def test_a_saved_stream_goes_on_with_the_same_loops() -> None:
    from lean3r.stream.engine import Frame

    model = Drifts((COUNT - 1) / 10, BEND)
    frames = [Frame(i, t, image) for i, (t, image) in enumerate(there_and_back(COUNT))]
    stream = lean3r.stream(model, [], options=OPTIONS["on"], refine="off")
    whole, found, saved = stream._make(), [], {}
    for each in frames:
        if each.index in (120, 170):
            saved[each.index] = whole.state(), len(found)
        found += whole.push(each)
    found += whole.finish()
    assert whole.version > 0 and set(saved) == {120, 170}
    for at, (state, known) in saved.items():
        again = stream._make()
        again.restore(state)
        rest = [e for each in frames[at:] for e in again.push(each)] + again.finish()
        assert again.version == whole.version and np.array_equal(again.placements, whole.placements)
        assert all(np.array_equal(a.cam_from_world, b.cam_from_world) for a, b in zip(found[known:], rest, strict=True))
