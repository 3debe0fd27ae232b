"""Frames of a video that few points tie to the others are doubted, by the covariance of the adjustment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lean3r.refine import ties
from lean3r.refine.job import Answer
from lean3r.refine.judge import centres_of

FOCAL, WIDTH, REACH, DEPTH = 400.0, 540, 2.0, 4.0


def walk(
    views: int, points: int, step: float = 0.4, shared: int | None = None, resting: int = 0, shake: float = 0.1
) -> Answer:
    """Cameras in a row that look at points before them, slightly turned; the first ones all but rest. With `shared`, no
    more than so many points are seen from both sides of a frame two thirds of the way along. The path shakes."""
    rng = np.random.default_rng(0)
    x = step * np.maximum(np.arange(views) - resting, 0.01 * np.arange(views))
    spread = np.where(np.arange(views) < resting, 0.003, shake)
    centres = np.stack([x, spread * rng.normal(size=views), spread * rng.normal(size=views)], axis=1)
    xyz = rng.uniform((x[0] - 1, -1.5, 0.7 * DEPTH), (x[-1] + 1, 1.5, 1.3 * DEPTH), (points, 3))
    poses = np.tile(np.eye(4), (views, 1, 1))
    poses[:, :3, :3] = [turn(each) for each in 0.05 * rng.normal(size=(views, 3))]
    poses[:, :3, 3] = -(poses[:, :3, :3] @ centres[..., None])[..., 0]
    point, view = np.nonzero(np.abs(xyz[:, None, 0] - x) < REACH)
    if shared is not None:
        cut = 2 * views // 3
        behind = view >= cut
        both = np.intersect1d(point[behind], point[~behind])
        cut_off = np.isin(point, both[shared:]) & (behind == (point % 3 > 0))
        point, view = point[~cut_off], view[~cut_off]
    return Answer(
        poses,
        np.ones(views, bool),
        ("SIMPLE_RADIAL",),
        ((FOCAL, WIDTH / 2, WIDTH / 3, 0.0),),
        (0,) * views,
        xyz,
        np.full(points, 0.9),
        point.astype(np.int32),
        view.astype(np.int32),
        np.zeros((len(point), 2)),
        {"doubts": [None] * views},
    )


def turn(vector: np.ndarray) -> np.ndarray:
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / max(angle, 1e-30)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def moved(answer: Answer, scale: float, vector: np.ndarray, shift: np.ndarray) -> Answer:
    """The same in another world."""
    rotation, poses = turn(vector), answer.cam_from_world.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ rotation.T
    poses[:, :3, 3] = scale * poses[:, :3, 3] - poses[:, :3, :3] @ shift
    return replace(answer, cam_from_world=poses, xyz=scale * answer.xyz @ rotation.T + shift)


def deviation(answer: Answer, part: int) -> np.ndarray:
    return ties.Deviations(answer).seen_from(np.arange(part))


def test_deviations_are_those_of_the_whole_adjustment_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """All derivatives by differences, all unknowns in one matrix, and its pseudo-inverse."""
    answer = walk(6, 40)
    answer = replace(answer, error_px=np.linspace(0.2, 0.8, 40))
    views, points, part = 6, 40, 4
    often = np.bincount(answer.point[answer.view < part], minlength=points)
    monkeypatch.setattr(ties, "SEEN", int((often == part).sum()))
    seen = np.flatnonzero(often == part)
    assert 3 < len(seen) < points

    def residuals(unknowns: np.ndarray) -> np.ndarray:
        by_view, by_point = unknowns[: 6 * views].reshape(views, 6), unknowns[6 * views :].reshape(points, 3)
        rotations = np.stack(
            [turn(w) @ pose[:3, :3] for w, pose in zip(by_view[:, :3], answer.cam_from_world, strict=True)]
        )
        xyz = (answer.xyz + by_point)[answer.point]
        cam = (rotations[answer.view] @ xyz[..., None])[..., 0]
        cam += (answer.cam_from_world[:, :3, 3] + by_view[:, 3:])[answer.view]
        weight = np.sqrt(1 / (1 + answer.error_px**2))[answer.point] * 1.2533 / answer.error_px.mean()
        return (FOCAL * cam[:, :2] / cam[:, 2:] * weight[:, None]).ravel()

    def places(unknowns: np.ndarray) -> np.ndarray:
        """Of the cameras, and of the points that most cameras of the part see."""
        by_view, by_point = unknowns[: 6 * views].reshape(views, 6), unknowns[6 * views :].reshape(points, 3)
        centres = [
            -(turn(each[:3]) @ pose[:3, :3]).T @ (pose[:3, 3] + each[3:])
            for each, pose in zip(by_view, answer.cam_from_world, strict=True)
        ]
        return np.concatenate([*centres, (answer.xyz + by_point)[seen].ravel()])

    def slopes(function: Any, count: int) -> np.ndarray:
        steps = 1e-5 * np.eye(count)
        return np.stack([(function(step) - function(-step)) / 2e-5 for step in steps], axis=1)

    count = 6 * views + 3 * points
    jacobian = slopes(residuals, count)
    to_places = slopes(places, count)
    covariance = to_places @ np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-9) @ to_places.T
    at = places(np.zeros(count)).reshape(-1, 3)
    fixed = np.r_[:part, views : len(at)]

    def after_fit(fixed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Variance of all places, after the similarity that fits some of them best."""
        at_unknowns, root = (3 * fixed[:, None] + np.arange(3)).ravel(), np.repeat(weights**0.5, 3)
        moves = ties._moves(at - at[0]).reshape(-1, 7)
        keep = np.eye(3 * len(at))
        keep[:, at_unknowns] -= moves @ np.linalg.lstsq(root[:, None] * moves[at_unknowns], np.diag(root))[0]
        return np.diag(keep @ covariance @ keep.T).reshape(-1, 3).sum(1)

    weights = 1 / after_fit(np.arange(views), np.ones(views))
    expected = np.sqrt(after_fit(fixed, weights[fixed]))[:views]
    np.testing.assert_allclose(deviation(answer, part), expected, rtol=1e-3)


