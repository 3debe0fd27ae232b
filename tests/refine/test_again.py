"""Points of one group of photos are found again in photos of another if the model is right, and not if it is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pycolmap
import pytest

from lean3r.refine.again import LEAST_AGAIN, Model, seen_again
from lean3r.refine.judge import LEAST_SEEN, Verdict, judge

POINTS, CROSSING = 600, 10
GROUPS = np.array([[0, 1, 2, 3], [4, 5, 6, 6]])  # of seven cameras
CAMERA = pycolmap.Camera(model="PINHOLE", width=640, height=480, params=(500, 500, 320, 240))


def around(count: int) -> np.ndarray:
    """Poses [S, 4, 4] on an arc around the origin."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for pose, angle in zip(poses, np.linspace(-0.4, 0.4, count), strict=True):
        pose[:3, :3] = turned(angle)
        pose[2, 3] = 4
    return poses


def turned(angle_rad: float) -> np.ndarray:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def of_length(descriptors: np.ndarray) -> np.ndarray:
    return np.round(512 * descriptors / np.linalg.norm(descriptors, axis=-1, keepdims=True)).astype(np.uint8)


def model(share: float) -> Model:
    """All views have a feature at each point, described alike; measured are those of each group's own half, and a few
    of the others. Such a `share` of the other half is described alike in both."""
    rng = np.random.default_rng(0)
    poses = around(7)
    xyz = rng.uniform(-1, 1, (POINTS, 3))
    own, other = rng.exponential(size=(2, POINTS, 128))
    keypoints, descriptors = [], []
    for view, pose in enumerate(poses):
        keypoints.append(np.asarray(CAMERA.img_from_cam(xyz @ pose[:3, :3].T + pose[:3, 3])))
        mixed = np.where((rng.random(POINTS) < share)[:, None] | (view < 4), own, other)
        descriptors.append(of_length(mixed * rng.uniform(0.8, 1.2, mixed.shape)))
    halves = np.split(np.arange(POINTS), 2)
    measured = [(np.concatenate([half, halves[1 - side][:CROSSING]]), GROUPS[side]) for side, half in enumerate(halves)]
    point = np.concatenate([np.repeat(points, len(set(views.tolist()))) for points, views in measured])
    view = np.concatenate([np.tile(sorted(set(views.tolist())), len(points)) for points, views in measured])
    return Model([CAMERA] * 7, poses, xyz, point, view, point, keypoints, lambda view: descriptors[view])


def judged(poses: np.ndarray, seen: np.ndarray) -> Verdict:
    return judge(poses, np.ones(len(poses), bool), seen, np.full((len(poses),) * 2, np.nan))


@pytest.mark.parametrize(("share", "off_rad", "is_found"), [(0.6, 0.0, True), (0.6, 0.3, False), (0.0, 0.0, False)])
def test_groups_hold_together_by_points_that_are_where_the_model_has_them(
    share: float, off_rad: float, is_found: bool
) -> None:
    given = model(share)
    poses, xyz = given.cam_from_world.copy(), given.xyz.copy()
    poses[4:, :3, :3] = poses[4:, :3, :3] @ turned(off_rad)  # and what they measured
    xyz[POINTS // 2 :] = xyz[POINTS // 2 :] @ turned(off_rad)
    given = replace(given, cam_from_world=poses, xyz=xyz)
    seen = np.zeros((POINTS, 7), bool)
    seen[given.point, given.view] = True
    assert judged(poses, seen).trusted.tolist() == [True] * 4 + [False] * 3 and 2 * CROSSING < LEAST_SEEN
    pairs, verdict = seen_again(given, seen, lambda seen: judged(poses, seen))
    assert (len(pairs) >= LEAST_AGAIN) if is_found else (len(pairs) == 0)
    assert not seen[pairs[:, 0], pairs[:, 1]].any()
    assert verdict.trusted.all() == is_found
