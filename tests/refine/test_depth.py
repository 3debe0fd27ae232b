"""Depth after refined cameras: nearer to the truth, never worse than its scale, and only believed where views agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from export.scene import make_scene, orbit, render

from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.evidence import cast
from lean3r.geometry.fusion import fuse, with_cloud
from lean3r.geometry.lens import Optics, colmap_camera
from lean3r.refine.depth import follow
from lean3r.refine.field import KNOTS, Field, fit_field, fit_scale
from lean3r.types import Lens, Reconstruction, SparsePoints

VIEWS = 5


def with_sparse(
    scene: Reconstruction, points: int = 900, noise_px: float = 0.0, outliers: float = 0.0
) -> Reconstruction:
    """The scene with points of its exact depth, seen by every view that sees them, in original pixels."""
    rng = np.random.default_rng(3)
    exact = Scene(scene.depth, scene.cam_from_world, Optics.of(scene))
    height, width = scene.depth.shape[1:]
    world = [
        exact.world_points(v, rng.integers(height, size=points), rng.integers(width, size=points))
        for v in range(len(scene.depth))
    ]
    xyz = np.concatenate(world)
    xyz = xyz[np.isfinite(xyz).all(axis=1)]
    point, view, xy = [], [], []
    for v, source in enumerate(scene.sources):
        z, depth = exact.seen(v, xyz)
        seen = np.flatnonzero(np.abs(z / depth - 1) < 0.01)
        cam = xyz[seen] @ scene.cam_from_world[v, :3, :3].T + scene.cam_from_world[v, :3, 3]
        scale, offset = np.reshape(source.original_from_network, (2, 2))
        point.append(seen), view.append(np.full(len(seen), v))
        xy.append((exact.optics.project(v, cam)) * scale + offset)
    xyz = xyz + rng.normal(0, 3, xyz.shape) * (rng.random((len(xyz), 1)) < outliers)
    point, view, xy = np.concatenate(point), np.concatenate(view), np.concatenate(xy)
    xy = xy + rng.normal(0, noise_px, xy.shape)
    colours, error = np.zeros((len(xyz), 3), np.uint8), np.full(len(xyz), 0.5)
    return replace(scene, sparse=SparsePoints(xyz, colours, error, point.astype(np.int32), view.astype(np.int32), xy))


def abs_rel(scene: Reconstruction, exact: Reconstruction) -> float:
    known = exact.depth > 0
    return float(np.abs(scene.depth[known] / exact.depth[known] - 1).mean())


def bent(scene: Reconstruction) -> Reconstruction:
    """The scene with depth as networks err: a scale of its own in each view, and a smooth bend."""
    height, width = scene.depth.shape[1:]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    wrong = [
        d * np.exp(0.3 * v - 0.7 + 0.15 * x - 0.1 * y * y + 0.2 * np.log(np.maximum(d, 1e-3)))
        for v, d in enumerate(scene.depth)
    ]
    return replace(scene, depth=np.stack(wrong).astype(np.float32) * scene.mask)


@pytest.mark.parametrize("size", [(72, 96), (85, 48)], ids=["landscape", "portrait"])
def test_bent_depth_is_corrected_towards_the_truth(size):
    exact = make_scene(VIEWS, height=size[0], width=size[1])
    scene = with_sparse(exact, noise_px=3.0, outliers=0.1)
    found = follow(bent(scene))
    assert abs_rel(found, exact) < 0.01
    assert all(view["field"] and view["after"] < 0.02 < view["before"] for view in found.info["depth"])
    assert found.scale == exact.scale and found.depth.dtype == np.float32 and found.conf.dtype == np.float32
    truth, cloud = exact.points.xyz[::7], with_cloud(found).points.xyz
    distance = [np.linalg.norm(cloud - p, axis=1).min() for p in truth[::40]]
    assert np.median(distance) < 0.05


def test_exact_depth_is_left_alone_and_padding_stays_unknown():
    exact = make_scene(3, height=64, width=64, originals=[(640, 480), (480, 641), (500, 500)])
    found = follow(with_sparse(exact, noise_px=2.0, outliers=0.1))
    assert abs_rel(found, exact) < 0.003
    assert not found.depth[~exact.mask].any()
    again = follow(with_sparse(exact, noise_px=2.0, outliers=0.1))
    np.testing.assert_array_equal(found.depth, again.depth)


def test_views_without_points_take_the_scale_of_the_scene():
    exact = make_scene(4)
    scene = with_sparse(exact)
    sparse = scene.sparse
    assert sparse is not None
    seen = sparse.view != 2
    sparse = replace(sparse, point=sparse.point[seen], view=sparse.view[seen], xy=sparse.xy[seen])
    scene = replace(scene, sparse=sparse, depth=scene.depth * np.float32(0.4))
    found = follow(scene)
    assert found.info["depth"][2] == {"points": 0, "scale": pytest.approx(2.5, rel=1e-3), "field": False}
    assert abs_rel(found, exact) < 0.002


@pytest.mark.parametrize("views", [1, 2])
def test_without_sparse_points_depth_stays(views):
    exact = make_scene(views)
    none, empty = np.zeros((0, 3)), np.zeros(0, np.int32)
    nothing = SparsePoints(none, none.astype(np.uint8), np.zeros(0), empty, empty, none[:, :2])
    for scene in (exact, replace(exact, sparse=nothing)):
        np.testing.assert_array_equal(follow(scene).depth, exact.depth)


def test_points_with_tiny_parallax_change_nothing():
    exact = make_scene(2)
    scene = with_sparse(exact)
    still = np.stack([exact.cam_from_world[0]] * 2)
    still[1, 0, 3] += 1e-4
    found = follow(replace(scene, cam_from_world=still))
    assert not any(view["field"] for view in found.info["depth"])


def test_no_field_where_points_are_noise():
    rng = np.random.default_rng(0)
    xy, log_depth, ratio = rng.uniform(0, 100, (400, 2)), rng.normal(size=400), rng.normal(0.3, 0.1, 400)
    plain = fit_scale(ratio, np.ones(400))
    assert fit_field(xy, log_depth, ratio, np.ones(400), plain) is plain
    assert plain.constant == pytest.approx(0.3, abs=0.02)
    assert plain.spread == pytest.approx(0.1, rel=0.2)


def test_scale_withstands_a_third_of_outliers():
    ratio = np.concatenate([np.random.default_rng(1).normal(0.5, 0.02, 200), np.full(90, 2.0)])
    assert fit_scale(ratio, np.ones(290)).constant == pytest.approx(0.5, abs=0.01)


def test_floating_depth_loses_confidence():
    scene = make_scene(VIEWS)
    depth = scene.depth.copy()
    depth[2, 30:40, 40:56] *= 0.6
    votes = cast(Scene(depth, scene.cam_from_world, Optics.of(scene)))
    assert np.median(votes.against[2, 32:38, 42:54]) > 2 > 5 * np.median(votes.agree[2, 32:38, 42:54])
    assert np.median(votes.against) < 0.1 < 2 < np.median(votes.agree) and votes.disagreement < 0.01
    assert all(len(set(o.tolist()) - {v}) == len(o) > 0 for v, o in enumerate(neighbours(
        Scene(scene.depth, scene.cam_from_world, Optics.of(scene)), 3)))  # fmt: skip


@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "RADIAL", "OPENCV"])
def test_points_lie_on_the_rays_of_the_lens(model):
    """Rendering a room through a lens, and unprojecting its depth, meets the walls."""
    params = {
        "SIMPLE_RADIAL": (800.0, 500.0, 330.0, -0.12),
        "RADIAL": (800.0, 500.0, 330.0, -0.12, 0.03),
        "OPENCV": (800.0, 790.0, 500.0, 330.0, -0.12, 0.03, 0.002, -0.001),
    }[model]
    lens = Lens(model, params)
    scene = replace(make_scene(2, height=66, width=100, originals=[(1000, 660)] * 2), lenses=(lens,) * 2)
    optics = Optics.of(scene)
    slopes = optics.slopes(0, 66, 100)
    cam = np.concatenate([slopes, np.ones((66, 100, 1))], axis=-1).reshape(-1, 3) * 2.5
    y, x = np.meshgrid(np.arange(66) + 0.5, np.arange(100) + 0.5, indexing="ij")
    np.testing.assert_allclose(optics.project(0, cam), np.stack([x, y], -1).reshape(-1, 2), atol=1e-6)
    seen = np.asarray(colmap_camera(lens, 1000, 660).img_from_cam(cam))
    np.testing.assert_allclose(seen, np.stack([x, y], -1).reshape(-1, 2) * 10, atol=1e-5)
    assert np.isnan(optics.project(0, np.array([[0, 0, -1.0], [9, 9, 1.0]]))).all()  # behind; where the lens folds back

    poses = orbit(2)
    depth = np.stack([_through(slopes, pose) for pose in poses]).astype(np.float32)
    cloud = fuse(
        scene.images, depth, np.ones_like(depth), None, poses, scene.intrinsics, conf_percentile=0, optics=optics
    )
    walls = np.minimum(np.abs(cloud.xyz - [3, 1.5, 4]), np.abs(cloud.xyz - [-3, -2, -4])).min(axis=1)
    assert len(cloud.xyz) > 1000 and np.percentile(walls, 70) < 1e-4


def _through(slopes: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Exact depth [H, W] of the room along given rays: `render`, asked one pixel's intrinsics at a time, is a loop."""
    depth = np.zeros(slopes.shape[:2])
    for row, col in np.ndindex(*depth.shape):
        x, y = slopes[row, col]
        depth[row, col] = render(pose, np.array([[1, 0, 0.5 - x], [0, 1, 0.5 - y], [0, 0, 1.0]]), 1, 1)[0][0, 0]
    return depth


