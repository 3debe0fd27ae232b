"""The film that a stream shows: what its last window goes on from, where its windows lie then, and when it is long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lean3r.geometry.rotation import so3_exp
from lean3r.stream import film, sim3, solver
from lean3r.stream.bend import Bend, bent
from lean3r.stream.cloud import Cloud
from lean3r.stream.film import Film
from lean3r.stream.pictures import Keyframe
from lean3r.stream.result import Result
from lean3r.stream.solver import Solver
from lean3r.types import Source

SIZE = (64, 48)


def result(index: int, pose: np.ndarray, *, is_certain: bool = True, size: tuple[int, int] = SIZE) -> Result:
    """A keyframe in a window."""
    width, height = size
    pixels = np.full((height, width, 3), index, np.uint8)
    keyframe = Keyframe(index, index / 10, size, pixels, 1)
    flat = np.ones((2, 2), np.float32)
    source = Source(keyframe.name, *size, (1, 1, 0, 0))
    image = np.zeros((2, 2, 3), np.uint8)
    return Result(keyframe, source, pose, np.eye(3), flat, flat, image, is_certain, True)


def poses(count: int, seed: int = 0) -> np.ndarray:
    """A walk [N, 4, 4] in the world, that turns."""
    rng = np.random.default_rng(seed)
    found = np.tile(np.eye(4), (count, 1, 1))
    found[:, :3, :3] = so3_exp(torch.from_numpy(0.3 * rng.normal(size=(count, 3)))).numpy()
    found[:, :3, 3] = np.cumsum(rng.normal(size=(count, 3)), 0)
    return found


def similarity(seed: int) -> np.ndarray:
    """Of a window's world."""
    rng = np.random.default_rng(seed)
    turn = so3_exp(torch.from_numpy(rng.normal(size=3))).numpy()
    return sim3.make(float(np.exp(0.3 * rng.normal())), turn, rng.normal(size=3))


def test_windows_of_a_film_lie_as_its_last_one_has_them() -> None:
    """Window 0 is of another film; windows 1 to 3 have drifted, 3 has too few keyframes of its own."""
    world, true = poses(24), [np.eye(4), *(similarity(seed) for seed in range(1, 5))]
    drifted = [true[0], true[1], *(place @ sim3.make(1.05, np.eye(3), np.array([0.1, 0, 0])) for place in true[2:])]
    own = {1: range(8), 2: range(8, 16), 3: range(16, 18)}
    shown = Film(1600, 80)
    inside = {w: {i: sim3.move_poses(np.linalg.inv(true[w]), world[i]) for i in range(24)} for w in range(1, 5)}
    for window, indices in own.items():
        shown.add([result(i, inside[window][i]) for i in indices], window)
    past = shown.past([result(18, inside[3][18])], drifted[:4], [result(18, world[18]).keyframe])
    assert past is not None and len(past.times_s) == 18 and list(past.known) == ["frame_000018.png"]
    assert [int(picture[0, 0]) for picture in past.pictures] == list(range(18))
    in_three = sim3.move_poses(np.linalg.inv(drifted[3]) @ drifted[2], inside[2][9])
    assert np.allclose(past.cam_from_world[9], in_three)
    told: list[np.ndarray | None] = [inside[4][i] for i in range(18)]
    told[3] = None  # the last window doubts it
    shared = [(result(18, inside[3][18]), result(18, inside[4][18]))]
    settled, bends = shown.settled(drifted, told, shared)
    assert all(np.allclose(found, place) for found, place in zip(settled, true, strict=True))
    assert not bends
    # Of a window that too few keyframes place, the one behind it tells where it is.
    settled, _ = shown.settled(drifted, told, [])
    beside = true[4] @ np.linalg.inv(drifted[4]) @ drifted[3]
    assert np.allclose(settled[3], beside) and np.allclose(settled[2], true[2])
    # Half of a window's keyframes elsewhere do not make it larger.
    torn = list(told)
    for i in range(8, 12):
        torn[i] = sim3.move_poses(sim3.make(1.0, np.eye(3), 60 * np.ones(3)), inside[4][i])
    settled, bends = shown.settled(drifted, torn, shared)
    assert list(bends) == [2] and 0.8 < sim3.parts(np.linalg.inv(true[2]) @ settled[2])[0] < 1.25
    # A window bends where the last one has keyframes far from where it has them.
    elsewhere = world[9].copy()
    elsewhere[:3, 3] += 5
    told[9] = sim3.move_poses(np.linalg.inv(true[4]), elsewhere)
    settled, bends = shown.settled(drifted, told, shared)
    assert list(bends) == [2] and np.allclose(settled[2], true[2], atol=1e-2)
    assert np.allclose(sim3.move_poses(settled[2], bent(bends, 2, 9, inside[2][9])), elsewhere)


