"""Windows are joined by robust evidence: the law of the join, and what makes a join bad."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lean3r.stream import sim3
from lean3r.stream.join import Shared, join
from lean3r.stream.result import Result, join_results


def window_pair(seed: int, frames: int = 8, outliers: float = 0.2, bad: int = 1) -> tuple[list[Shared], np.ndarray]:
    """Frames in two windows whose worlds differ by a known similarity: noise (2 % of depth, 0.1
    degrees and 5 mm of poses), outlier pixels, wrong poses."""
    rng = np.random.default_rng(seed)
    truth = sim3.exp(np.concatenate([rng.normal(0, 0.6, 3), rng.normal(0, 2, 3), [rng.uniform(-0.7, 0.7)]]))
    scale = sim3.parts(truth)[0]
    y, x = (np.indices((64, 96)) + 0.5 - [[[32]], [[48]]]) / 100
    slopes = np.stack([x, y], axis=-1)
    shared = []
    for number in range(frames):
        pose = sim3.exp(np.concatenate([rng.normal(0, 0.2, 3), rng.normal(0, 0.4, 3), [0.0]]))
        near = 3 + np.cumsum(rng.normal(0, 0.05, (64, 96)), axis=1)
        shaken = sim3.exp(np.concatenate([rng.normal(0, np.deg2rad(0.1), 3), rng.normal(0, 0.005, 3), [0.0]])) @ pose
        second = (
            shaken if number >= bad else sim3.exp(np.concatenate([rng.normal(0, 0.7, 3), rng.normal(0, 2, 3), [0]]))
        )
        depths = [near * rng.lognormal(0, 0.02, near.shape), near * rng.lognormal(0, 0.02, near.shape)]
        wrong = rng.random(near.shape) < outliers
        depths[1] = np.where(wrong, near * rng.lognormal(0.4, 0.8, near.shape), depths[1])
        # The first window's world is the second's, moved by the truth.
        first = sim3.move_poses(truth, pose)
        conf = (np.ones_like(near), np.ones_like(near))
        shared.append(Shared((first, second), (scale * depths[0], depths[1]), conf, slopes))
    return shared, truth


@pytest.mark.parametrize("seed", range(12))
def test_scale_and_rotation_survive_outliers_and_a_bad_pose(seed: int) -> None:
    shared, truth = window_pair(seed)
    found = join(shared)
    assert found is not None and found.is_good
    scale, rotation, _ = sim3.parts(found.matrix @ np.linalg.inv(truth))
    assert abs(np.log(scale)) < 0.005
    assert np.rad2deg(sim3.angle_rad(rotation)) < 0.2
    assert found.frames == 7 and found.shared == 8


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_sound_frames_suffice(frames: int) -> None:
    shared, truth = window_pair(3, frames, bad=0)
    found = join(shared)
    assert found is not None and found.is_good
    scale, rotation, _ = sim3.parts(found.matrix @ np.linalg.inv(truth))
    assert abs(np.log(scale)) < 0.02 and np.rad2deg(sim3.angle_rad(rotation)) < 0.5


def test_windows_that_contradict_each_other_are_marked() -> None:
    found = join(window_pair(1, bad=8)[0])
    assert found is not None and not found.is_good and found.as_dict()["bad"]


@pytest.mark.parametrize("frames", [4, 12])
def test_cameras_that_went_the_same_way_join_windows_whose_depth_is_poor(frames: int) -> None:
    shared, truth = window_pair(5, frames, outliers=0.0, bad=0)
    rng = np.random.default_rng(0)
    poor = [
        replace(each, depths=(each.depths[0], each.depths[1] * np.exp(rng.normal(0, 0.3, each.depths[1].shape))))
        for each in shared
    ]
    found = join(poor)
    assert found is not None and found.residual > 0.15
    assert found.is_good == (frames > 6), "any similarity fits few cameras"
    scale, rotation, _ = sim3.parts(found.matrix @ np.linalg.inv(truth))
    assert abs(np.log(scale)) < 0.05 and np.rad2deg(sim3.angle_rad(rotation)) < 0.5
    other = [  # now they went another way
        replace(each, poses=(each.poses[0], sim3.exp(np.r_[0, 0, 0, rng.normal(0, 0.5, 3), 0]) @ each.poses[1]))
        for each in poor
    ]
    contradicting = join(other)
    assert contradicting is not None and not contradicting.is_good


def test_the_way_of_adjusted_cameras_gives_the_scale_where_depth_does_not() -> None:
    """Depth that is 8 % too large in one window; where the ways differ, depth is all that there is."""
    shared, truth = window_pair(4, 8, outliers=0.1)
    rng = np.random.default_rng(0)
    large = [replace(each, depths=(each.depths[0], 1.08 * each.depths[1])) for each in shared]
    astray = [
        replace(each, poses=(each.poses[0], sim3.exp(np.r_[0, 0, 0, rng.normal(0, 0.3, 3), 0]) @ each.poses[1]))
        for each in large
    ]
    off = {}
    for name, frames, are_adjusted in (
        ("adjusted", large, True),
        ("predicted", large, False),
        ("few", large[:4], True),
        ("astray", astray, True),
    ):
        found = join(frames, are_adjusted)
        assert found is not None
        off[name] = abs(np.log(sim3.parts(found.matrix @ np.linalg.inv(truth))[0]))
    assert off["adjusted"] < 0.01 and all(0.03 < each < 0.2 for name, each in off.items() if name != "adjusted")


@pytest.mark.parametrize(("sure", "is_good"), [(8, True), (2, True), (1, False), (0, False)])
def test_windows_are_joined_by_cameras_that_both_trust(sure: int, is_good: bool) -> None:
    """By others they are placed, but marked: whatever follows may be far off."""
    shared, truth = window_pair(2, bad=0)

    def results(which: int) -> list[Result]:
        return [
            SimpleNamespace(
                pose=each.poses[which],
                depth=each.depths[which],
                conf=each.confs[which],
                slopes=each.slopes,
                is_certain=number < sure or which == number % 2,
                is_adjusted=False,
            )
            for number, each in enumerate(shared)
        ]  # type: ignore[return-value]

    found = join_results(list(zip(results(0), results(1), strict=True)))
    assert found.is_good == is_good and (is_good or f"{sure} are certain" in str(found.why_bad))
    scale, _, _ = sim3.parts(found.matrix @ np.linalg.inv(truth))
    assert abs(np.log(scale)) < 0.02
    assert found.shared == (sure if is_good else 8)


def test_without_depth_in_common_there_is_no_join() -> None:
    shared, _ = window_pair(0, 2, bad=0)
    empty = [Shared(each.poses, (each.depths[0], 0 * each.depths[1]), each.confs, each.slopes) for each in shared]
    assert join(empty) is None


def test_poses_follow_points() -> None:
    rng = np.random.default_rng(0)
    matrix = sim3.exp(rng.normal(0, 0.5, 7))
    pose = sim3.exp(np.append(rng.normal(0, 0.5, 6), 0.0))
    point = rng.normal(0, 1, 3)
    moved = sim3.move_poses(matrix, pose)
    before = pose[:3, :3] @ point + pose[:3, 3]
    after = moved[:3, :3] @ sim3.move_points(matrix, point) + moved[:3, 3]
    assert np.allclose(after, sim3.parts(matrix)[0] * before)


def test_interpolated_poses_pass_through_keyframes_and_are_straight_on_straight_ways() -> None:
    poses = np.stack([sim3.exp(np.array([0, 0.1 * x, 0, -x, 0, 0, 0.0])) for x in range(5)])
    poses[:, :3, :3] = np.eye(3)
    at = np.array([0.0, 1, 2, 3, 4])
    assert np.allclose(sim3.between(poses, at, 2.0), poses[2])
    assert np.allclose(sim3.centres(sim3.between(poses, at, 1.25)), [1.25, 0, 0])
    assert np.allclose(sim3.between(poses, at, 9.0), poses[4]) and np.allclose(sim3.between(poses, at, -1.0), poses[0])


def test_motion_goes_on_behind_the_last_pose() -> None:
    straight = np.stack([sim3.exp(np.array([0, 0, 0, -x, 0, 0, 0.0])) for x in (0.0, 2.0)])
    assert np.allclose(sim3.centres(sim3.beyond(*straight, 0.25)), [2.5, 0, 0])
    turning = [sim3.exp(np.array([0, 0.2 * x, 0, 0, 0, 0, 0.0])) for x in range(4)]
    assert np.allclose(sim3.beyond(turning[1], turning[2], 1.0), turning[3])
    assert np.allclose(sim3.beyond(turning[1], turning[2], 0.0), turning[2])
