"""Learned stereo: better than classical stereo, its starts, interruptions, and scenes with nothing to measure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from export.scene import cast
from stereo.rendered import bent, error, scene, truth

from lean3r.geometry.lens import Optics
from lean3r.pipeline.trust import no_points
from lean3r.stereo import densify
from lean3r.stereo.classical import measure_classically
from lean3r.stereo.dense import densify as densify_by
from lean3r.stereo.joining import join
from lean3r.stereo.others import APART
from lean3r.stereo.posed import Depths, Posed
from lean3r.stereo.starts import LEAST_POINTS, starts
from lean3r.types import Reconstruction, Source


def test_learned_stereo_is_better_than_classical() -> None:
    errors = []
    for index in (0, 1, 4):
        batch = truth(index)
        before = scene(batch, bent(batch.depth[0], 0.2))
        ways = (densify(before), densify_by(before, measure=measure_classically))
        errors.append([error(before.depth, batch), *(error(way.depth, batch) for way in ways)])
    prior, learned, classical = np.mean(errors, axis=0)
    assert learned < 0.9 * classical < 0.6 * prior


def test_a_place_has_the_mean_of_the_depth_that_its_views_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = truth(1)
    before = scene(batch)
    true = batch.depth[0].numpy()
    errors = []
    for apart in (0.0, APART):
        monkeypatch.setattr("lean3r.stereo.others.APART", apart)
        errors.append(np.median(np.abs(np.log(densify(before).depth / true))[true > 0]))
    assert errors[1] < 0.9 * errors[0]


def test_starts_go_through_points_but_not_through_outliers() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, cols = torch.meshgrid(torch.linspace(0, 1, 60), torch.linspace(0, 1, 80), indexing="ij")
    true = 0.3 * rows + 0.2 * cols
    has = torch.zeros(60, 80, dtype=torch.bool)
    has[torch.randint(60, (150,), generator=generator), torch.randint(80, (150,), generator=generator)] = True
    points = torch.where(has, true, 0.0)
    wrong = has & (torch.rand(60, 80, generator=generator) < 0.05)
    prior = torch.full((60, 80), 0.1)
    assert (prior - true)[has].abs().mean() > 0.1
    for start in starts(prior, torch.where(has, points + 1.5 * wrong, 0.0), has, torch.full((60, 80), 0.5)):
        assert (start - true)[has & ~wrong].abs().mean() < 0.06
    few = torch.zeros_like(has)
    few[0, : LEAST_POINTS - 1] = True
    assert all(torch.equal(start, prior) for start in starts(prior, points, few, prior))


def test_an_anchor_holds_on_to_the_prior_where_nothing_is_measured() -> None:
    grey, weight = torch.full((20, 200), 0.5), torch.zeros(20, 200)
    weight[:, :5] = 1
    change = torch.full((20, 200), 0.3)
    free, held = join(change, weight, grey), join(change, weight, grey, 0.05)
    assert free[:, -1].min() > 0.25
    assert held[:, -1].max() < 0.01
    assert held[:, 0].min() > 0.2


@pytest.mark.parametrize("look", [3, 7])  # at the first or the second of five views each
def test_what_is_measured_when_interrupted_stays(look: int) -> None:
    batch = truth(3)
    before = scene(batch)
    calls = 0

    def stop_at(limit: int) -> None:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise KeyboardInterrupt

    after = densify(before, advanced=lambda: stop_at(look))
    assert after.info["stereo"]["interrupted"] is True
    assert min(look, 5) <= after.info["stereo"]["views"] <= len(before.depth)  # what is begun is finished
    assert error(after.depth, batch) < 0.9 * error(before.depth, batch)


@pytest.mark.parametrize("count", [1, 2])
def test_a_few_views_that_were_measured_are_not_judged_by_the_others(count: int) -> None:
    """The others still have the depth before, with which no better one agrees."""
    batch = truth(3)
    before = scene(batch, batch.depth[0] * torch.tensor([1.1, 1.3, 1.0, 0.8, 0.9])[:, None, None])

    def interrupted(_: Posed, prior: torch.Tensor, *__: object) -> Depths:
        measured = np.arange(len(prior)) < count
        exact = torch.where(torch.from_numpy(measured)[:, None, None], batch.depth[0].log(), prior)
        return Depths(exact, torch.full_like(prior, -4.0), measured, interrupted=True)

    after = densify_by(before, measure=interrupted)
    assert after.info["stereo"]["status"] == "measured" and "warnings" not in after.info
    np.testing.assert_allclose(after.depth[:count], batch.depth[0, :count].numpy(), rtol=1e-5)
    np.testing.assert_array_equal(after.depth[count:], before.depth[count:])


def turning(views: int = 4, height: int = 90, width: int = 120) -> Reconstruction:
    """A textured room with a box, seen by a camera that only turns."""
    intrinsics = np.stack([np.array([[100.0, 0, width / 2], [0, 100.0, height / 2], [0, 0, 1]])] * views)
    optics = Optics([Source("", width, height)] * views, intrinsics, [])
    waves = np.random.default_rng(0).normal(0, 9, (3, 40))
    poses, depth, images = [], [], []
    for view in range(views):
        angle = 0.12 * view
        pose = np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
        pose[2, 3] = 4.0
        pose[:3, 3] = pose[:3, :3] @ [0.0, 0.0, 4.0]
        slopes = optics.slopes(view, height, width)
        rays = np.concatenate([slopes, np.ones_like(slopes[..., :1])], -1)
        z, _ = cast(pose, rays)
        points = (rays * z[..., None] - pose[:3, 3]) @ pose[:3, :3]
        grey = 128 + 12 * np.sin(points @ waves + np.arange(40)).sum(-1, keepdims=True)
        poses.append(pose), depth.append(z), images.append(grey.clip(0, 255).round().astype(np.uint8).repeat(3, -1))
    maps = np.stack(depth).astype(np.float32)
    found = Reconstruction(
        sources=tuple(Source(f"{n}.png", width, height) for n in range(views)),
        images=np.stack(images),
        mask=np.ones(maps.shape, bool),
        depth=bent(torch.from_numpy(maps), 0.05).numpy(),
        conf=np.ones(maps.shape, np.float32),
        cam_from_world=np.stack(poses),
        intrinsics=intrinsics,
        points=no_points(),
        registration=("refined",) * views,
    )
    return found


def test_a_camera_that_only_turns_measures_nothing() -> None:
    before = turning()
    after = densify(before)
    assert after.info["stereo"]["status"] == "kept" and "different places" in after.info["stereo"]["reason"]
    assert np.array_equal(after.depth, before.depth)


def test_exposures_and_a_moving_object_do_not_make_depth_worse() -> None:
    batch = truth(3)
    before = scene(batch)
    images = before.images.astype(np.float32) * np.array([1, 0.6, 1.2, 0.8, 1])[:, None, None, None]
    for view in range(5):  # a flat square that is elsewhere in every picture
        images[view, 40:70, 20 + 25 * view : 45 + 25 * view] = [200, 40, 40]
    after = densify(replace(before, images=images.clip(0, 255).astype(np.uint8)))
    assert after.info["stereo"]["status"] == "measured"
    assert error(after.depth, batch) < 0.8 * error(before.depth, batch)
