"""The measure by which refined cameras are taken or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lean3r.refine.accept import Fit, better, pair_errors


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


def test_points_behind_a_camera_are_no_inliers() -> None:
    a, b, pose = pair()
    pose[:3, 3] *= -1
    assert np.isinf(pair_errors(a, b, pose)).mean() > 0.9


def test_without_motion_the_turned_ray_counts() -> None:
    a, _, pose = pair()
    pose[:3, 3] = 0
    b = rays(np.hstack([a, np.ones((len(a), 1))]) @ pose[:3, :3].T)
    assert pair_errors(a, b, pose).max() < 1e-12 and pair_errors(a, b + 0.01, pose).min() > 0.005


def test_taken_only_where_error_and_inliers_are_better() -> None:
    before = Fit(100, 20, 15.0, 5.0, [], [], [])
    assert better(before, Fit(100, 90, 80.0, 0.3, [], [], [])) is None
    assert "90" in str(better(replace(before, inliers=90), Fit(100, 90, 80.0, 0.3, [], [], [])))
    assert "off" in str(better(before, Fit(100, 21, 16.0, 5.5, [], [], [])))
