"""Batches from sets: geometry under every augmentation; draws depend only on their numbers."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data import tiny
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.data.sampling.augment import Augmentation, augment, cut, draw_scene, mirror, rotate_quarter
from lean3r.data.sampling.choosing import Choice, Chooser, estimate
from lean3r.data.sampling.mixture import BatchShape, Mixture, Part, shape_at
from lean3r.data.sets.colmap import ColmapFolder
from lean3r.data.sets.scenes import Camera, RawView, SceneInfo, SceneSet
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.errors import InputError, UsageError
from lean3r.geometry.camera import project, world_points
from lean3r.geometry.pose import transform_points

SHAPE = BatchShape(2, 3, 28, 42)


class Memory(SceneSet):
    """The tiny scenes in memory, repeated to be long, with optional errors."""

    name, title, licence, source, layout = "memory", "Memory", "none", "none", "none"
    has_normals = True

    def __init__(self, views: int = 6, ordered: bool = False, **broken: object) -> None:
        self.views, self.is_ordered, self.broken = views, ordered, broken

    def __len__(self) -> int:
        return 2

    def scene(self, index: int) -> SceneInfo:
        return SceneInfo(f"s{index}", self.views)

    def camera(self, scene: int, view: int) -> Camera:
        made = tiny.scenes()[scene]
        if self.broken.get("poses") and view == 0:
            raise InputError("the pose is not a rotation")
        pose = made.cam_from_world[view % 6].copy()
        return Camera(made.intrinsics[view % 6], pose, tiny.WIDTH, tiny.HEIGHT)

    def view(self, scene: int, view: int) -> RawView:
        made, camera = tiny.scenes()[scene], self.camera(scene, view)
        if self.broken.get("files") in (scene, "all"):
            raise InputError("a file is damaged")
        depth = made.depth[view % 6].copy()
        if self.broken.get("nan"):
            depth[:, :2] = np.nan
            depth[0, 5], depth[1, 5] = np.inf, -1
        return RawView(made.images[view % 6], depth, camera.intrinsics, camera.cam_from_world, made.normals[view % 6])

    @classmethod
    def looks_like(cls, root: Path) -> bool:
        return False

    @classmethod
    def problems(cls, root: Path) -> list[str]:
        return []


def view_of(number: int = 0, scene: int = 0) -> RawView:
    return Memory().view(scene, number)


def agreement(views: list[RawView]) -> float:
    """Share of the first view's points that agree with the depth of another view of the list."""
    one, other = ([torch.tensor(np.ascontiguousarray(x)).double() for x in _parts(view)] for view in views)
    points = world_points(*one)[one[0] > 0]
    there = transform_points(other[2], points)
    pixels = project(there, other[1])
    height, width = other[0].shape
    inside = (there[:, 2] > 0) & (pixels > 0).all(1) & (pixels < torch.tensor([width, height])).all(1)
    x, y = pixels[inside].long().T
    seen = other[0][y, x]
    return float(((there[inside, 2] / seen - 1).abs() < 0.05).double().mean()) if bool(inside.any()) else 0.0


def _parts(view: RawView) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return view.depth, view.intrinsics, view.cam_from_world


@pytest.mark.parametrize(
    "change", [mirror, rotate_quarter, lambda v: cut(v, 30, 60), lambda v: cut(v, 90, 50, 0.7, (0.1, 0.9))]
)
def test_cameras_change_with_their_pictures(change) -> None:
    pair = [view_of(0), view_of(1)]
    before, after = agreement(pair), agreement([change(v) for v in pair])
    assert before > 0.5 and after > before - 0.1
    changed = change(pair[0])
    rotation = changed.cam_from_world[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) > 0
    # Normals rotate with the axes: they still face the camera.
    rows, columns = np.nonzero(changed.depth)
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1) @ np.linalg.inv(changed.intrinsics).T
    assert ((rays * changed.normals[rows, columns]).sum(1) < 1e-3).mean() > 0.995


