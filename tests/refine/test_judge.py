"""The judge: what hangs by few points, contradicts its matches or jumps is doubted; what is sound is not."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lean3r.refine.judge import LEAST_SEEN, LEAST_TIES, far_outside, firm_parts, judge, places, sidesteps, unbroken
from lean3r.refine.sequence import pairs_along, sequences
from lean3r.types import Source


def walk(count: int, step: float = 0.1) -> np.ndarray:
    """Poses [S, 4, 4] of a camera that walks along x and looks along z."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 3] = -step * np.arange(count)
    return poses


def tracks(count: int, points: int = 20, length: int = 4) -> np.ndarray:
    """seen [P, S]: each point by `length` frames, one after the other."""
    seen = np.zeros((count * points, count), bool)
    for start in range(count):
        seen[start * points : (start + 1) * points, start : start + length] = True
    return seen[seen.sum(axis=1) >= 2]


def verdict(poses: np.ndarray, seen: np.ndarray, fitting: np.ndarray | None = None):
    count = len(poses)
    none = np.full((count, count), np.nan)
    has = np.ones(count, bool)
    return judge(poses, has, seen, none if fitting is None else fitting, [(list(range(count)), np.arange(count) / 10)])


def test_a_good_walk_is_trusted() -> None:
    assert verdict(walk(30), tracks(30)).trusted.all()


def test_a_group_connected_by_few_points_is_a_separate_part() -> None:
    seen = tracks(20)
    across = seen[:, :12].any(axis=1) & seen[:, 12:].any(axis=1)
    kept = np.flatnonzero(across)[: LEAST_TIES - 2]
    seen = np.concatenate([seen[~across], seen[kept]])
    found = verdict(walk(20), seen)
    assert found.part == (0,) * 12 + (1,) * 8
    assert found.trusted.tolist() == [True] * 12 + [False] * 8 and "connect" in str(found.doubt[-1])


def test_a_group_connected_through_one_view_has_a_poorly_constrained_scale() -> None:
    seen = np.zeros((200, 8), bool)
    seen[:100, :5] = True
    seen[100:, 4:] = True  # the last three see much of what view 4 sees, and nothing that two others do
    assert verdict(walk(8), seen).trusted.tolist() == [True] * 5 + [False] * 3


def test_parts_that_constrain_each_others_scale_are_one() -> None:
    seen = np.zeros((211, 10), bool)
    seen[:100, :5] = True
    seen[100:200, 5:] = True
    seen[200:205, [1, 3, 7]] = True  # two of the first part, one of the second
    seen[205:211, [2, 5, 8]] = True
    assert verdict(walk(10), seen).trusted.all()
    assert verdict(walk(10), seen[:209]).trusted.sum() == 5, "one way alone leaves the other part's scale open"


def test_a_frame_off_the_path_is_uncertain_and_corners_are_not() -> None:
    poses = walk(30)
    poses[17, 1, 3] = 0.15
    found = verdict(poses, tracks(30))
    assert np.flatnonzero(~found.trusted).tolist() == [17] and "beside the path" in str(found.doubt[17])
    angle = np.linspace(0, np.pi, 30).clip(np.pi / 3, np.pi / 2)  # straight, a quick turn, straight
    corner = walk(30)
    corner[:, :2, 3] = -0.1 * np.cumsum(np.stack([np.cos(angle), np.sin(angle)], axis=1), axis=0)
    assert verdict(corner, tracks(30)).trusted.all()
    uneven = np.r_[0:10, 10:30:3, 30:40] * 1.0  # fewer frames where less happens
    assert not sidesteps(np.stack([uneven, 0.002 * uneven**2, 0 * uneven], axis=1), uneven).any()


def test_jumps_and_returns_from_them() -> None:
    poses = walk(30)
    poses[17, 1, 3] = 5.0
    assert np.flatnonzero(~verdict(poses, tracks(30)).trusted).tolist() == [17]
    poses = walk(30)
    poses[22:, 1, 3] = 5.0
    assert np.flatnonzero(~verdict(poses, tracks(30)).trusted).tolist() == list(range(22, 30))


def test_a_rest_is_not_a_jump() -> None:
    poses = walk(30)
    poses[10:20, 0, 3] = poses[10, 0, 3] - 1e-6 * np.arange(10)
    poses[20:, 0, 3] += 0.9
    assert verdict(poses, tracks(30)).trusted.all()


def test_views_that_their_matches_contradict_and_views_without_any() -> None:
    count = 10
    fitting = np.full((count, count), 0.95)
    fitting[4] = fitting[:, 4] = 0.1
    found = verdict(walk(count), tracks(count), fitting)
    assert np.flatnonzero(~found.trusted).tolist() == [4] and "contradict" in str(found.doubt[4])
    has = np.ones(count, bool)
    has[7] = False
    seen = tracks(count, 40)
    seen[:, 7] = False
    lacking = judge(walk(count), has, seen, np.full((count, count), 0.95))
    assert np.flatnonzero(~lacking.trusted).tolist() == [7] and lacking.part[7] == -1


