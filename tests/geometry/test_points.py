"""Normals, edges, confidence and voxel thinning."""

import numpy as np
import pytest
import torch

from lean3r.geometry import camera, points
from lean3r.testing import assert_close


def plane_depth(normal, distance, k, height, width):
    rays = camera.ray_directions(k, height, width)
    return distance / (rays @ normal)


@pytest.mark.parametrize("size", [(12, 17), (17, 12)])
def test_normals_and_edges_of_a_slanted_plane(size):
    k = camera.intrinsics_from_focal(torch.tensor([20.0, 22.0], dtype=torch.float64), *size)
    normal = torch.nn.functional.normalize(torch.tensor([0.5, -0.3, 1.0], dtype=torch.float64), dim=0)
    depth = plane_depth(normal, 3.0, k, *size)
    found = points.normals_from_depth(depth.expand(2, *size), k)
    assert_close(found, (-normal).expand(2, *size, 3), 1e-9)
    assert not points.edge_mask(depth, 1e-6).any()


def test_normals_beside_invalid_pixels_stay_right():
    k = camera.intrinsics_from_focal(torch.tensor([20.0, 20.0]), 9, 9)
    depth = torch.full((9, 9), 2.0)
    depth[4, 4] = 0
    normal = points.normals_from_depth(depth, k)
    assert normal[4, 4].abs().sum() == 0
    depth[4, 4] = 1
    others = torch.ones(9, 9, dtype=torch.bool)
    others[4, 4] = False
    assert_close(normal[others], torch.tensor([0.0, 0.0, -1.0]).expand(80, 3), 1e-5)


def test_edges_are_the_two_sides_of_a_step():
    depth = torch.ones(6, 10)
    depth[:, 5:] = 2
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[:, 4:6] = True
    assert torch.equal(points.edge_mask(depth, 0.05), expected)
    assert torch.equal(points.edge_mask(depth.T[None] * 1e3, 0.05), expected.T[None])
    assert not points.edge_mask(torch.ones(1, 2)).any()
    depth[:, 5:] = 0
    assert not points.edge_mask(depth).any()


def test_confidence_percentile():
    conf = torch.arange(1.0, 11.0).reshape(2, 5)
    assert points.confidence_mask(conf, 30).sum() == 7
    assert points.confidence_mask(conf, 100).sum() == 1
    mask = conf > 5
    assert torch.equal(points.confidence_mask(conf, 40, mask), conf > 7)
    assert points.confidence_mask(torch.ones(3, 3), 80).all()
    assert not points.confidence_mask(conf, 50, torch.zeros_like(mask)).any()


def test_thinning_keeps_the_best_of_each_cell_in_any_order():
    rng = np.random.default_rng(0)
    xyz, priority = rng.uniform(-1, 1, (5000, 3)).astype(np.float32), rng.integers(0, 5, 5000)
    kept = points.voxel_thin(xyz, 0.25, priority)
    cells = np.floor((xyz.astype(np.float64) - xyz.min(0)) / 0.25)
    assert len(np.unique(cells[kept], axis=0)) == len(kept) == len(np.unique(cells, axis=0))
    for index in kept[:50]:
        same = np.flatnonzero((cells == cells[index]).all(1))
        assert index == same[np.argmax(priority[same])]


def test_thinning_survives_bad_points_far_outliers_and_nothing():
    xyz = np.array([[0, 0, 0], [np.nan, 0, 0], [1e-7, 0, 0], [1e15, -1e15, 1e15], [0, np.inf, 0]])
    assert points.voxel_thin(xyz, 1e-3, np.array([1, 9, 2, 0, 9])).tolist() == [2, 3]
    assert points.voxel_thin(xyz, 0.0, np.zeros(5)).tolist() == [0, 2, 3]
    assert points.voxel_thin(np.zeros((0, 3)), 0.1, np.zeros(0)).size == 0


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_budget_is_kept_and_used(unit):
    rng = np.random.default_rng(1)
    xyz = rng.uniform(-1, 1, (20000, 3)) * unit
    xyz[:, 2] *= 0.01
    for budget in (1, 100, 5000, 19999):
        voxel = points.voxel_for_budget(xyz, budget)
        count = len(points.voxel_thin(xyz, voxel, np.zeros(20000)))
        assert 0.5 * budget <= count <= budget, (budget, count)
    assert points.voxel_for_budget(xyz, 20000) == 0.0
