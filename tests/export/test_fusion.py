"""Point fusion: what is dropped, what is kept, and how much memory it takes."""

from __future__ import annotations

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest

from export.scene import BOX, ROOM, make_scene
from lean3r.geometry import fusion
from lean3r.geometry.fusion import fuse

ARRAYS = ("images", "depth", "conf", "mask", "cam_from_world", "intrinsics")


def arrays(scene):
    return {name: getattr(scene, name) for name in ARRAYS}


def distance_to_room(xyz):
    """Distance of each point to the nearest surface of the room or the box."""
    to_walls = np.abs(xyz[:, None] - ROOM).min(axis=(1, 2))
    outside = np.maximum(np.maximum(BOX[0] - xyz, xyz - BOX[1]), 0)
    return np.minimum(to_walls, np.linalg.norm(outside, axis=1))


def test_points_lie_on_the_surfaces_and_know_their_pixel():
    scene = make_scene(5)
    cloud = fuse(**arrays(scene), conf_percentile=0)
    assert distance_to_room(cloud.xyz).max() < 1e-5
    assert cloud.xyz.dtype == np.float32 and cloud.rgb.dtype == np.uint8 and cloud.view.dtype == np.int32
    cols, rows = (cloud.xy - 0.5).astype(int).T
    np.testing.assert_array_equal(cloud.conf, scene.conf[cloud.view, rows, cols])
    order = (cloud.view * 72 + rows) * 96 + cols
    assert (np.diff(order) > 0).all()


def test_padding_invalid_depth_and_low_confidence_are_dropped():
    scene = make_scene(3)
    values = arrays(scene)
    depth, conf, mask = values["depth"].copy(), values["conf"].copy(), values["mask"].copy()
    mask[0, :, :30] = False
    depth[1, :20] = 0
    depth[1, 20:24] = np.nan
    depth[1, 24:26] = np.inf
    conf[2, 50:] = 0.5
    conf[2, :2] = np.nan
    cloud = fuse(**(values | {"depth": depth, "conf": conf, "mask": mask}), conf_percentile=20)
    cols, rows = cloud.xy.T
    assert np.isfinite(cloud.xyz).all()
    assert cols[cloud.view == 0].min() > 30
    assert rows[cloud.view == 1].min() > 26
    assert rows[cloud.view == 2].min() > 2 and rows[cloud.view == 2].max() < 50


def test_constant_confidence_keeps_everything_and_no_mask_means_no_padding():
    scene = make_scene(1)
    values = arrays(scene) | {"conf": np.full_like(scene.conf, 1.1), "mask": None}
    kept = len(fuse(**values, conf_percentile=90).xyz)
    assert kept == len(fuse(**values, conf_percentile=0).xyz) > 0.85 * scene.depth.size


def test_flying_pixels_are_dropped():
    depth = np.full((1, 40, 40), 2.0, np.float32)
    depth[:, :, 20:] = 4.0
    depth[:, :, 20] = 3.0  # between the two surfaces
    pose, k = np.eye(4)[None], np.array([[[40.0, 0, 20], [0, 40, 20], [0, 0, 1]]])
    cloud = fuse(np.zeros((1, 40, 40, 3), np.uint8), depth, np.ones_like(depth), None, pose, k, conf_percentile=0)
    assert set(np.unique(cloud.xyz[:, 2])) == {2.0, 4.0}


def test_overlapping_views_do_not_pile_up_and_the_most_confident_stays():
    one = make_scene(1)
    many = {name: np.repeat(value, 12, axis=0) for name, value in arrays(one).items()}
    many["conf"] = many["conf"] + np.arange(12, dtype=np.float32)[:, None, None]
    cloud = fuse(**many, conf_percentile=0)
    assert len(cloud.xyz) == len(fuse(**arrays(one), conf_percentile=0).xyz)
    assert (cloud.view == 11).all()


@pytest.mark.parametrize("max_points", [1, 50, 3000])
def test_max_points_is_kept_and_nearly_used(max_points):
    scene = make_scene(4)
    cloud = fuse(**arrays(scene), max_points=max_points)
    assert 0.5 * max_points <= len(cloud.xyz) <= max_points
    if max_points == 3000:  # still spread over the whole room
        np.testing.assert_allclose(np.ptp(cloud.xyz, axis=0), np.ptp(scene.points.xyz, axis=0), rtol=0.05)


def test_nothing_to_fuse_gives_an_empty_cloud():
    scene = make_scene(2)
    cloud = fuse(**(arrays(scene) | {"depth": np.zeros_like(scene.depth)}))
    assert all(len(getattr(cloud, f.name)) == 0 for f in fields(cloud))
    assert cloud.xyz.shape == (0, 3) and cloud.rgb.shape == (0, 3) and cloud.xy.shape == (0, 2)


@pytest.mark.slow
def test_memory_is_that_of_a_chunk_and_little_for_each_further_pixel(monkeypatch):
    monkeypatch.setattr(fusion, "CHUNK", 100_000)

    def peak(views):
        size = (views, 104, 136)
        depth = np.full(size, 3.0, np.float32)
        pose = np.tile(np.eye(4), (views, 1, 1))
        pose[:, 0, 3] = np.arange(views) * 0.7
        k = np.array([[125.0, 0, 68], [0, 125, 52], [0, 0, 1]])[None].repeat(views, axis=0)
        images, conf = np.zeros((*size, 3), np.uint8), np.random.default_rng(0).random(size, dtype=np.float32)
        tracemalloc.start()
        fuse(images, depth, conf, None, pose, k, max_points=50_000)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert (peak(48) - peak(16)) / (32 * 104 * 136) < 35