def test_a_cut_moves_points_with_the_picture() -> None:
    """A gradient in x encodes the origin of each pixel; the camera must agree."""
    ramp = np.repeat(np.linspace(0, 255, 200)[None, :], 100, 0)
    image = np.repeat(ramp[..., None], 3, 2).astype(np.uint8)
    k = np.array([[150.0, 0, 100], [0, 150, 50], [0, 0, 1]])
    small = cut(RawView(image, np.ones((100, 200), np.float32), k, np.eye(4)), 25, 40, 0.9, (0.2, 0.5))
    x = np.arange(40) + 0.5
    original = (x - small.intrinsics[0, 2]) / small.intrinsics[0, 0] * 150 + 100
    expected = np.interp(original, np.arange(200) + 0.5, ramp[0])
    assert np.abs(small.image[12, 2:-2, 0] - expected[2:-2]).max() < 1.5
    assert small.intrinsics[0, 0] / small.intrinsics[1, 1] == pytest.approx(1)


def test_few_points_of_depth_survive_a_small_size() -> None:
    view = view_of()
    depth = np.zeros_like(view.depth)
    depth[5::9, 3::9] = view.depth[5::9, 3::9]
    small = cut(replace(view, depth=depth), tiny.HEIGHT // 2, tiny.WIDTH // 2)
    assert np.count_nonzero(small.depth) > 0.9 * np.count_nonzero(depth)
    assert set(small.depth.ravel()) <= set(depth.ravel())


@pytest.mark.parametrize("views", [2, 5])
def test_all_views_of_a_scene_rotate_and_only_if_its_orientation_differs(views: int) -> None:
    rng = np.random.default_rng(0)
    augmentation = Augmentation(turn=1.0)
    drawn = draw_scene(rng, augmentation)
    upright = [augment(view_of(v), 64, 48, augmentation, drawn, rng) for v in range(views)]
    assert all(np.array_equal(v.image, np.rot90(view_of(i).image, -1)) for i, v in enumerate(upright))
    level = augment(view_of(0), 48, 64, augmentation, drawn, rng)
    assert np.array_equal(level.image, view_of(0).image)


def test_colours_change_within_their_range() -> None:
    rng, augmentation = np.random.default_rng(1), Augmentation(jitter=0.5)
    made = augment(view_of(0), 48, 64, augmentation, draw_scene(rng, augmentation), rng)
    assert made.image.dtype == np.uint8 and not np.array_equal(made.image, view_of(0).image)
    with pytest.raises(UsageError, match="jitter"):
        Augmentation(jitter=2)


def test_shapes_of_steps_are_within_bounds_and_the_same_for_all() -> None:
    drawn = [shape_at(5, step, range(2, 25), (100_000, 255_000), (0.5, 2.0), 14, 48) for step in range(200)]
    assert drawn == [shape_at(5, step, range(2, 25), (100_000, 255_000), (0.5, 2.0), 14, 48) for step in range(200)]
    assert drawn != [shape_at(6, step, range(2, 25), (100_000, 255_000), (0.5, 2.0), 14, 48) for step in range(200)]
    for s in drawn:
        assert s.height % 14 == s.width % 14 == 0 and 100_000 <= s.height * s.width <= 255_000
        assert 0.5 <= s.width / s.height <= 2 and s.scenes == max(1, 48 // s.views)
    assert {s.views for s in drawn} == set(range(2, 25))
    assert {s.height > s.width for s in drawn} == {True, False} and len({(s.height, s.width) for s in drawn}) > 60
    assert shape_at(0, 0, 30, (196, 196), (1, 1), 14, 4) == BatchShape(1, 30, 14, 14)
    with pytest.raises(UsageError, match="multiples of 14"):
        shape_at(0, 0, 2, (10, 100), (1, 1), 14, 4)


def equal(a: SceneBatch, b: SceneBatch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(SceneBatch)]
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def test_samples_depend_only_on_seed_step_and_number() -> None:
    part = Part(Memory(), augmentation=Augmentation(flip=0.5, zoom=0.7, shift=1, jitter=0.3))
    mixture = Mixture([part], seed=3)
    whole = mixture.batch(4, replace(SHAPE, scenes=4))
    halves = [mixture.batch(4, SHAPE, rank, 2) for rank in (0, 1)]
    assert torch.equal(whole.images, torch.cat([h.images for h in halves]))
    assert whole.ids == halves[0].ids + halves[1].ids and whole.ids[0].startswith("memory/s")
    assert equal(pickle.loads(pickle.dumps(mixture)).batch(4, SHAPE, 1, 2), halves[1])
    assert not equal(mixture.batch(5, SHAPE), mixture.batch(4, SHAPE))
    assert not equal(Mixture([part], seed=4).batch(4, SHAPE), mixture.batch(4, SHAPE))
    assert whole.images.shape == (4, 3, 3, 28, 42) and whole.normals is not None and whole.images.dtype == torch.float32
    with pytest.raises(UsageError, match="rank"):
        mixture.batch(0, SHAPE, 2, 2)


def test_weights_decide_how_often_a_set_is_drawn() -> None:
    world = SyntheticWorld(8, 8, 2, tiles=32, tile_size=32)
    parts = [Part(Memory(), 3.0, name="often"), Part(Memory(), 1.0, name="seldom"), Part(world, 0.0)]
    ids = Mixture(parts).batch(0, BatchShape(200, 1, 8, 8)).ids
    share = sum(name.startswith("often") for name in ids) / 200
    assert 0.65 < share < 0.85 and not any(name.startswith("synthetic") for name in ids)
    both = Mixture([Part(Memory()), Part(world)], seed=2).batch(0, BatchShape(6, 2, 16, 16))
    assert {name.split("/")[0] for name in both.ids} == {"memory", "synthetic"} and both.normals is not None
    for bad in ([], [Part(Memory(), 0.0)]):
        with pytest.raises(UsageError, match="weight"):
            Mixture(bad)
    with pytest.raises(UsageError, match="weight"):
        Part(Memory(), -1.0)


def test_unreadable_samples_are_replaced_and_listed() -> None:
    batch = Mixture([Part(Memory(files=1))], seed=0).batch(0, BatchShape(8, 2, 24, 32))
    assert all(name.startswith("memory/s0") for name in batch.ids) and batch.skipped
    assert all("a file is damaged" in reason for reason in batch.skipped)
    with pytest.raises(InputError, match=r"could not be read.*data check"):
        Mixture([Part(Memory(files="all"))]).batch(0, BatchShape(4, 2, 24, 32))
    with pytest.raises(InputError, match="fewer than 9 views"):
        Mixture([Part(Memory())]).batch(0, BatchShape(1, 9, 24, 32))


def test_views_with_invalid_poses_are_not_used() -> None:
    batch = Mixture([Part(Memory(poses=True))], seed=0).batch(0, BatchShape(12, 3, 24, 32))
    used = [int(v) for name in batch.ids for v in name.split(":")[1].split(",")]
    assert 0 not in used and set(used) == {1, 2, 3, 4, 5}


def test_depth_that_is_not_finite_is_unknown() -> None:
    batch = Mixture([Part(Memory(nan=True))]).batch(0, BatchShape(1, 2, tiny.HEIGHT, tiny.WIDTH))
    assert batch.unknown == 2 * (2 * tiny.HEIGHT + 1)
    assert (
        bool(batch.depth.isfinite().all())
        and bool((batch.depth >= 0).all())
        and bool((batch.depth[..., :2] == 0).all())
    )


@pytest.mark.parametrize("how", ["auto", "covisibility", "range", "random"])
def test_views_are_distinct_and_of_the_scene(how) -> None:
    chooser = Chooser(Memory(40, ordered=True), Choice(how, stride=(1, 4)))
    for seed in range(20):
        chosen = chooser.choose(np.random.default_rng(seed), 0, 5)
        assert len(set(chosen)) == 5 and set(chosen) <= set(range(40))
        if how in ("auto", "range"):
            assert max(chosen) - min(chosen) <= 4 * 4
    assert chooser.choose(np.random.default_rng(0), 0, 1)[0] in range(40)
    assert sorted(Chooser(Memory(3), Choice("range")).choose(np.random.default_rng(0), 0, 3)) == [0, 1, 2]


def test_covisible_views_share_what_they_see(tmp_path: Path) -> None:
    tiny.write("colmap", tmp_path)
    scenes = ColmapFolder(tmp_path)
    stated = scenes.covisibility(0)
    guessed = estimate(scenes, 0)
    assert stated is not None and np.allclose(guessed, guessed.T)
    upper = np.triu_indices(len(stated), 1)
    assert np.corrcoef(stated[upper], guessed[upper])[0, 1] > 0.5
    strict = Chooser(scenes, Choice("covisibility", least=0.5))
    for seed in range(10):
        one, other = strict.choose(np.random.default_rng(seed), 0, 2)
        shared = stated - np.diag(np.diag(stated))
        assert shared[one, other] >= 0.5 * min(shared[one].max(), shared[other].max())


def test_an_invalid_choice_is_refused() -> None:
    with pytest.raises(UsageError, match="covisibility, range, random"):
        Choice("nearest")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stride"):
        Choice(stride=(3, 2))
