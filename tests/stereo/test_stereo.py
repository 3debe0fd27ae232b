"""Stereo: depth comes nearer to the truth where the cameras are good, and stays where nothing can be measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from stereo.rendered import bent, error, of_views, scene, truth, with_padding

from lean3r.data.base import SceneBatch
from lean3r.geometry.fusion import with_cloud
from lean3r.geometry.lens import Optics
from lean3r.geometry.rotation import so3_exp
from lean3r.geometry.spread import interpolate_points, spread
from lean3r.pipeline.densifying import measures
from lean3r.stereo.dense import densify, filled, rasters
from lean3r.stereo.measure import FIRST, SECOND, measure
from lean3r.stereo.network import StereoNet
from lean3r.stereo.options import StereoOptions
from lean3r.stereo.posed import Depths
from lean3r.stereo.rays import pinhole_slopes, rays_into
from lean3r.stereo.weights import in_bytes, load_net
from lean3r.types import Lens


@pytest.mark.parametrize("index", [2, 3])
def test_depth_comes_nearer_to_the_truth(index: int) -> None:
    batch = truth(index)
    before = scene(batch)
    after = densify(before)
    assert after.info["stereo"]["status"] == "measured"
    assert error(after.depth, batch) < 0.5 * error(before.depth, batch)
    true, known = batch.depth[0].numpy(), batch.depth[0].numpy() > 0
    wrong = np.abs(after.depth / np.where(known, true, 1) - 1)[known]
    order = np.argsort(-after.conf[known], kind="stable")
    assert wrong[order[: len(order) // 2]].mean() < 0.6 * wrong[order[len(order) // 2 :]].mean()
    assert len(with_cloud(after).points.xyz) > 1000


def test_the_unit_of_the_world_does_not_matter() -> None:
    small, large = (densify(scene(truth(3), scale=unit)) for unit in (1.0, 64.0))
    ratio = large.depth[small.depth > 0] / small.depth[small.depth > 0]
    assert np.quantile(np.abs(ratio / 64 - 1), 0.99) < 1e-3  # ties of costs fall either way


@pytest.mark.parametrize(("height", "width"), [(152, 104), (97, 131)])
def test_portraits_and_odd_sizes(height: int, width: int) -> None:
    batch = truth(3, 3, height, width)
    before = scene(batch)
    assert error(densify(before).depth, batch) < 0.5 * error(before.depth, batch)


def test_one_view_and_views_that_look_elsewhere_keep_their_depth() -> None:
    before = scene(truth(0))
    alone = densify(of_views(before, [0]))
    assert alone.info["stereo"]["status"] == "kept"
    np.testing.assert_array_equal(alone.depth, before.depth[:1])
    turned = before.cam_from_world.copy()
    turned[0] = np.diag([-1.0, 1.0, -1.0, 1.0]) @ turned[0]
    apart = densify(replace(before, cam_from_world=turned))
    np.testing.assert_array_equal(apart.depth[0], before.depth[0])
    assert error(apart.depth[1:], part_of(truth(0), slice(1, None))) < error(
        before.depth[1:], part_of(truth(0), slice(1, None))
    )


def part_of(batch: SceneBatch, views: slice) -> SceneBatch:
    return replace(batch, depth=batch.depth[:, views])


def test_wrong_cameras_are_noticed() -> None:
    batch = truth(0)
    exact = scene(batch, batch.depth[0])
    shuffled = replace(exact, images=exact.images[[1, 2, 3, 4, 0]])
    after = densify(shuffled)
    assert after.info["stereo"]["status"] == "kept"
    np.testing.assert_array_equal(after.depth, exact.depth)
    assert [w["code"] for w in after.info["warnings"]] == ["stereo-kept"]


@pytest.mark.parametrize("seed", [5, 9])
def test_cameras_that_look_elsewhere_are_noticed(seed: int) -> None:
    """Some more pixels agree, by chance, while most differ as before, or more."""
    before = scene(truth(2))
    axes = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turns = so3_exp(math.radians(6) * F.normalize(axes)).numpy()
    poses = before.cam_from_world.copy()
    poses[:, :3] = turns @ poses[:, :3]
    after = densify(replace(before, cam_from_world=poses))
    report = after.info["stereo"]
    assert report["close"]["after"] > report["close"]["before"]
    assert report["status"] == "kept" and [w["code"] for w in after.info["warnings"]] == ["stereo-kept"]
    np.testing.assert_array_equal(after.depth, before.depth)


def test_one_wrong_camera_among_right_ones_is_named() -> None:
    """The scene as a whole agrees better than before: it is measured, and its confidence and a warning say the rest."""
    batch = truth(3)
    before = scene(batch, bent(batch.depth[0]))
    assert "warnings" not in densify(before).info
    poses = before.cam_from_world.copy()
    poses[1, :3, 3] += [0.15 * float(batch.depth[0, 1].median()), 0, 0]
    after = densify(replace(before, cam_from_world=poses))
    assert after.info["stereo"]["status"] == "measured"
    assert [(w["code"], w["views"]) for w in after.info["warnings"]] == [("views-disagree", [before.names[1]])]


def test_views_in_doubt_are_no_sources() -> None:
    batch = truth(0)
    before = scene(batch)
    doubted = replace(
        before,
        registration=("uncertain", *before.registration[1:]),
        images=np.concatenate([255 - before.images[:1, ::-1], before.images[1:]]),
    )
    after, without = densify(doubted), densify(of_views(before, [1, 2, 3, 4]))
    np.testing.assert_allclose(after.depth[1:], without.depth, rtol=0.02)


def test_distorted_pictures_give_the_same_depth() -> None:
    """A picture with a lens is measured along its own rays."""
    batch = truth(0)
    before = scene(batch)
    pinhole = densify(before)
    lenses = tuple(Lens("OPENCV", (k[0, 0], k[1, 1], k[0, 2], k[1, 2], 0.0, 0.0, 0.0, 0.0)) for k in before.intrinsics)
    lensed = densify(replace(before, lenses=lenses))
    # Single pixels choose another of two depths that fit alike: by rounding, not on every machine.
    assert (np.abs(lensed.depth / pinhole.depth - 1) > 0.02).mean() < 1e-3


def test_padding_and_sky_stay_without_depth() -> None:
    batch = truth(0)
    before = scene(batch)
    mask, depth = before.mask.copy(), before.depth.copy()
    mask[:, :, :20], depth[:, :, :20], depth[:, :10] = False, 0, 0
    after = densify(replace(before, mask=mask, depth=depth))
    assert not after.depth[:, :10].any() and not after.depth[:, :, :20].any()
    assert not after.conf[after.depth == 0].any()
    assert after.depth[:, 10:, 20:].any()


def test_padding_does_not_spoil_the_border() -> None:
    """Pictures of several shapes in one scene are padded; their depth is nearly as good as without."""
    batch = truth(2)
    alone = densify(scene(batch))
    padded = densify(with_padding(scene(batch), 16))
    assert error(padded.depth[:, 16:-16], batch) < 1.2 * error(alone.depth, batch)


def test_what_padding_holds_does_not_matter() -> None:
    before = with_padding(scene(truth(3, 3)), 24)
    noise = np.random.default_rng(0).integers(0, 256, before.images.shape, np.uint8)
    other = replace(before, images=np.where(before.mask[..., None], before.images, noise))
    np.testing.assert_array_equal(densify(before).depth, densify(other).depth)


def test_rays_project_as_cameras_do() -> None:
    batch = truth(3)
    poses, intrinsics = batch.cam_from_world[0].double(), batch.intrinsics[0].double()
    slopes = pinhole_slopes(intrinsics[:1], 120, 152)
    rays = rays_into(slopes, poses[:1], poses[None, 1:3], intrinsics[None, 1:3], 1)
    found = rays.direction + rays.offset[..., None, None] / 2.5
    row, col = 30, 41
    cam = np.array([[*slopes[0, row, col].tolist(), 1.0]]) * 2.5
    world = (cam - poses[0, :3, 3].numpy()) @ poses[0, :3, :3].numpy()
    for place, other in enumerate((1, 2)):
        local = world @ poses[other, :3, :3].numpy().T + poses[other, :3, 3].numpy()
        expected = Optics((), intrinsics.numpy()).project(other, local)[0]
        at = found[0, place, :, row, col]
        assert (at[:2] / at[2]).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_spreading_keeps_planes_and_copes_with_no_points() -> None:
    has = torch.zeros(1, 40, 60, dtype=torch.bool)
    has[0, torch.randint(40, (300,)), torch.randint(60, (300,))] = True
    flat = interpolate_points(torch.full((1, 40, 60), 1.7), has)
    torch.testing.assert_close(flat, torch.full((1, 40, 60), 1.7))
    ramp = torch.linspace(1, 2, 60).expand(1, 40, 60)
    assert (spread(torch.where(has, ramp, 0.0), has.float()) - ramp).abs().mean() < 0.02
    assert not spread(torch.zeros(1, 5, 7), torch.zeros(1, 5, 7)).any()


def test_unknown_depth_lies_behind_the_rest_and_the_nearest_point_counts() -> None:
    depth = np.array([[[1.0, 0.0], [2.0, 1.5]]], np.float32)
    everywhere = np.ones(depth.shape, bool)
    assert filled(depth, everywhere)[0, 0, 1] > np.log(2)
    assert filled(np.zeros((1, 2, 2), np.float32), everywhere).isfinite().all()
    padded = everywhere & [True, False]
    assert filled(depth, padded)[0].exp().tolist() == pytest.approx(np.array([[1.0, 1.0], [2.0, 2.0]]))
    from lean3r.geometry.evidence import Sightings

    seen = Sightings(np.array([[0.2, 0.4], [0.7, 0.6], [9.0, 9.0]]), np.log([3.0, 2.0, 1.0]), np.ones(3))
    log_depth, has = rasters([seen], (1, 2, 2))
    assert has.sum() == 1 and log_depth[0, 0, 0] == pytest.approx(np.log(2))


def test_all_of_the_network_learns() -> None:
    from lean3r.train.losses.stereo import stereo_loss

    net, batch, asked = StereoNet(), truth(1, 4, 96, 128), []

    def predict(given: SceneBatch) -> torch.Tensor:
        asked.append(given)
        return 3 * given.depth.clamp(min=0.1) ** 0.8

    for seed in range(4):
        torch.manual_seed(seed)
        loss, terms = stereo_loss(net, batch, 0.0, predict=predict, references=2, rows=64, cols=80)
        loss.backward()
    assert 0 < len(asked) < 4
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert sum(p.grad is None for p in net.parameters()) == 0
    assert all(np.isfinite(float(value)) for value in terms.values())


def test_weights_travel_in_bytes(tmp_path: Path) -> None:
    """Kernels lose half a step at most, also those of a channel that is zero; what is not a kernel loses nothing, and
    files without steps are read, too."""
    torch.manual_seed(0)
    net = StereoNet()
    assert not net.encoder.stem[2].second.weight.any()  # where a residual begins
    for name, stored in (
        ("bytes", in_bytes(net.state_dict())),
        ("half", {n: v.half() for n, v in net.state_dict().items()}),
    ):
        save_file(stored, tmp_path / name)
    size = (tmp_path / "bytes").stat().st_size
    assert size < 0.55 * (tmp_path / "half").stat().st_size
    assert torch.equal(load_net(tmp_path / "half").decide.enter[0].weight, net.decide.enter[0].weight.half().float())
    for (name, before), after in zip(net.state_dict().items(), load_net(tmp_path / "bytes").parameters(), strict=True):
        if before.ndim == 1:
            assert torch.equal(before, after), name
            continue
        step = before.flatten(1).abs().amax(1) / 127
        assert ((before - after).flatten(1).abs().amax(1) <= 0.501 * step).all(), name


def test_the_network_measures_around_a_prior(tmp_path: Path) -> None:
    """Untrained it knows nothing, but stays within its reach, gives finite depth of any size, and travels by file."""
    torch.manual_seed(0)
    save_file(in_bytes(StereoNet().state_dict()), tmp_path / "net.safetensors")
    before = scene(truth(3, 3, 97, 131), truth(3, 3, 97, 131).depth[0])
    found: list[Depths] = []

    def remember(*given: Any) -> Depths:
        found.append(measure(*given, net=load_net(tmp_path / "net.safetensors")))
        return found[-1]

    densify(before, measure=remember)
    prior = filled(before.depth, before.mask)
    assert found[0].log_depth.shape == prior.shape and found[0].log_b.isfinite().all()
    assert (found[0].log_depth - prior).abs().max() < 2 * (FIRST + SECOND)


def test_auto_measures_confirmed_cameras_and_takes_no_minutes() -> None:
    few = scene(truth(3))
    many = replace(few, depth=np.broadcast_to(few.depth[:1], (450, *few.depth.shape[1:])))
    guessed = replace(few, registration=("predicted",) * 4 + ("refined",))
    for dense, expected in (("auto", (True, False, False)), ("stereo", (True,) * 3), ("network", (False,) * 3)):
        assert tuple(measures(StereoOptions.of(dense), each) for each in (few, many, guessed)) == expected
    assert not measures(StereoOptions(dense="stereo"), of_views(few, [0]))