def test_deviations_do_not_depend_on_the_world_and_grow_with_its_unit() -> None:
    answer = walk(16, 300)
    plain = deviation(answer, 5)
    assert plain[:5].max() < plain[-1] and np.all(np.diff(plain[5:]) > 0), "they grow along the way"
    other = moved(answer, 7.0, np.array([0.3, -1.0, 0.5]), np.array([4.0, -2.0, 9.0]))
    np.testing.assert_allclose(deviation(other, 5), 7 * plain, rtol=1e-4)
    rougher = deviation(replace(answer, error_px=2 * answer.error_px), 5)
    np.testing.assert_allclose(rougher / plain, 2 * np.sqrt((1 + 1.8**2) / (1 + 0.9**2)), err_msg="noise, and outliers")


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_frames_behind_a_place_that_few_points_bridge_are_doubted(scale: float) -> None:
    frames = range(24)

    def doubted(answer: Answer) -> list[int]:
        return ties.loosely_tied(moved(answer, scale, np.ones(3), np.ones(3)), [frames])

    assert doubted(walk(24, 1500)) == [], "many points see all of the way"
    assert doubted(walk(24, 1500, shared=3)) == list(range(16, 24)), "the smaller side"
    answer = walk(24, 1500, shared=3)
    firm = {"doubts": [None if view >= 12 else "for another reason" for view in frames]}
    assert ties.loosely_tied(replace(answer, report=firm), [frames])[:2] == [0, 1], "where fewer frames are trusted"


@pytest.mark.parametrize("size", [0.05, 0.0005])
def test_frames_that_collapsed_to_a_small_part_of_their_size_are_doubted(size: float) -> None:
    answer, last = walk(24, 1500, shared=3), range(16, 24)
    poses, xyz = answer.cam_from_world.copy(), answer.xyz.copy()
    joint = centres_of(poses)[15]
    mine = np.isin(np.arange(len(xyz)), answer.point[answer.view >= 16])
    mine &= ~np.isin(np.arange(len(xyz)), answer.point[answer.view < 16])
    xyz[mine] = joint + size * (xyz[mine] - joint)
    centres = joint + size * (centres_of(poses) - joint)
    poses[16:, :3, 3] = -(poses[16:, :3, :3] @ centres[16:, :, None])[..., 0]
    found = ties.loosely_tied(replace(answer, cam_from_world=poses, xyz=xyz), [range(24)])
    assert found == list(last), "although they move by nothing, in the unit of the others"


def test_frames_that_hang_loosely_on_those_that_join_them_to_what_was_found_before_are_doubted() -> None:
    answer, frames = walk(24, 1500, shared=3), range(24)
    assert ties.loosely_tied(answer, [frames], range(6)) == list(range(16, 24))
    assert ties.loosely_tied(answer, [frames], range(16, 24)) == list(range(16)), "although they are most"
    assert ties.loosely_tied(answer, [frames], range(20, 24)) == list(range(16, 24)), "too few to tell"
    one = {"doubts": [None if view < 16 or view > 20 else "for another reason" for view in frames]}
    assert ties.loosely_tied(replace(answer, report=one), [frames], range(16, 24)) == list(range(16, 24)), (
        "trusted ones"
    )
    assert ties.loosely_tied(walk(24, 1500), [frames], range(6)) == []


def test_a_camera_that_turns_on_the_spot_is_tied_by_the_points_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = walk(24, 1500, resting=8)
    assert ties.loosely_tied(answer, [range(24)], range(8)) == []
    monkeypatch.setattr(ties, "SEEN", 0)
    assert len(ties.loosely_tied(answer, [range(24)], range(8))) > 12, "by the cameras alone hardly anything is"


def test_only_videos_with_enough_frames_are_asked() -> None:
    answer = walk(24, 1500, shared=3)
    assert ties.loosely_tied(answer, []) == [] == ties.loosely_tied(answer, [range(8, 19)])
    some = replace(answer, has=np.arange(24) % 3 > 0)
    assert set(ties.loosely_tied(some, [range(24)])) <= set(range(16, 24)), "views without a pose are left out"
    nothing = replace(answer, point=answer.point[:0], view=answer.view[:0], xy=answer.xy[:0])
    assert ties.loosely_tied(nothing, [range(24)]) == []
    broken = replace(answer, xyz=np.full_like(answer.xyz, np.nan))
    assert ties.loosely_tied(broken, [range(24)]) == [], "an equation that cannot be solved costs no model"