def test_few_points_of_another_scale_are_ignored():
    """A view that was put into the scene wrongly sees its few points many times too far."""
    exact = make_scene(4)
    scene = with_sparse(exact, points=60)
    poses = exact.cam_from_world.copy()
    poses[3, :3, 3] += [0, 0, 30.0]
    scene = replace(scene, cam_from_world=poses)
    sparse = scene.sparse
    assert sparse is not None
    kept = (sparse.view != 3) | (np.cumsum(sparse.view == 3) < 60)
    sparse = replace(sparse, point=sparse.point[kept], view=sparse.view[kept], xy=sparse.xy[kept])
    found = follow(replace(scene, sparse=sparse))
    assert found.info["depth"][3]["scale"] == pytest.approx(1, abs=0.01)


def test_a_field_corrects_a_picture_as_it_corrects_its_points() -> None:
    """Beyond the grid, too, and beyond the largest correction; what is unknown stays so."""
    rng = np.random.default_rng(0)
    depth = np.exp(rng.normal(size=(19, 31))).astype(np.float32)
    rows, cols = (a.ravel() for a in np.mgrid[:19, :31])
    at = np.stack([cols + 0.5, rows + 0.5], axis=1)
    knots = rng.normal(0, 0.1, int(np.prod(KNOTS)))
    for field in (
        Field(0.3, 0.02),
        Field(0.1, 0.02, knots, np.array([4.0, 2, -1]), np.array([25.0, 17, 1.5]), 0.15, 1.0),
    ):
        expected = depth * np.exp(field.correction(at, np.log(depth.ravel()))).reshape(depth.shape)
        np.testing.assert_allclose(field.apply(depth), expected, rtol=2e-6)
        assert not field.apply(np.zeros_like(depth)).any()
