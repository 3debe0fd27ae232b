"""The measure by which refined cameras are taken or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lean3r.colmap_library import pycolmap
from lean3r.refine.accept import Fit, errors_px, fit, pair_errors, turn_only, why_not_better
from lean3r.refine.matching import Matches


def rays(points: np.ndarray) -> np.ndarray:
    return points[:, :2] / points[:, 2:]


def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rays of the same points in two cameras, and b_from_a."""
    points = np.random.default_rng(0).normal((0, 0, 6), 1, (80, 3))
    pose, c, s = np.eye(4), np.cos(0.3), np.sin(0.3)
    pose[:3, :3], pose[:3, 3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]], (-1.5, 0.2, 0.1)
    return rays(points), rays(points @ pose[:3, :3].T + pose[:3, 3]), pose


def test_true_cameras_have_no_error_whatever_the_length_of_the_baseline() -> None:
    a, b, pose = pair()
    longer = pose.copy()
    longer[:3, 3] *= 1000
    assert pair_errors(a, b, pose).max() < 1e-12 and np.allclose(pair_errors(a, b, longer), pair_errors(a, b, pose))


def test_error_is_that_of_the_measurement_and_symmetric() -> None:
    a, b, pose = pair()
    moved = b + np.random.default_rng(1).normal(size=b.shape) * 1e-3
    error = pair_errors(a, moved, pose)
    assert 1e-4 < np.median(error) < 1e-3
    assert np.allclose(error, pair_errors(moved, a, np.linalg.inv(pose)))


def test_points_behind_a_camera_are_not_inliers() -> None:
    a, b, pose = pair()
    pose[:3, 3] *= -1
    assert np.isinf(pair_errors(a, b, pose)).mean() > 0.9


def test_without_a_baseline_the_rotated_ray_counts() -> None:
    a, _, pose = pair()
    pose[:3, 3] = 0
    b = rays(np.hstack([a, np.ones((len(a), 1))]) @ pose[:3, :3].T)
    assert pair_errors(a, b, pose).max() < 1e-12 and pair_errors(a, b + 0.01, pose).min() > 0.005


def test_errors_cover_the_views_of_a_model_and_inliers_cover_all() -> None:
    points = np.random.default_rng(0).normal((0, 0, 6), 1, (90, 3))
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0, -0.5, -1.0]
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[500, 320, 240])
    keypoints = [500 * rays(points + pose[:3, 3]) + [320, 240] for pose in poses]
    every = np.tile(np.arange(90)[:, None], (1, 2))
    matches = Matches(keypoints, np.array([[0, 1], [1, 2]]), [every[:40], every[40:]], [None, None])
    whole = fit(matches, errors_px(matches, [camera] * 3, poses), np.ones(3, bool))
    assert (whole.matches, whole.inliers, whole.view_matches) == (90, 90, [40, 90, 50]) and whole.error_px < 1e-3
    placed = poses.copy()
    placed[2] = np.nan
    part = fit(matches, errors_px(matches, [camera] * 3, placed), np.array([True, True, False]))
    assert (part.matches, part.inliers, part.view_matches) == (90, 40, [40, 40, 0])
    assert part.error_px < 1e-3 and part.view_error_px[2] is None and abs(part.score - 40) < 0.1
    assert part.view_pair_px == part.view_error_px


def test_a_wrong_view_spoils_few_pairs_of_the_others() -> None:
    """Though most matches of its neighbour are with it."""
    points = np.random.default_rng(0).normal((0, 0, 6), 1, (90, 3))
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = [0, -0.5, -1.0, -1.5]
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[500, 320, 240])
    keypoints = [500 * rays(points + pose[:3, 3]) + [320, 240] for pose in poses]
    every = np.tile(np.arange(90)[:, None], (1, 2))
    matches = Matches(keypoints, np.array([[0, 1], [0, 2], [1, 2], [2, 3]]), [every[:20]] * 3 + [every], [None] * 4)
    poses[3, 1, 3] = 0.5
    spoilt = fit(matches, errors_px(matches, [camera] * 4, poses), np.ones(4, bool))
    assert (spoilt.view_error_px[2] or 0) > 1 > 1e-3 > (spoilt.view_pair_px[2] or 0)
    assert (spoilt.view_pair_px[3] or 0) > 1


def test_rays_outside_a_lens_do_not_count_for_a_rotation() -> None:
    xy = np.random.default_rng(0).uniform(0, 400, (50, 2))
    camera = pycolmap.Camera(model="SIMPLE_RADIAL", width=400, height=400, params=[100, 200, 200, -0.8])
    assert np.isnan(camera.cam_from_img(xy)).any()
    every = np.tile(np.arange(50)[:, None], (1, 2))
    assert turn_only(Matches([xy, xy], np.array([[0, 1]]), [every], [None]), [camera] * 2)


@pytest.mark.parametrize(("away", "is_turn"), [(0.08, True), (0.25, False)])
def test_wrong_matches_do_not_hide_a_rotation_but_a_foreground_that_moves_does(away: float, is_turn: bool) -> None:
    """A tenth may be windows that look alike; most matches of a landscape may be far away, where nothing moves."""
    rng = np.random.default_rng(0)
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[500, 320, 240])
    turned = pair()[2][:3, :3]
    a = rng.uniform((0, 0), (640, 480), (200, 2))
    seen = np.hstack([(a - [320, 240]) / 500, np.ones((200, 1))]) @ turned.T
    b = 500 * rays(seen) + [320, 240] + rng.normal(0, 0.1, (200, 2))
    b[: round(200 * away)] += [60, 0]
    every = np.tile(np.arange(200)[:, None], (1, 2))
    assert turn_only(Matches([a, b], np.array([[0, 1]]), [every], [None]), [camera] * 2) == is_turn


def test_copies_of_photos_do_not_make_a_rotation_of_a_walk() -> None:
    """Two photos and copies of them: most matches are between a photo and its copy."""
    points = np.random.default_rng(0).normal((0, 0, 6), 1, (90, 3))
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[500, 320, 240])
    keypoints = [500 * rays(points + np.array([x, 0, 0])) + [320, 240] for x in (0.0, 0.0, 1.0, 1.0)]
    every = np.tile(np.arange(90)[:, None], (1, 2))
    pairs = np.array([[0, 1], [2, 3], [0, 2], [0, 3], [1, 2], [1, 3]])
    indices = [every if a // 2 == b // 2 else every[:20] for a, b in pairs]
    assert not turn_only(Matches(keypoints, pairs, indices, [None] * 6), [camera] * 4)
    assert turn_only(Matches(keypoints, pairs[:2], indices[:2], [None] * 2), [camera] * 4)


def test_accepted_only_if_error_and_inliers_improve() -> None:
    before = Fit(100, 20, 15.0, 5.0, [], [], [], [])
    assert why_not_better(before, Fit(100, 90, 80.0, 0.3, [], [], [], [])) is None
    assert "90" in str(why_not_better(replace(before, inliers=90), Fit(100, 90, 80.0, 0.3, [], [], [], [])))
    given = replace(before, inliers=277)
    assert why_not_better(given, replace(given, inliers=276), knows_poses=True) is None
    assert "250" in str(why_not_better(given, replace(given, inliers=250), knows_poses=True))
    assert "reprojection error" in str(why_not_better(before, Fit(100, 21, 16.0, 5.5, [], [], [], [])))
