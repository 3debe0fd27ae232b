"""Smooth normals: exact on planes, along lens rays too; robust against noise; sharp at edges; in the world frame."""

from __future__ import annotations

import numpy as np
import pytest
from export.scene import make_scene
from stereo.rendered import scene, truth

from lean3r.geometry.fusion import with_cloud
from lean3r.geometry.normals import smooth_normals
from lean3r.geometry.points import normals_from_depth
from lean3r.stereo.classical import measure_classically
from lean3r.stereo.dense import densify
from lean3r.stereo.rays import pinhole_slopes

SIZE = (40, 56)


def slopes(bend: float = 0.0, focal: float = 60.0) -> np.ndarray:
    y, x = np.meshgrid(*((np.arange(n) + 0.5 - n / 2) / focal for n in SIZE), indexing="ij")
    return np.stack([x, y], axis=-1) * (1 + bend * (x * x + y * y))[..., None]


def plane(normal, distance: float, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] of the plane normal . x = distance, and its unit normal towards the camera."""
    unit = np.array(normal) / np.linalg.norm(normal)
    return (distance / (rays @ unit[:2] + unit[2])).astype(np.float32), -unit


def angles_deg(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arccos((found * true).sum(-1).clip(-1, 1)))


@pytest.mark.parametrize("bend", [0.0, -0.2])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("normal", [(0, 0, 1), (0.5, -0.3, 1), (1.5, 0.4, 1)])
def test_planes_are_exact_along_any_rays_in_any_unit(normal, unit, bend):
    rays = slopes(bend)
    depth, true = plane(normal, 3.0 * unit, rays)
    found = smooth_normals(depth, rays)
    assert found.dtype == np.float32 and angles_deg(found, true).max() < 0.1


def test_noise_of_single_pixels_averages_out():
    rays = slopes()
    rng = np.random.default_rng(0)
    depth, true = plane((0.5, -0.3, 1), 3.0, rays)
    assert np.median(angles_deg(smooth_normals(depth * (1 + 0.01 * rng.standard_normal(SIZE)), rays), true)) < 3
    spikes = np.where(rng.random(SIZE) < 0.03, np.exp(0.3 * rng.standard_normal(SIZE)), 1)
    assert np.percentile(angles_deg(smooth_normals(depth * spikes, rays), true), 95) < 2


def test_two_surfaces_keep_their_normals_up_to_the_edge_between_them():
    rays = slopes()
    near, far = plane((0.6, 0.2, 1), 2.0, rays), plane((-0.5, 0.3, 1), 3.5, rays)
    left = np.arange(SIZE[1]) < 23
    found = smooth_normals(np.where(left, near[0], far[0]), rays)
    assert angles_deg(found, np.where(left[:, None], near[1], far[1])).max() < 1


def test_what_is_unknown_has_no_normal():
    rays = slopes()
    depth, true = plane((0.5, -0.3, 1), 3.0, rays)
    depth[:10], depth[20, 20:30], depth[25, 5] = 0, np.nan, np.inf
    rays[30:34, 40:] = np.nan
    known = (depth > 0) & np.isfinite(depth) & np.isfinite(rays).all(-1)
    found = smooth_normals(depth, rays)
    assert not found[~known].any() and angles_deg(found[known], true).max() < 0.1
    line = np.where(np.arange(SIZE[0]) == 12, 2.0, 0)[:, None] * np.ones(SIZE)
    assert not smooth_normals(line, slopes()).any()
    assert (
        not smooth_normals(np.zeros(SIZE), slopes()).any() and not smooth_normals(np.ones((1, 1)), rays[:1, :1]).any()
    )


def test_they_are_nearer_to_the_truth_than_differences_are():
    batch = truth(2, 3)
    depth = densify(scene(batch), measure=measure_classically).depth  # rougher than the learned one
    true, known = batch.normals[0].permute(0, 2, 3, 1).numpy(), batch.depth[0].numpy() > 0
    rays = pinhole_slopes(batch.intrinsics[0].double(), *depth.shape[1:]).numpy()
    smooth = np.stack([smooth_normals(*view) for view in zip(depth, rays, strict=True)])
    plain = normals_from_depth(batch.depth.new_tensor(depth), batch.intrinsics[0]).numpy()
    error = [angles_deg(found, true)[known] for found in (smooth, plain)]
    assert np.median(error[0]) < 0.75 * np.median(error[1]) and error[0].mean() < 0.85 * error[1].mean()
    exact = np.stack([smooth_normals(*view) for view in zip(batch.depth[0].numpy(), rays, strict=True)])
    assert np.median(angles_deg(exact, true)[known]) < 2  # a terrain: nothing in it is plane


def test_the_cloud_has_the_normals_of_its_pixels_in_the_world():
    cloud = with_cloud(make_scene(3)).points
    assert cloud.normals.dtype == np.float32 and cloud.normals.shape == cloud.xyz.shape
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-5)
    # The room and the box in it have sides along the axes.
    assert np.percentile(angles_deg(np.abs(cloud.normals).max(axis=1, keepdims=True), np.ones(1)), 75) < 2
    centres = np.stack([-p[:3, :3].T @ p[:3, 3] for p in make_scene(3).cam_from_world])
    assert (((centres[cloud.view] - cloud.xyz) * cloud.normals).sum(1) > 0).all()
