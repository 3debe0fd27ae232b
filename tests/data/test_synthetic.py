"""The synthetic world: reproducible numbers and exact geometry."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lean3r.data import DATASETS
from lean3r.data.base import SceneBatch
from lean3r.data.world import render as rendering
from lean3r.data.world.showroom import phone_photos
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.errors import InputError, LeanError, UsageError

KINDS = ("room", "arena", "facade", "terrain")
SMALL = SyntheticWorld(40, 48, 3, tiles=32, tile_size=32, distortion=0.0)


def only(kind: str, world: SyntheticWorld = SMALL) -> SyntheticWorld:
    """A world of one kind of scene."""
    return replace(world, **{k: float(k == kind) for k in KINDS})


def world_points(batch: SceneBatch) -> Tensor:
    """[B, S, H * W, 3] points of all pixels in world axes."""
    h, w = batch.depth.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    pixels = torch.stack((columns, rows, torch.ones(h, w)), -1).view(-1, 3)
    rays = pixels @ torch.linalg.inv(batch.intrinsics).transpose(-1, -2)
    local = rays * batch.depth.flatten(2).unsqueeze(-1)
    pose = torch.linalg.inv(batch.cam_from_world)
    return local @ pose[..., :3, :3].transpose(-1, -2) + pose[..., None, :3, 3]


def same(a: SceneBatch, b: SceneBatch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("images", "depth", "intrinsics", "cam_from_world"))


def test_batch_is_a_pure_function_of_its_arguments() -> None:
    first = SMALL.batch(3, 2)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    SMALL.batch(8, 1)
    assert same(first, SMALL.batch(3, 2))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator was touched"
    assert not torch.equal(first.images, SMALL.batch(4, 2).images)
    assert not torch.equal(first.images, replace(SMALL, seed=1_000_003).batch(3, 2).images)
    assert isinstance(DATASETS.get("synthetic")(), SyntheticWorld)


@pytest.mark.parametrize(("height", "width", "views"), [(37, 53, 2), (71, 33, 1), (8, 8, 5), (1, 1, 1)])
def test_any_size_and_number_of_views(height: int, width: int, views: int) -> None:
    batch = SMALL.batch(0, 2, views=views, height=height, width=width)
    assert batch.images.shape == (2, views, 3, height, width) and batch.normals is not None
    assert batch.normals.shape == batch.images.shape
    assert batch.depth.shape == (2, views, height, width)
    for name in ("images", "depth", "intrinsics", "cam_from_world", "normals"):
        value = getattr(batch, name)
        assert value.dtype == torch.float32 and torch.isfinite(value).all(), name
    assert batch.images.min() >= 0 and batch.images.max() <= 1 and (batch.depth >= 0).all()
    middle = batch.intrinsics[..., :2, 2]
    assert torch.equal(middle, torch.tensor([width / 2, height / 2]).expand_as(middle))
    focal = batch.intrinsics[..., 0, 0] / math.sqrt(height * width)
    assert (focal >= 0.599).all() and (focal <= 1.501).all()
    rotation = batch.cam_from_world[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.transpose(-1, -2), torch.eye(3).expand_as(rotation))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, views))


@pytest.mark.parametrize("kind", KINDS)
def test_depth_agrees_across_views(kind: str) -> None:
    """Points of one view, projected into another: if visible there, they are on the same surface."""
    batch = only(kind).batch(0, 6)
    h, w = batch.depth.shape[-2:]
    points, normals = world_points(batch), batch.normals
    assert normals is not None
    agree = compared = 0
    for i in range(3):
        for j in {0, 1, 2} - {i}:
            pose, camera = batch.cam_from_world[:, j], batch.intrinsics[:, j]
            local = points[:, i] @ pose[:, :3, :3].transpose(-1, -2) + pose[:, None, :3, 3]
            z = local[..., 2]
            pixel = (local @ camera.transpose(-1, -2))[..., :2] / z.clamp_min(1e-6).unsqueeze(-1)
            column, row = pixel.long().unbind(-1)
            inside = (z > 0.01) & (pixel >= 0).all(-1) & (column < w) & (row < h) & (batch.depth[:, i].flatten(1) > 0)
            at = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
            there = batch.depth[:, j].flatten(1).gather(1, at)
            # Depth of the plane through the nearest pixel of the other view, at the exact position.
            normal = normals[:, j].flatten(2).transpose(1, 2).gather(1, at.unsqueeze(-1).expand(-1, -1, 3))
            inverse = torch.linalg.inv(camera).transpose(-1, -2)
            ones = torch.ones_like(z)
            centre = torch.stack(((at % w) + 0.5, torch.div(at, w, rounding_mode="floor") + 0.5, ones), -1) @ inverse
            exact = torch.cat((pixel, ones.unsqueeze(-1)), -1) @ inverse
            plane = there * (normal * centre).sum(-1) / (normal * exact).sum(-1).clamp_max(-1e-6)
            visible = inside & (there > 0) & ((z / there - 1).abs() < 0.06)
            agree += int((visible & ((plane / z - 1).abs() < 0.01)).sum())
            compared += int(visible.sum())
    assert compared > 3000
    assert agree / compared >= 0.95, f"{agree / compared:.3f}"


@pytest.mark.parametrize("kind", KINDS)
def test_normals_are_unit_face_the_camera_and_agree_with_depth(kind: str) -> None:
    batch = only(kind).batch(1, 4, height=64, width=64)
    assert batch.normals is not None
    normals, solid = batch.normals.permute(0, 1, 3, 4, 2), batch.depth > 0
    assert solid.float().mean() > 0.5
    torch.testing.assert_close(normals.norm(dim=-1), solid.float(), atol=1e-5, rtol=0)
    local = world_points(batch).view(*batch.depth.shape, 3)
    pose = batch.cam_from_world
    local = torch.einsum("bsij,bshwj->bshwi", pose[..., :3, :3], local) + pose[..., None, None, :3, 3]
    assert ((normals * local).sum(-1)[solid] <= 1e-5).all()
    # On a plane the step to the next pixel is at right angles to the normal.
    step = local[..., 1:, :] - local[..., :-1, :]
    both = solid[..., 1:] & solid[..., :-1] & ((normals[..., 1:, :] * normals[..., :-1, :]).sum(-1) > 0.9999)
    sine = (step * normals[..., 1:, :]).sum(-1).abs() / step.norm(dim=-1).clamp_min(1e-9)
    assert (sine[both] < 0.03).float().mean() > 0.97


def test_distorted_rays_keep_their_true_depth() -> None:
    """The depth of a distorted picture is that of an undistorted picture at the undistorted position."""
    straight = only("room").batch(2, 1, views=1, height=65, width=65)
    bent = only("room", replace(SMALL, distortion=0.03)).batch(2, 1, views=1, height=65, width=65)
    torch.testing.assert_close(bent.depth[0, 0, 32, 32], straight.depth[0, 0, 32, 32])
    assert torch.equal(bent.intrinsics, straight.intrinsics)
    close = (bent.depth / straight.depth - 1).abs() < 0.02
    assert close.float().mean() > 0.8


def test_neighbouring_views_overlap_and_move() -> None:
    batch = replace(SMALL, terrain=0.0, views=4).batch(5, 16)
    centre = torch.linalg.inv(batch.cam_from_world)[..., :3, 3]
    mean = batch.depth.flatten(1).sum(1) / (batch.depth > 0).flatten(1).sum(1)
    baseline = torch.cdist(centre, centre)[:, *torch.triu_indices(4, 4, 1)] / mean[:, None]
    assert 0.05 < baseline.median() < 0.5
    points, h, w = world_points(batch), 40, 48
    best = torch.zeros(16, 4)
    for i in range(4):
        for j in set(range(4)) - {i}:
            pose = batch.cam_from_world[:, j]
            local = points[:, i] @ pose[:, :3, :3].transpose(-1, -2) + pose[:, None, :3, 3]
            pixel = (local @ batch.intrinsics[:, j].transpose(-1, -2))[..., :2] / local[..., 2:].clamp_min(1e-6)
            seen = (pixel >= 0).all(-1) & (pixel[..., 0] < w) & (pixel[..., 1] < h) & (local[..., 2] > 0)
            best[:, i] = torch.maximum(best[:, i], seen.float().mean(-1))
    assert best.min() > 0.25


def test_photo_folder_changes_only_textures(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "crop.jpg")
    plain, mixed = SMALL.batch(0, 1), replace(SMALL, textures=str(tmp_path)).batch(0, 1)
    assert mixed.images.shape == plain.images.shape and not torch.equal(mixed.images, plain.images)
    assert torch.isfinite(mixed.images).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="texture folder"):
        replace(SMALL, textures=str(tmp_path / "empty")).batch(0, 1)


def test_bad_settings_are_refused() -> None:
    bad: list[dict] = [{"height": 0}, {"room": -1.0}, {"tile_size": 100}, {"tiles": 3}, {"focal": (0.0, 1.0)}]
    for change in bad:
        with pytest.raises(UsageError):
            SyntheticWorld(**change)
    assert issubclass(UsageError, LeanError)


def test_failed_compilation_warns_once_and_renders_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, **_: object) -> object:
        def fail(*_: object) -> None:
            raise RuntimeError("no compiler here")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    rendering._compile.cache_clear()
    rendering._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batch = replace(SMALL, compile=True).batch(0, 1)
        replace(SMALL, compile=True).batch(1, 1)
    rendering._compile.cache_clear()
    assert [str(w.message) for w in caught if "compiled" in str(w.message)] and len(caught) == 1
    torch.testing.assert_close(batch.depth, SMALL.batch(0, 1).depth)


def test_phone_photos_have_the_files_of_a_phone(tmp_path: Path) -> None:
    from PIL import Image

    truth = phone_photos(tmp_path, 2, height=60, width=80)
    stored = np.load(tmp_path / "truth.npz")
    np.testing.assert_allclose(stored["depth"], truth.depth[0].numpy(), rtol=1e-3)
    np.testing.assert_array_equal(stored["cam_from_world"], truth.cam_from_world[0].numpy())
    for name in ("IMG_0001.jpg", "IMG_0002.jpg"):
        with Image.open(tmp_path / name) as photo:
            assert photo.size == (80, 60)
            exif = photo.getexif()
            assert exif[0x0112] == 1
            focal = exif.get_ifd(0x8769)[0xA405] / math.hypot(36, 24) * math.hypot(60, 80)
    assert focal == pytest.approx(float(truth.intrinsics[0, 0, 0, 0]), rel=0.02)
    assert (truth.depth > 0).all(), "a closed room"


_MADE = """
import torch

torch.set_default_device("meta")
from lean3r.data.world.synthetic import SyntheticWorld

batch = SyntheticWorld(tiles=16, tile_size=16, terrain=0.5).batch(0, 2, views=2, height=16, width=16)
print(float(batch.images.sum()), float(batch.depth.sum()))
"""


def test_scenes_do_not_depend_on_the_default_device(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-c", _MADE], capture_output=True, text=True, timeout=100)
    batch = SyntheticWorld(tiles=16, tile_size=16, terrain=0.5).batch(0, 2, views=2, height=16, width=16)
    assert made.stdout.split() == [str(float(batch.images.sum())), str(float(batch.depth.sum()))], made.stderr
    with torch.device("meta"):
        photos = phone_photos(tmp_path / "meta", views=1, height=24, width=32)
    torch.testing.assert_close(photos.depth, phone_photos(tmp_path / "cpu", views=1, height=24, width=32).depth)