def test_a_photograph_that_sees_few_points_is_doubted_and_a_frame_is_not() -> None:
    count = 6
    seen = tracks(count, LEAST_SEEN)
    at = np.flatnonzero(seen[:, 5])
    seen[at[LEAST_SEEN - 1 :], 5] = False
    fitting = np.full((count, count), 0.95)
    found = judge(walk(count), np.ones(count, bool), seen, fitting)
    assert np.flatnonzero(~found.trusted).tolist() == [5] and "confirm" in str(found.doubt[5])
    assert verdict(walk(count), seen).trusted.all()


def test_a_photograph_that_hangs_on_a_doubted_one_is_doubted_and_a_frame_is_not() -> None:
    """Both were certain in a place of windows that repeat: 93 degrees off."""
    count = 7
    fitting = np.full((count, count), 0.95)
    fitting[5] = fitting[:, 5] = 0.1
    seen = tracks(count, LEAST_SEEN)
    seen[np.flatnonzero(seen[:, :5].any(axis=1))[:-12], 6] = False
    found = judge(walk(count), np.ones(count, bool), seen, fitting)
    assert np.flatnonzero(~found.trusted).tolist() == [5, 6] and "confirm" in str(found.doubt[6])
    assert np.flatnonzero(~verdict(walk(count), seen, fitting).trusted).tolist() == [5]
    held = np.arange(count) == 5
    assert judge(walk(count), np.ones(count, bool), seen, fitting, held=held).trusted.all()


def test_groups_of_photographs_that_hang_on_each_other_by_few_points_are_not_both_trusted() -> None:
    """Blurred photos of a banana: three and two, 45 degrees off each other, by seven points."""
    fitting = np.full((7, 7), 0.95)
    for crossing, trusted in ((LEAST_SEEN - 1, [0, 1, 2, 3]), (LEAST_SEEN, list(range(7)))):
        seen = np.zeros((200 + crossing, 7), bool)
        seen[:100, :4] = seen[100:200, 4:] = True
        seen[200:, 2:6] = True
        found = judge(walk(7), np.ones(7, bool), seen, fitting)
        assert np.flatnonzero(found.trusted).tolist() == trusted
        assert found.trusted.all() or "confirm" in str(found.doubt[5])
        assert verdict(walk(7), seen, fitting).trusted.all()  # frames of a video


def test_cameras_far_outside() -> None:
    centres = np.random.default_rng(0).normal(size=(12, 3))
    centres[3] *= 800
    assert np.flatnonzero(far_outside(centres, np.ones(12, bool))).tolist() == [3]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**31), st.floats(0.05, 0.6))
def test_parts_are_disjoint_and_trusted_views_do_not_depend_on_scale_or_order_of_points(
    views: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.random((150, views)) < share
    parts = firm_parts(seen, np.arange(views))
    flat = [view for part in parts for view in part]
    assert len(flat) == len(set(flat)) and all(len(part) > 1 for part in parts)
    assert [len(p) for p in parts] == sorted((len(p) for p in parts), reverse=True)
    centres = rng.normal(size=(views, 3))
    frames = np.arange(views)
    assert np.array_equal(unbroken(centres, frames), unbroken(1e4 * centres + 7, frames))
    assert firm_parts(seen[rng.permutation(150)], np.arange(views)) == parts


def test_runs_of_frames_and_their_pairs() -> None:
    def frame(number: int, clip: str = "a") -> Source:
        return Source(f"{clip}_{number:06d}.png", 64, 48, timestamp_s=number / 10)

    sources = [Source("x.jpg", 64, 48), frame(0), frame(3), frame(9), frame(0, "b"), frame(5, "b"), frame(1)]
    assert sequences(sources) == [[1, 2, 3], [4, 5]]
    pairs = pairs_along([[1, 2, 3], [4, 5]])
    assert sorted(map(tuple, pairs.tolist())) == [(1, 2), (1, 3), (2, 3), (4, 5)]
    assert pairs_along([]).shape == (0, 2)


def test_places_are_counted_once() -> None:
    """Copies and bursts are from one place, and one view far away makes none of the others the same."""
    way = np.array([[x, 0.1 * x**2, 0] for x in range(7)], float)
    burst = way[0] + 1e-3 * np.random.default_rng(0).normal(size=(4, 3))
    assert places(way) == places(np.repeat(way, 3, axis=0)) == 7
    assert places(way[:2].repeat(2, axis=0)) == places(np.concatenate([burst, way[1:2]])) == 2
    assert places(np.concatenate([way, [[900.0, 0, 0]]])) == 8
    assert places(np.zeros((5, 3))) == places(np.zeros((1, 3))) == 1


def test_a_way_in_small_steps_leads_to_many_places() -> None:
    """Each step is short beside the whole way, which would be one place, and leave the focal length as it was."""
    along = np.linspace(0, 1, 200)[:, None]
    angle = 2 * np.pi * along
    straight, ring = along * [1.0, 0, 0], np.concatenate([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    assert min(places(straight), places(ring)) > 50