def test_what_lies_within_a_window_bends_with_its_keyframes() -> None:
    """Cameras at keyframes, in between and beyond, and the points that keyframes have seen."""
    before, now = poses(3), poses(3, seed=1)
    now[:, :3, :3] = so3_exp(torch.tensor([[0, 0, 0.1], [0, 0, 0.3], [0, 0.2, 0]]).double()).numpy() @ before[:, :3, :3]
    bend = Bend.restored(Bend.between([10, 20, 40], before, now).state())
    for at, old, new in zip((10, 20, 40), before, now, strict=True):
        assert np.allclose(bend.move(at, old), new)
        point = np.array([0.3, -0.2, 2.0, 1.0])  # of a camera
        assert np.allclose(bend.matrix(at) @ np.linalg.inv(old) @ point, np.linalg.inv(new) @ point)
    halfway = sim3.centres(bend.move(15, before[0])) - sim3.centres(before[0])
    assert np.allclose(halfway, (sim3.centres(now) - sim3.centres(before))[:2].mean(0))
    assert np.allclose(bend.move(3, before[0]), now[0]) and np.allclose(bend.move(90, before[2]), now[2])
    same = before[0]
    assert bent({1: bend}, 0, 10, same) is same
    xyz = np.array([np.linalg.inv(before[1]) @ point, np.linalg.inv(before[0]) @ point])[:, :3]
    cloud = Cloud(100, 0.0)
    cloud.side, cloud.frame = 0.01, np.array([20, 10], np.int32)
    cloud.xyz, cloud.window = xyz.astype(np.float32), np.array([1, 0], np.int32)
    cloud.key, cloud.conf, cloud.rgb = np.arange(2), np.ones(2, np.float32), np.zeros((2, 3), np.uint8)
    still = np.tile(np.eye(4), (2, 1, 1))
    for _ in range(2):  # once is enough
        cloud.move(still, still, {1: bend})
        place = {int(frame): where for frame, where in zip(cloud.frame, cloud.xyz, strict=True)}
        assert np.allclose(place[20], (np.linalg.inv(now[1]) @ point)[:3], atol=1e-5)
        assert np.allclose(place[10], xyz[1], atol=1e-5)


def test_a_film_is_remembered_as_far_as_there_is_room_and_forgotten_when_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = [result(i, np.eye(4), is_certain=i != 2) for i in range(9)]
    keyframes, still = [each.keyframe for each in every[8:]], [np.eye(4)] * 2
    shown = Film(32, 6)
    shown.add(every[:6], 0)
    assert shown.bytes == 5 * 32 * 24  # shrunk; a doubted one tells nothing
    assert shown.past([], still, [every[0].keyframe]) is None, "nothing is before these"
    shown.add(every[6:8], 1)
    again = Film(32, 6)
    again.restore(shown.state())
    for each in (shown, again):
        past = each.past([], still, keyframes)
        assert past is not None and past.times_s == (0.1, 0.3, 0.4, 0.5, 0.6, 0.7)
    monkeypatch.setattr(film, "MOST", 4)
    monkeypatch.setattr(film, "MOST_AT_END", 6)
    for is_last, times_s in ((False, (0.5, 0.6, 0.7)), (True, (0.3, 0.4, 0.5, 0.6, 0.7))):
        past = again.past([], still, keyframes, is_last)
        assert past is not None and past.times_s == times_s, "the last window goes on from more"
    again.add([result(9, np.eye(4), size=(48, 64))], 1)
    assert again.bytes == 0
    again.add(every[:1], 2)
    assert again.bytes == 0, "until a film begins"
    again.begin()
    again.add(every[:2], 3)
    assert again.bytes == 2 * 32 * 24
    monkeypatch.setattr(film, "MOST_BYTES", 1000)
    again.add(every[3:4], 3)
    past = again.past([], [np.eye(4)] * 4, keyframes)
    assert past is not None and past.times_s == (0.3,)
    assert Film(32, 0).state()["is_over"]


def test_a_window_of_which_only_the_end_is_remembered_does_not_bend() -> None:
    """What lies before that end has no bend of its own, and would follow that of the nearest keyframe."""
    way, still = [result(i, pose) for i, pose in enumerate(poses(14))], [np.eye(4)] * 3
    elsewhere = [each.pose.copy() for each in way]
    for at in (3, 9):
        elsewhere[at][:3, 3] += 5
    for most, bent_ones in ((12, [0, 1]), (10, [1])):
        shown = Film(1600, most)
        shown.add(way[:6], 0)
        shown.add(way[6:12], 1)
        told = elsewhere[12 - most : 12]
        settled, bends = shown.settled(still, told, [(each, each) for each in way[12:]])
        assert list(bends) == bent_ones and np.array_equal(settled[0], still[0])


