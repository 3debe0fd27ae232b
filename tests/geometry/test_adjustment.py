"""Cameras adjusted to matches: known scenes, wrong matches, no evidence, and nano's own matches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from stereo.rendered import scene, truth
from torch import Tensor

import lean3r
from lean3r.data.base import SceneBatch
from lean3r.eval.pose_errors import pose_auc, relative_pose_errors
from lean3r.geometry.adjustment import MOST, Guess, Pairs, adjust, explained
from lean3r.geometry.rotation import so3_exp
from lean3r.inputs.pictures import Pictures
from lean3r.models.nano import Nano
from lean3r.pipeline import adjusting
from lean3r.pipeline.adjusting import adjust_scene
from lean3r.pipeline.network_scene import scene_of
from lean3r.pipeline.predict import predict
from lean3r.types import Views

VIEWS, PATCHES = 5, 80


def exact(seed: int = 0, side: int | None = None) -> tuple[Guess, Pairs]:
    """Cameras around a scene, and matches that are right; if `side` is given, of a wall in so many rows and columns."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    poses = torch.eye(4, dtype=torch.float64).repeat(VIEWS, 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = so3_exp(0.15 * draw(VIEWS, 3)), 0.25 * draw(VIEWS, 3)
    guess = Guess(poses, (0.9 + 0.02 * draw(VIEWS)).log(), 0.2 * draw(VIEWS, PATCHES) + 0.3)
    grid = torch.rand(VIEWS, PATCHES, 2, generator=generator, dtype=torch.float64) - 0.5
    if side is not None:
        poses[:, :3, :3], poses[:, 2, 3] = torch.eye(3), 0.0
        grid = torch.cartesian_prod(*2 * [(torch.arange(side).double() + 0.5) / side - 0.5]).repeat(VIEWS, 1, 1)
        guess = Guess(poses, torch.zeros(VIEWS).double(), torch.zeros(VIEWS, side**2).double())
    count = grid.shape[1]
    pairs = Pairs(grid, torch.zeros(VIEWS, VIEWS, count, 2).double(), torch.ones(VIEWS, VIEWS, count).double(), (8, 10))
    rays = torch.cat([grid / guess.log_focal.exp()[:, None, None], torch.ones(VIEWS, count, 1)], -1)
    points = torch.cat([rays * guess.log_depth.exp()[..., None], torch.ones(VIEWS, count, 1)], -1)
    there = torch.einsum("jkl,ilm,inm->ijnk", poses, torch.linalg.inv(poses), points)
    position = guess.log_focal.exp()[:, None, None] * there[..., :2] / there[..., 2:3]
    weight = (there[..., 2] > 0.2) * ~torch.eye(VIEWS, dtype=torch.bool)[..., None]
    return guess, replace(pairs, position=position, weight=weight.double())


