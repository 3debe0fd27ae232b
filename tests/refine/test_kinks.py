"""A kink between two parts of a video is found by the frames in a row that fit worse than the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from lean3r.refine.job import Answer
from lean3r.refine.judge import BESIDE
from lean3r.refine.kinks import behind_kinks, behind_sidesteps, frayed, kinks, sides_of_kinks

FRAMES = 40
VIDEO = [list(range(FRAMES))]


def model(fitting: Mapping[int, int], trusted: range = range(FRAMES), has: range = range(FRAMES)) -> Answer:
    """Of 100 matches each frame fits about 96, or as many as stated."""
    inliers = [fitting.get(i, 94 + i % 5) for i in range(FRAMES)]
    doubts = [None if i in trusted else "doubted" for i in range(FRAMES)]
    report = {"doubts": doubts, "after": {"view_inliers": inliers, "view_matches": [100] * FRAMES}}
    nothing, there = np.zeros(0, int), np.isin(np.arange(FRAMES), has)
    return Answer(nothing, there, (), (), (), *[nothing] * 5, report)


def test_what_lies_behind_a_kink_is_doubted_where_less_is_trusted() -> None:
    walk = model({22: 89, 23: 85, 24: 80, 25: 88})
    assert behind_kinks(walk, VIDEO) == set(range(22, FRAMES))
    assert sides_of_kinks(walk, VIDEO) == [set(range(25)), set(range(24, FRAMES)), set(range(22, 26))]
    little = model({22: 89, 23: 85, 24: 80, 25: 88}, trusted=range(12, FRAMES))
    assert behind_kinks(little, VIDEO) == set(range(26))


@pytest.mark.parametrize(("common", "is_held"), [(40, False), (200, True)])
def test_only_the_kink_is_doubted_where_both_sides_see_the_same(common: int, is_held: bool) -> None:
    """A camera that looks around and comes back: it sees behind the kink what it saw before."""
    walk = model({22: 89, 23: 85, 24: 80, 25: 88})
    both_see = np.tile([3, 8, 30, 35], common)
    held = replace(walk, view=both_see, point=np.arange(common).repeat(4), xyz=np.zeros((common, 3)))
    assert behind_kinks(held, VIDEO) == set(range(22, 26 if is_held else FRAMES))
    assert sides_of_kinks(held, VIDEO)[-1] == set(range(22, 26))
    assert len(sides_of_kinks(held, VIDEO)) == (1 if is_held else 3)


@pytest.mark.parametrize(("inside", "doubted"), [([22, 23], 0), ([22], 4), ([], 4)])
def test_frames_that_fit_badly_are_no_kink_where_both_sides_hold_them(inside: list[int], doubted: int) -> None:
    """Leaves that move, say, or a mirror, spoil matches, but what else the frames show tells where they were taken."""
    walk = model({22: 89, 23: 85, 24: 80, 25: 88})
    seen = [3, 8, 30, 35, *inside]  # a part holds another one by points that two of its frames see
    points = {"view": np.tile(seen, 200), "point": np.arange(200).repeat(len(seen)), "xyz": np.zeros((200, 3))}
    assert len(behind_kinks(replace(walk, **points), VIDEO)) == doubted


@pytest.mark.parametrize(("common", "is_held"), [(40, False), (200, True)])
def test_what_lies_behind_a_sidestep_is_doubted_unless_both_sides_see_the_same(common: int, is_held: bool) -> None:
    """An office walk on its side: behind a frame 60 cm beside its path, nine others were 20 to 47 cm off."""
    walk = model({}, trusted=range(30))
    doubts = [BESIDE if i in (30, 31) else None for i in range(FRAMES)]
    both_see = np.tile([3, 8, 33, 35], common)
    points = {"view": both_see, "point": np.arange(common).repeat(4), "xyz": np.zeros((common, 3))}
    walk = replace(walk, **points, report={**walk.report, "doubts": doubts})
    assert behind_sidesteps(walk, VIDEO) == set(range(30, 32 if is_held else FRAMES))
    assert behind_sidesteps(model({}, trusted=range(12, FRAMES)), VIDEO) == set(), "doubted for another reason"


def test_frames_that_the_model_lacks_do_not_break_a_kink() -> None:
    assert behind_kinks(model({6: 89, 7: 85, 9: 80, 10: 88}, has=range(0, FRAMES)), VIDEO) == set()
    low = {index: 85 for index in range(5, 10)}
    without = model(low | {20: 60, 21: 60}, has=range(20))
    assert behind_kinks(without, VIDEO) == set(range(10))


@pytest.mark.parametrize(
    "fitting",
    [{}, {20: 60}, {20: 60, 21: 70, 22: 80}, dict.fromkeys(range(15, 25), 93), dict.fromkeys(range(FRAMES), 60)],
    ids=["right", "a blurred frame", "three", "hardly less", "a hard video"],
)
def test_single_bad_frames_are_no_kink(fitting: Mapping[int, int]) -> None:
    assert kinks(model(fitting), VIDEO) == [] and behind_kinks(model(fitting), VIDEO) == set()


def test_photos_have_no_kinks() -> None:
    assert kinks(model({22: 89, 23: 85, 24: 80, 25: 88}), []) == []


def test_last_frames_that_fit_badly_are_doubted() -> None:
    """The last three of an office walk were 12 to 21 cm off, and nothing told; first and blurred ones are right."""
    walk = model({0: 80, 20: 80, 36: 80, 38: 88, 39: 85})
    assert frayed(walk, VIDEO) == {38, 39} and frayed(walk, []) == set()
    assert frayed(model({36: 80, 37: 88}, has=range(38)), VIDEO) == {36, 37}, "those behind them are not registered"
    assert frayed(model({}), VIDEO) == frayed(model({}, has=range(0)), VIDEO) == set()
