"""Classical stereo: exact where views agree, the prior's shape elsewhere, and honest about which is which."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export.scene import cast, orbit
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.lens import Optics, pinhole_part
from lean3r.stereo.classical import distance, measure_classically
from lean3r.stereo.posed import Depths, Posed
from lean3r.stereo.semi_global import EDGE, LARGE, SMALL, smooth
from lean3r.types import Lens, Source

SURE = np.log(0.02)  # of log b


class Known(NamedTuple):
    """Pictures with true cameras, true depth [S, H, W], a prior [S, H, W] (log depth) that is off by some 10 %, and
    what is measured around it."""

    scene: Posed
    depth: Tensor
    prior: Tensor
    found: Depths

    def error(self, log_depth: Tensor) -> Tensor:
        """Relative error [P] where the true depth is known."""
        there = self.depth > 0
        return (log_depth[there].exp() / self.depth[there] - 1).abs()

    @property
    def sure(self) -> Tensor:
        """Which of those pixels [P] are expected to be good."""
        return self.found.log_b[self.depth > 0] < SURE


def run(scene: Posed, prior: Tensor) -> Depths:
    return measure_classically(scene, prior, (torch.zeros_like(prior), torch.zeros_like(prior, dtype=torch.bool)))


def known(images: np.ndarray, depth: np.ndarray, poses: np.ndarray, optics: Optics, intrinsics: np.ndarray) -> Known:
    sources = neighbours(Scene(depth, poses, optics), 4)
    scene = Posed(images, depth >= 0, poses, intrinsics, optics, sources, has_lenses=bool(optics._lenses))
    prior = bent(torch.from_numpy(depth))
    return Known(scene, torch.from_numpy(depth), prior, run(scene, prior))


def bent(depth: Tensor) -> Tensor:
    """Log depth as networks err: blurred, bent, and at another scale in each view."""
    views, height, width = depth.shape
    log = torch.where(depth > 0, depth, depth.max()).log()[:, None]
    blurred = F.interpolate(F.interpolate(log, (height // 6, width // 6), mode="area"), (height, width))
    noise = 0.12 * torch.randn(views, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return (blurred + F.interpolate(noise, (height, width), mode="bicubic"))[:, 0]


@lru_cache
def room(height: int = 96, width: int = 128, views: int = 4) -> Known:
    """A random room with furniture, seen by cameras with noise and an exposure of their own."""
    kinds = {"room": 1, "arena": 0, "facade": 0, "terrain": 0}
    world = SyntheticWorld(height, width, views, seed=3, distortion=0.0, tiles=32, tile_size=64, **kinds)
    batch = world.batch(1, 1)
    images = (batch.images[0].permute(0, 2, 3, 1) * 255).round().byte().numpy()
    poses, intrinsics = (x[0].double().numpy() for x in (batch.cam_from_world, batch.intrinsics))
    return known(images, batch.depth[0].numpy(), poses, Optics([], intrinsics), intrinsics)


@lru_cache
def box(lens: Lens | None = None, height: int = 90, width: int = 120, views: int = 5) -> Known:
    """A room of planes with a box in it, all of rich texture, seen exactly."""
    pinhole = pinhole_part(lens) if lens else np.array([[100, 0, width / 2 - 1], [0, 100, height / 2 + 2], [0, 0, 1.0]])
    intrinsics = np.stack([pinhole] * views)
    optics = Optics([Source("", width, height)] * views, intrinsics, [lens] * views if lens else [])
    waves = np.random.default_rng(0).normal(0, 9, (3, 40))
    depth, images = [], []
    for view, pose in enumerate(orbit(views)):
        slopes = optics.slopes(view, height, width)
        rays = np.concatenate([slopes, np.ones_like(slopes[..., :1])], -1)
        z, _ = cast(pose, rays)
        points = (rays * z[..., None] - pose[:3, 3]) @ pose[:3, :3]
        grey = 128 + 12 * np.sin(points @ waves + np.arange(40)).sum(-1, keepdims=True)
        depth.append(z), images.append(grey.clip(0, 255).round().astype(np.uint8).repeat(3, -1))
    return known(np.stack(images), np.stack(depth).astype(np.float32), orbit(views), optics, intrinsics)


@pytest.mark.parametrize("lens", [None, Lens("SIMPLE_RADIAL", (100.0, 59.0, 47.0, -0.15))])
def test_planes_and_a_box_are_exact_where_views_agree(lens: Lens | None) -> None:
    scene = box(lens)
    error, before = scene.error(scene.found.log_depth), scene.error(scene.prior)
    assert scene.sure.float().mean() > 0.5
    assert error[scene.sure].median() < 0.01
    assert error.mean() < 0.4 * before.mean()


def test_a_noisy_room_is_measured_and_expected_errors_are_those_that_occur() -> None:
    scene = room()
    error, before = scene.error(scene.found.log_depth), scene.error(scene.prior)
    assert 0.05 < before.median() < 0.15
    assert error[scene.sure].median() < 0.015
    assert error.mean() < 0.7 * before.mean()
    expected = scene.found.log_b[scene.depth > 0].exp()
    for part in (scene.sure, ~scene.sure):
        assert 1 / 3 < error[part].mean() / expected[part].mean() < 3


def test_the_unit_of_the_world_does_not_matter() -> None:
    scene, _, prior, found = room()
    poses = scene.cam_from_world.copy()
    poses[:, :3, 3] *= 37.0
    other = run(replace(scene, cam_from_world=poses), prior + np.log(37.0))
    torch.testing.assert_close(other.log_depth, found.log_depth + np.log(37.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(other.log_b, found.log_b, rtol=0, atol=1e-4)


def test_exposure_changes_little() -> None:
    scene, _, prior, found = room()
    images = scene.images.copy()
    images[::2] = (30 + 0.6 * images[::2]).round().astype(np.uint8)
    other = run(replace(scene, images=images), prior)
    both = (found.log_b < SURE) & (other.log_b < SURE)
    assert both.sum() > 0.85 * (found.log_b < SURE).sum()
    assert (found.log_depth - other.log_depth).abs()[both].median() < 0.003


def test_views_without_sources_keep_the_prior() -> None:
    scene, _, prior, _ = room()
    calls: list[None] = []
    sources = [np.array([1]), np.array([0]), np.array([], int), np.array([0, 1, 3])]
    some = measure_classically(
        replace(scene, sources=sources), prior, (prior, torch.zeros_like(prior) > 0), lambda: calls.append(None)
    )
    assert some.measured.tolist() == [True, True, False, True]
    assert len(calls) == 4
    assert torch.equal(some.log_depth[2], prior[2])
    assert (some.log_b[:2] < SURE).float().mean() > 0.1  # the only other view agrees
    alone = replace(
        scene,
        **{name: getattr(scene, name)[:1] for name in ("images", "mask", "cam_from_world", "intrinsics")},
        sources=sources[2:3],
    )
    assert torch.equal(run(alone, prior[:1]).log_depth, prior[:1])


def test_portraits_and_odd_sizes() -> None:
    scene = box(None, 83, 61, 4)
    assert scene.found.log_depth.shape == scene.found.log_b.shape == (4, 83, 61)
    assert scene.error(scene.found.log_depth).mean() < 0.6 * scene.error(scene.prior).mean()


def test_flat_pictures_keep_the_shape_of_the_prior_and_are_not_sure() -> None:
    scene, _, prior, _ = room()
    noise = np.random.default_rng(0).integers(-1, 2, scene.images.shape)
    flat = run(replace(scene, images=(128 + noise).astype(np.uint8)), prior)
    assert (flat.log_depth - prior).abs().max() < 0.01
    assert flat.log_b.exp().min() > 0.1


def test_what_padding_holds_does_not_matter() -> None:
    scene, _, prior, _ = room()
    mask = scene.mask.copy()
    mask[:, 80:], mask[:, :, :16] = False, False
    images = np.where(mask[..., None], scene.images, 200).astype(np.uint8)
    ours, theirs = (run(replace(scene, mask=mask, images=x), prior) for x in (scene.images, images))
    assert (ours.log_b < SURE).float().mean() > 0.15
    assert torch.equal(ours.log_depth, theirs.log_depth)


def test_smoothing_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    height, planes, width = 4, 5, 6
    costs, grey = (
        torch.rand(height, planes, width, generator=generator),
        torch.rand(height, width, generator=generator) / 5,
    )
    total = torch.zeros_like(costs)
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        path = costs.clone()
        for y in range(height)[:: down or 1]:
            for x in range(width)[:: right or 1]:
                if 0 <= y - down < height and 0 <= x - right < width:
                    last = path[y - down, :, x - right]
                    weight = float(torch.exp(-(grey[y, x] - grey[y - down, x - right]).abs() / EDGE))
                    for plane in range(planes):
                        jumps = (torch.arange(planes) - plane).abs()
                        penalty = torch.where(jumps == 0, 0.0, torch.where(jumps == 1, SMALL, LARGE) * weight)
                        path[y, plane, x] += (last + penalty).min() - last.min()
        total += path
    torch.testing.assert_close(smooth(costs, grey), total)


def test_distance_is_the_shortest() -> None:
    there = torch.rand(23, 17, generator=torch.Generator().manual_seed(0)) < 0.02
    pixels = torch.stack(torch.meshgrid(torch.arange(23.0), torch.arange(17.0), indexing="ij"), -1)
    shortest = (pixels[:, :, None] - pixels[there]).norm(dim=-1).amin(-1)
    torch.testing.assert_close(distance(there), shortest)
    assert torch.equal(distance(there, 5) > 5, shortest > 5)
    assert (distance(torch.zeros(5, 9, dtype=torch.bool)) > 14).all()


def test_distances_in_wide_pictures_take_no_more_for_each_pixel() -> None:
    """The work was that of the pixels times the width: two minutes for a picture of 7 megapixels."""

    class Work(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            self.numbers += made.numel() if isinstance(made, torch.Tensor) else 0
            return made

    work = []
    for width in (100, 1600):
        with Work() as counted:
            distance((torch.arange(width) % 20 == 0).expand(8, width))
        work.append(counted.numbers / width)
    assert work[1] < 1.5 * work[0]