def off(guess: Guess, seed: int = 1) -> Guess:
    """A guess with errors as a network has them."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(VIEWS, 7, generator=generator, dtype=torch.float64) * torch.tensor([0.05] * 6 + [0.03])
    turn = torch.eye(4, dtype=torch.float64).repeat(VIEWS, 1, 1)
    turn[:, :3, :3], turn[:, :3, 3] = so3_exp(noise[:, :3]), noise[:, 3:6]
    depth = torch.randn(guess.log_depth.shape, generator=generator, dtype=torch.float64) * 0.2
    return Guess(turn @ guess.cam_from_world, guess.log_focal + noise[:, 6], guess.log_depth + depth)


def errors_deg(guess: Guess, true: Guess) -> tuple[float, float]:
    found = relative_pose_errors(guess.cam_from_world, true.cam_from_world)
    return float(np.max(found.rotation_deg)), float(np.max(found.translation_deg))


@pytest.mark.parametrize("wrong", [0.0, 0.2])
def test_true_cameras_are_found_again_among_wrong_matches(wrong: float) -> None:
    true, pairs = exact()
    generator = torch.Generator().manual_seed(2)
    is_wrong = torch.rand(pairs.weight.shape, generator=generator) < wrong
    elsewhere = torch.rand(pairs.position.shape, generator=generator, dtype=torch.float64) - 0.5
    pairs = replace(pairs, position=torch.where(is_wrong[..., None], elsewhere, pairs.position))
    start = off(true)
    found = adjust(start, pairs)
    before, after = errors_deg(start, true), errors_deg(found, true)
    assert min(before) > 4
    assert after[0] < 0.1 * before[0] and after[1] < 0.1 * before[1], (before, after)
    assert explained(found, pairs) > 0.95 - wrong > explained(start, pairs)


def test_what_matches_do_not_contradict_stays() -> None:
    true, pairs = exact()
    same = adjust(true, pairs)
    torch.testing.assert_close(same.cam_from_world, true.cam_from_world, atol=1e-6, rtol=0)
    start = off(true)
    nothing = adjust(start, replace(pairs, weight=torch.zeros_like(pairs.weight)))
    torch.testing.assert_close(nothing.cam_from_world, start.cam_from_world, atol=1e-9, rtol=0)
    torch.testing.assert_close(nothing.log_depth, start.log_depth, atol=1e-9, rtol=0)


def test_the_world_and_the_order_of_views_do_not_matter() -> None:
    true, pairs = exact()
    start, order = off(true), [3, 0, 4, 2, 1]
    found = adjust(start, pairs)
    mixed = Pairs(pairs.grid[order], pairs.position[order][:, order], pairs.weight[order][:, order], pairs.size)
    other = adjust(Guess(start.cam_from_world[order], start.log_focal[order], start.log_depth[order]), mixed)
    torch.testing.assert_close(other.cam_from_world, found.cam_from_world[order], atol=1e-7, rtol=0)


def test_matches_count_by_their_spread_and_by_the_way_back() -> None:
    _, pairs = exact(side=21)
    spread, seen = torch.full(pairs.weight.shape, 1e-4), torch.ones(pairs.weight.shape)
    known = torch.ones(pairs.grid.shape[:2], dtype=torch.bool)
    known[0, 0] = False
    middle, beside = 220, 221
    spread[1, 2, middle], seen[1, 2, beside] = 1.0, 0.1
    of = Pairs.of(pairs.grid, pairs.position, spread, seen, known, (21, 21))
    assert of.step == 1 and not of.weight[range(VIEWS), range(VIEWS)].any() and not of.weight[0, :, 0].any()
    assert of.weight[1, 3, [middle, beside]].min() > 0.5
    assert of.weight[1, 2, [middle, beside]].max() < 0.05
    wrong = pairs.position.clone()
    wrong[2, 1] += 0.5  # matches of view 2 in view 1, and so the way back of those of view 1 in view 2
    unsure = Pairs.of(pairs.grid, wrong, spread, seen, known, (21, 21)).weight
    assert unsure[1, 2].mean() < 0.01 * of.weight[1, 2].mean()
    torch.testing.assert_close(unsure[3, 4], of.weight[3, 4])
    often = [x.repeat_interleave(10, d) for x, d in ((pairs.grid, 1), (pairs.position, 2), (spread, 2), (seen, 2))]
    many = Pairs.of(*often, known.repeat_interleave(10, 1), (21, 210))
    assert many.step == 2 and many.weight.numel() < MOST


@pytest.fixture(scope="module")
def nano() -> Nano:
    model = lean3r.load("nano", device="cpu")
    assert isinstance(model, Nano)
    return model


@pytest.mark.parametrize("padded", [False, True])
def test_nano_s_matches_lie_where_the_scene_has_them(nano: Nano, padded: bool) -> None:
    batch = truth(7, 4, 240, 192)  # upright pictures
    images, mask, grow = batch.images, None, 0
    if padded:
        grow = 32
        images = torch.nn.functional.pad(images, (grow, grow, 0, 0), value=0.9)
        mask = torch.zeros(*images.shape[:2], *images.shape[-2:], dtype=torch.bool)
        mask[..., grow:-grow] = True
    with torch.inference_mode():
        pairs = nano.matched(Views(images, mask))
    assert pairs is not None and pairs.grid.shape[1] == pairs.size[0] * pairs.size[1]
    counts = pairs.weight.sum(1) > 0
    assert pairs.weight.sum() > 300
    assert bool((pairs.grid[counts].abs().amax(0) < torch.tensor([0.45, 0.56])).all())  # none in the padding
    assert explained(exact_guess(batch, pairs), pairs) > 0.9


def exact_guess(batch: SceneBatch, pairs: Pairs) -> Guess:
    """True cameras and depth at the patches."""
    depth, (height, width) = batch.depth[0].double(), batch.depth.shape[-2:]
    side = (height * width) ** 0.5
    x, y = ((pairs.grid * side + torch.tensor([width, height]) / 2).long().unbind(-1))  # fmt: skip
    values = depth[torch.arange(len(depth))[:, None], y.clamp(0, height - 1), x.clamp(0, width - 1)]
    focal = batch.intrinsics[0, :, 0, 0].double() / side
    return Guess(batch.cam_from_world[0].double(), focal.log(), values.clamp_min(1e-3).log())


def test_one_view_many_views_and_networks_without_matches_stay_as_they_are(nano: Nano) -> None:
    alone = scene(truth(3, 3))
    one = Views(truth(3, 3).images[:, :1, :, :112, :144])
    assert adjust_scene(alone, nano, one) is alone
    many = Views(one.images[:, :1, :, :32, :32].expand(1, 33, 3, 32, 32))
    assert nano.matched(many) is None and adjust_scene(alone, nano, many) is alone
    other = lean3r.models.base.Backbone()
    other.weight = torch.nn.Parameter(torch.zeros(1))
    assert adjust_scene(alone, other, one) is alone


def test_reconstruct_without_refinement_has_better_cameras_than_the_network(nano: Nano) -> None:
    figures = []
    for index in (2, 5, 6, 7):
        batch = truth(index, 4, 240, 192)
        true = batch.cam_from_world[0].double()
        with torch.inference_mode():
            plain = nano(Views(batch.images))
        found = lean3r.reconstruct(nano, Views(batch.images))
        assert found.info["adjusted"]["after"] > found.info["adjusted"]["before"]
        np.testing.assert_allclose(found.cam_from_world[0, :3, 3], 0, atol=1e-6)
        poses = plain.cam_from_world[0].double(), torch.from_numpy(found.cam_from_world)
        figures.append([pose_auc(each, true, (30,))[30] for each in poses])
    before, after = np.mean(figures, 0)
    assert after > before + 0.1, figures


def test_pictures_at_hand_give_a_second_start(nano: Nano, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adjusting, "ENOUGH", 1.0)
    batch = truth(5, 3, 384, 304)
    pictures = [np.uint8(image.permute(1, 2, 0) * 255) for image in batch.images[0]]
    sizes, whole = [], Pictures.whole

    def again(self: Pictures, names: Any, size_of: Any) -> Any:
        sizes.append(size_of(304, 384))
        return whole(self, names, size_of)

    monkeypatch.setattr(Pictures, "whole", again)
    given: list[dict[str, Any]] = [{}, {"resolution": 240}, {"memory": "8GB"}]
    both, *alone = [lean3r.reconstruct(nano, pictures, refine="off", dense="network", **each) for each in given]
    assert sizes == [(272, 336)]  # what is chosen by name, or by memory, is not exceeded
    assert both.info["adjusted"]["after"] > alone[0].info["adjusted"]["after"]
    assert both.info["adjusted"]["before"] == alone[0].info["adjusted"]["before"]
    np.testing.assert_array_equal(alone[0].cam_from_world, alone[1].cam_from_world)
    assert np.isfinite(both.cam_from_world).all() and both.depth.shape == alone[0].depth.shape
    true = batch.cam_from_world[0].double()
    assert pose_auc(torch.from_numpy(both.cam_from_world), true, (30,))[30] > 0.5

    def gone(self: Pictures, names: Any, size_of: Any) -> Any:
        yield from [*whole(self, names, size_of)][1:]

    monkeypatch.setattr(Pictures, "whole", gone)
    files = Pictures(pictures)
    seen = files.views(resolution=240, patch=16)
    adjusted = [adjust_scene(scene_of(predict(nano, seen), seen), nano, seen, each) for each in (files, None)]
    np.testing.assert_array_equal(adjusted[0].cam_from_world, adjusted[1].cam_from_world)


def test_a_start_that_explains_nearly_all_matches_is_the_only_one(nano: Nano, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = Pictures([np.uint8(image.permute(1, 2, 0) * 255) for image in truth(5, 3, 240, 192).images[0]])
    seen = pictures.views(resolution=240, patch=16)
    scene, again = scene_of(predict(nano, seen), seen), Mock(return_value=None)
    monkeypatch.setattr(adjusting, "_in_finer_pictures", again)
    after = adjust_scene(scene, nano, seen, pictures).info["adjusted"]["after"]
    for enough, calls in ((after + 0.01, 1), (after - 0.01, 0)):
        again.reset_mock()
        monkeypatch.setattr(adjusting, "ENOUGH", enough)
        adjust_scene(scene, nano, seen, pictures)
        assert again.call_count == calls


def test_given_cameras_are_not_adjusted(nano: Nano) -> None:
    batch = truth(1, 3, 240, 192)
    known = lean3r.types.Known(intrinsics=batch.intrinsics)
    assert "adjusted" not in lean3r.reconstruct(nano, Views(batch.images, known=known)).info