FULL, SOME, FEW, NONE = 3, 2, 1, 0  # cameras of three that a way trusts


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("by_past", [FULL, SOME, NONE])
@pytest.mark.parametrize("by_itself", [FULL, SOME, FEW])
def test_the_way_counts_that_trusts_more_cameras(
    is_last: bool, by_past: int, by_itself: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyframes: Any = [SimpleNamespace(index=i, size=(4, 3)) for i in range(3)]
    turned, world = similarity(5), poses(3)
    given: list[object] = []

    def run(self: Solver, pictures: SimpleNamespace) -> tuple[object, bool]:
        given.append(past := pictures.past)
        count = by_itself if past is None else by_past
        report: dict[str, Any] = {"status": "refined" if count else "kept", "trusted": count}
        if past is not None and count:
            report["past"] = {"past": [world[1].tolist(), None], "views": world.tolist()}
            report["views"] = [{"part": 0 if i < count else -1} for i in range(3)]
        certain = np.arange(3) < (count or FULL)
        scene = SimpleNamespace(info={"refinement": report}, lenses=(), is_certain=certain, cam_from_world=world)
        return scene, True

    monkeypatch.setattr(Solver, "_pictures", lambda self, keyframes, joined: SimpleNamespace())
    monkeypatch.setattr(Solver, "_run", run)
    found = [result(i, sim3.move_poses(turned, pose)) for i, pose in enumerate(world)]
    monkeypatch.setattr(solver, "results_of", lambda scene, keyframes: found)
    past: Any = "the past"
    settings: Any = SimpleNamespace(intrinsics=None, overlap=2)
    told = Solver(None, settings).window(keyframes, (), past, is_last)  # type: ignore[arg-type]
    ways = [(past, by_past), (None, by_itself)] if is_last else [(None, by_itself), (past, by_past)]
    enough = FULL if is_last else SOME  # the next window will know the third one better
    assert given == [way for way, _ in ways][: 1 if ways[0][1] >= enough else 2]
    chosen = max((count, -at, way) for at, (way, count) in enumerate(ways[: len(given)]))[2]
    assert told is not None and ("past" in told[1]) == (chosen is past)
    if chosen is past:
        first, second = told[1]["past"]
        assert np.allclose(first, found[1].pose) and second is None


@pytest.mark.parametrize("lacks", [True, False])
def test_points_are_followed_with_a_past_and_for_keyframes_that_no_way_has(
    lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyframes: Any = [SimpleNamespace(index=i, size=(4, 3)) for i in range(6)]
    world, turned = poses(6), similarity(5)
    given: list[tuple[object, bool]] = []

    def run(self: Solver, pictures: SimpleNamespace) -> tuple[object, bool]:
        given.append((pictures.past, pictures.follows))
        report = {"status": "refined", "trusted": 5}
        return SimpleNamespace(
            info={"refinement": report}, lenses=(), is_certain=np.arange(6) < 5, run=len(given)
        ), True

    def results_of(scene: Any, keyframes: object) -> list[Result]:
        matrix = np.eye(4) if scene.run == 1 else turned
        found = [result(i, sim3.move_poses(matrix, pose), is_certain=i < 5) for i, pose in enumerate(world)]
        if lacks and scene.run < 3:
            found[5].is_registered, found[5].pose = False, np.eye(4)
        return found

    monkeypatch.setattr(Solver, "_pictures", lambda self, keyframes, joined: SimpleNamespace())
    monkeypatch.setattr(Solver, "_run", run)
    monkeypatch.setattr(solver, "results_of", results_of)
    past: Any = "the past"
    settings: Any = SimpleNamespace(intrinsics=None, overlap=2)
    told = Solver(None, settings).window(keyframes, (), past, is_last=True)  # type: ignore[arg-type]
    assert given == [(past, True), (None, False), (None, True)][: 3 if lacks else 2]
    assert told is not None and np.allclose([each.pose for each in told[0]], world)
    assert [each.is_certain for each in told[0]] == [True] * 5 + [False]


def test_keyframes_that_one_way_lacks_lie_where_the_other_has_them() -> None:
    world, turned = poses(6), similarity(7)
    mine = [result(i, pose) for i, pose in enumerate(world)]
    other = [result(i, sim3.move_poses(turned, pose), is_certain=i < 4) for i, pose in enumerate(world)]
    for i in (4, 5):
        mine[i].pose, mine[i].is_certain, mine[i].is_registered = np.eye(4), False, False
    other[5].is_registered = False
    solver.complete(mine, other)
    assert np.allclose([each.pose for each in mine[:5]], world[:5]) and np.allclose(mine[5].pose, np.eye(4))
    assert np.allclose(mine[4].depth, other[4].depth / sim3.parts(turned)[0])
    assert [each.is_certain for each in mine] == [True] * 4 + [False] * 2
    assert [each.is_registered for each in mine] == [True] * 5 + [False]
    alone = [result(i, pose, is_certain=False) for i, pose in enumerate(world)]
    solver.complete(alone, other)
    assert np.array_equal([each.pose for each in alone], world), "nothing tells how the two lie to each other"
