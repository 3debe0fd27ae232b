"""Confidence that counts evidence: other views, sparse points, the border; and cameras that nobody checked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from export.scene import make_scene

from lean3r.geometry.consistency import Scene
from lean3r.geometry.evidence import ALONE, Sightings, border, cast, support, weigh
from lean3r.geometry.fusion import trusted_pixels
from lean3r.geometry.lens import Optics
from lean3r.types import Reconstruction


def of(scene: Reconstruction) -> Scene:
    return Scene(scene.depth, scene.cam_from_world, Optics.of(scene))


def test_wrong_depth_loses_confidence_where_cameras_are_right() -> None:
    scene = make_scene(4)
    depth = scene.depth.copy()
    depth[1, 20:50, 30:60] *= 0.8
    wrong = np.zeros_like(scene.mask)
    wrong[1, 22:48, 32:58] = True
    ones = np.ones_like(depth)
    conf, votes = weigh(ones, scene.mask, of(replace(scene, depth=depth)))
    right = scene.mask & ~border(scene.mask) & ~wrong
    assert votes.disagreement < 0.01
    assert np.median(conf[wrong]) < 0.4 < 0.7 < np.median(conf[right])


def test_cameras_that_disagree_with_depth_change_nothing_but_the_border() -> None:
    scene = make_scene(4)
    rng = np.random.default_rng(0)
    depth = scene.depth * np.exp(rng.normal(0, 0.2, (4, 1, 1))).astype(np.float32)
    conf, votes = weigh(scene.conf, scene.mask, of(replace(scene, depth=depth)))
    assert votes.disagreement > 0.05
    inner = ~border(scene.mask)
    np.testing.assert_allclose(conf[inner], scene.conf[inner], rtol=1e-6)


def test_a_border_that_no_view_confirms_gives_no_points() -> None:
    scene = make_scene(4)
    edge = border(scene.mask)
    near = np.array([0.5, 0.6, 0.75, 0.85], np.float32)[:, None, None]
    depth = np.where(edge, near * scene.depth, scene.depth)
    conf, _ = weigh(scene.conf, scene.mask, of(replace(scene, depth=depth)))
    keep = trusted_pixels(depth, conf, scene.mask, 0)
    assert keep[edge].mean() < 0.05 and keep[~edge].mean() > 0.8
    conf, _ = weigh(scene.conf, scene.mask, of(scene))
    assert trusted_pixels(scene.depth, conf, scene.mask, 0)[edge].mean() > 0.4  # right depth that others see stays


def test_a_view_alone_keeps_its_border_and_less_confidence() -> None:
    scene = make_scene(1)
    conf, votes = weigh(scene.conf, scene.mask, of(scene))
    assert np.isnan(votes.disagreement)
    np.testing.assert_allclose(conf, ALONE * scene.conf, rtol=1e-5)


def test_sparse_points_support_depth_near_them() -> None:
    depth = np.full((60, 80), 2.0, np.float32)
    seen = Sightings(np.array([[20.5, 30.5], [60.5, 30.5]]), np.log([2.0, 3.0]), np.ones(2))
    found = support(depth, seen)
    assert found[30, 20] > 0.4 and found[30, 60] < 0.01 and found[30, 40] < 0.01
    sightings = [seen] * 2
    scene = Scene(np.stack([depth] * 2), np.tile(np.eye(4), (2, 1, 1)), Optics((), np.tile(np.eye(3) * 80, (2, 1, 1))))
    conf, _ = weigh(np.ones((2, 60, 80), np.float32), np.ones((2, 60, 80), bool), scene, sightings)
    assert conf[0, 30, 20] > 1.5 * conf[0, 30, 60] > 0


def test_votes_of_large_pictures_are_taken_on_a_grid() -> None:
    scene = make_scene(3, height=300, width=400)
    small, large = cast(of(make_scene(3, height=75, width=100))), cast(of(scene))
    assert large.agree.shape == (3, 300, 400)
    assert abs(float(large.agree.mean()) - float(small.agree.mean())) < 0.15
