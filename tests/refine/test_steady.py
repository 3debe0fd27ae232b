"""Frames of a video that few points tie to the others are placed where the camera goes on steadily."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_ties import moved, turn, walk

from lean3r.refine.equations import Equations
from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of
from lean3r.refine.steady import OPTIMISTIC, _larger, steadied
from lean3r.refine.ties import LOOSE

FRAMES, LAST, STEP = 24, range(16, 24), 0.4
TIMES = [0.1 * view for view in range(FRAMES)]


def astray(answer: Answer, rng: np.random.Generator) -> Answer:
    """The answer with its last frames where measurements may have put them."""
    of, last = Equations(answer), np.array(LAST)
    information = of.information().reshape(FRAMES, 6, FRAMES, 6)[last][:, :, last].reshape(6 * len(last), -1)
    move = OPTIMISTIC * np.linalg.solve(np.linalg.cholesky(information).T, rng.normal(size=len(information)))
    poses = answer.cam_from_world.copy()
    for view, (turned, shift) in zip(LAST, move.reshape(-1, 2, 3), strict=True):
        poses[view, :3, :3] = turn(turned) @ poses[view, :3, :3]
        poses[view, :3, 3] += shift * of.unit
    return replace(answer, cam_from_world=poses)


def steady(answer: Answer) -> Answer:
    return steadied(doubting(answer), [range(FRAMES)], TIMES)


def doubting(answer: Answer) -> Answer:
    return answer.with_doubts(LAST, LOOSE)


def off(answer: Answer, truth: Answer) -> float:
    """The root mean square error of the last frames' places."""
    apart = centres_of(answer.cam_from_world)[LAST] - centres_of(truth.cam_from_world)[LAST]
    return float(np.sqrt((apart**2).sum(1).mean()))


def test_places_that_measurements_leave_open_follow_the_motion() -> None:
    truth, rng = walk(FRAMES, 1500, STEP, shared=12, shake=0.01), np.random.default_rng(0)
    before = [astray(truth, rng) for _ in range(12)]
    after = [steady(answer) for answer in before]
    error, left = (np.array([off(answer, truth) for answer in answers]) for answers in (before, after))
    assert np.median(error) > STEP / 4, "the measurements do leave them open"
    assert np.median(left) < 0.5 * np.median(error)
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old.cam_from_world[:16], new.cam_from_world[:16]), "the others stay"


@pytest.mark.parametrize("last", [range(16, 24), range(8)])
@pytest.mark.parametrize("size", [0.001, 4.0])
def test_a_part_that_came_out_far_too_small_or_large_gets_the_size_of_usual_speeds(last: range, size: float) -> None:
    truth = walk(FRAMES, 1500, STEP, shared=2, shake=0.01)
    if last[0] == 0:  # the same walk backwards
        truth = replace(truth, cam_from_world=truth.cam_from_world[::-1].copy(), view=(FRAMES - 1 - truth.view))
    joint = centres_of(truth.cam_from_world)[15 if last[0] else 8]
    answer = _larger(truth, np.array(last), joint, size).with_doubts(last, LOOSE)
    found = centres_of(steadied(answer, [range(FRAMES)], TIMES).cam_from_world)
    before, left = (
        np.linalg.norm(each - centres_of(truth.cam_from_world), axis=1)
        for each in (centres_of(answer.cam_from_world), found)
    )
    assert left[last].max() < 0.2 * before[last].max()
    np.testing.assert_array_equal(np.delete(left, last), 0, "the others stay")


def test_what_many_points_tie_stays_even_where_the_camera_jerks() -> None:
    truth = walk(FRAMES, 1500, STEP, shake=0.01)
    jerking = truth.cam_from_world.copy()
    jerking[16:, :3, 3] -= jerking[16:, :3, :3] @ np.array([0.0, STEP, 0.0])
    answer = Answer(**{**vars(truth), "cam_from_world": jerking})
    assert off(steady(answer), answer) < 0.05 * STEP


def test_the_unit_of_the_world_does_not_matter() -> None:
    answer = astray(walk(FRAMES, 1500, STEP, shared=12, shake=0.01), np.random.default_rng(1))
    turned = (1000.0, np.array([0.3, -1.0, 0.5]), np.array([4.0, -2.0, 9.0]))
    plain, other = moved(steady(answer), *turned), steady(moved(answer, *turned))
    np.testing.assert_allclose(centres_of(other.cam_from_world), centres_of(plain.cam_from_world), atol=0.5)


def test_without_a_motion_to_go_by_nothing_moves() -> None:
    answer = astray(walk(FRAMES, 1500, STEP, shared=3), np.random.default_rng(1))
    for runs, times in (([], TIMES), ([range(FRAMES)], [None] * FRAMES), ([range(14, FRAMES)], TIMES)):
        assert steadied(answer, runs, times) is answer
    same = [0.0] * FRAMES
    assert steadied(answer, [range(FRAMES)], same) is answer, "frames of one time"
    firm = walk(FRAMES, 1500, STEP)
    assert steadied(firm, [range(FRAMES)], TIMES) is firm, "no frame is loose"
