"""Laws of the losses: the truth costs nothing, units and frames do not count, the target is what cameras say."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.geometry.camera import project, unproject
from lean3r.geometry.pose import invert_pose, make_pose, transform_points
from lean3r.geometry.rotation import so3_exp
from lean3r.heads.guided import Surfaces
from lean3r.models.nano import Nano, NanoConfig
from lean3r.stereo.rays import pinhole_slopes, rays_into
from lean3r.train.losses import truth as truths
from lean3r.train.losses.nano import WEIGHTS, nano_loss
from lean3r.train.losses.truth import Target, depth_loss, make_target

CELL, VIEWS = 8, 3
ZERO = 2e-3  # the norms carry sqrt(1e-8), so that their gradient stays finite


@pytest.fixture(scope="module")
def batch() -> SceneBatch:
    """Two scenes, with sky, portrait, sides multiples of 16."""
    return SyntheticWorld(80, 64, VIEWS, seed=5, distortion=0.0, tiles=32, tile_size=32, room=0, terrain=0).batch(1, 2)


@pytest.fixture(scope="module")
def target(batch: SceneBatch) -> Target:
    return make_target(batch, CELL)


def scaled_scene(batch: SceneBatch, factor: float) -> SceneBatch:
    """The same scenes in another unit of length."""
    pose = batch.cam_from_world
    return replace(
        batch, depth=factor * batch.depth, cam_from_world=make_pose(pose[..., :3, :3], factor * pose[..., :3, 3])
    )


def test_the_batch_is_not_trivial(batch: SceneBatch, target: Target) -> None:
    assert 0 < float(target.known.float().mean()) < 1, "with and without sky"
    assert int(target.visible.sum()) > 100


def test_truth_has_no_pose_loss(target: Target) -> None:
    rotation, translation = truths.pose_losses(target.world_from_cam, target.cam_from_world, target)
    assert float(rotation) < ZERO and float(translation) < ZERO


def test_pose_loss_does_not_depend_on_the_world_frame(target: Target) -> None:
    moved = make_pose(so3_exp(torch.tensor([0.3, -1.0, 0.5])), torch.tensor([1.0, -2.0, 0.5]))
    rotation, translation = truths.pose_losses(
        moved @ target.world_from_cam, target.cam_from_world @ invert_pose(moved), target
    )
    assert float(rotation) < ZERO and float(translation) < ZERO


def test_pose_loss_measures_one_wrong_camera(target: Target) -> None:
    angle = 0.2
    turn = make_pose(so3_exp(torch.tensor([0.0, angle, 0.0])), torch.zeros(3))
    wrong = target.cam_from_world.clone()
    wrong[:, 0] = turn @ wrong[:, 0]
    rotation, _ = truths.pose_losses(invert_pose(wrong), wrong, target)
    # |R - 1| of a rotation by a is 2 sqrt(2) sin(a / 2); camera 0 is in 2 (S - 1) of S (S - 1) ordered pairs.
    expected = 2 * 2**0.5 * torch.tensor(angle / 2).sin() * 2 / VIEWS
    torch.testing.assert_close(rotation, expected, rtol=1e-3, atol=1e-3)


def test_one_view_has_no_pose_loss_but_a_gradient() -> None:
    pose = torch.eye(4).expand(2, 1, 4, 4).clone().requires_grad_()
    truth = make_target(
        SceneBatch(torch.rand(2, 1, 3, 8, 8), torch.ones(2, 1, 8, 8), torch.eye(3).expand(2, 1, 3, 3), pose.detach()),
        CELL,
    )
    rotation, translation = truths.pose_losses(pose, pose, truth)
    (rotation + translation).backward()
    assert float(rotation.detach()) == float(translation.detach()) == 0
    assert pose.grad is not None and bool((pose.grad == 0).all())


def test_truth_has_no_depth_loss_and_scale_costs_the_shift_only(target: Target) -> None:
    level, shift = depth_loss(target.log_depth, target.log_depth, target.known)
    assert float(level) == float(shift) == 0
    factors = torch.tensor([0.4, 3.0]).log()
    level, shift = depth_loss(target.log_depth + factors[:, None, None], target.log_depth, target.known)
    assert float(level) < 1e-5
    torch.testing.assert_close(shift, factors.abs().mean())


def test_unknown_depth_costs_nothing(target: Target) -> None:
    spoiled = target.log_depth.where(target.known, 50.0)
    assert [float(x) for x in depth_loss(spoiled, target.log_depth, target.known)] == [0, 0]


def surfaces(log_depth: Tensor, log_width: float = -3.0) -> Surfaces:
    """Both surfaces at `log_depth`."""
    width = torch.full_like(log_depth, log_width)
    return Surfaces(log_depth, log_depth, width, width, torch.zeros_like(log_depth))


def true_log_depth(batch: SceneBatch, target: Target) -> Tensor:
    return (batch.depth / target.scale[:, None, None, None]).clamp(1e-6, truths.FAR_RATIO).log()


def test_truth_is_the_likeliest_full_size_depth(batch: SceneBatch, target: Target) -> None:
    truth = true_log_depth(batch, target)
    best = truths.full_depth_losses(surfaces(truth), batch, target.scale)
    assert abs(float(best["full"]) + 3.0) < 1e-4 and abs(float(best["edge"]) + 3.0) < 1e-4  # log of the width
    blurred = F.avg_pool2d(truth.flatten(0, 1)[:, None], 5, 1, 2, count_include_pad=False).view_as(truth)
    worse = truths.full_depth_losses(surfaces(blurred), batch, target.scale)
    assert float(worse["full"]) > float(best["full"]) + 0.1
    assert float(worse["edge"]) > float(best["edge"]) + 0.1


def test_two_surfaces_lower_the_loss_at_uncertain_edges(batch: SceneBatch, target: Target) -> None:
    """Right about both depths and undecided between them costs log 2; in between costs the distance to both."""
    truth = true_log_depth(batch, target)
    sure = surfaces(truth)
    undecided = sure._replace(second=truth + 1.0)
    between = sure._replace(first=truth + 0.5, second=truth + 0.5)
    price = [float(truths.full_depth_losses(s, batch, target.scale)["full"]) for s in (sure, undecided, between)]
    assert abs(price[1] - price[0] - math.log(2)) < 1e-3
    assert price[2] > price[1] + 1.0


def test_the_likelier_surface_is_taken_whatever_its_width() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    odds = torch.tensor([1.0, -1.0])
    assert Surfaces(zero, one, zero, zero, odds).log_depth.tolist() == [0.0, 1.0]
    assert Surfaces(zero, one, zero + 2, zero, odds).log_depth.tolist() == [0.0, 1.0]


def test_edges_are_where_depth_jumps_between_known_pixels() -> None:
    log_depth = torch.zeros(1, 1, 9, 31)
    log_depth[..., 20:] = 1.0
    known = torch.ones_like(log_depth, dtype=torch.bool)
    near = truths.near_depth_edge(log_depth, known)[0, 0, 0]
    assert near.nonzero().flatten().tolist() == list(range(19 - truths.EDGE_REACH, 21 + truths.EDGE_REACH))
    known[..., 19:21] = False
    assert not truths.near_depth_edge(log_depth, known).any()


def test_expected_error_is_that_of_samples_of_the_mixture() -> None:
    first, second, wide, narrow, odds = (torch.tensor(x) for x in (0.3, -0.5, 0.4, 0.05, 0.8))
    found = Surfaces(first, second, wide.log(), narrow.log(), odds)
    torch.manual_seed(0)
    picks = torch.rand(400_000) < odds.sigmoid()
    laplace = torch.distributions.Laplace
    samples = torch.where(picks, laplace(first, wide).sample(picks.shape), laplace(second, narrow).sample(picks.shape))
    torch.testing.assert_close(found.error, (samples - found.log_depth).abs().mean(), rtol=0.01, atol=0)
    swapped = Surfaces(second, first, narrow.log(), wide.log(), -odds)
    torch.testing.assert_close(swapped.error, found.error)


def test_truth_has_no_match_loss(target: Target) -> None:
    patches = target.log_depth.shape[-1]
    logits = 50.0 * F.one_hot(target.cell, patches).float()
    visibility = torch.where(target.visible, 30.0, -30.0)
    parts = truths.match_losses(logits, target.position, visibility, target)
    assert float(parts["hit"]) == 1
    assert all(float(parts[name]) < 1e-5 for name in ("match", "flow", "visible"))


def test_target_has_no_unit(batch: SceneBatch, target: Target) -> None:
    other = make_target(scaled_scene(batch, 7.0), CELL)
    torch.testing.assert_close(other.scale, 7.0 * target.scale, rtol=1e-4, atol=0)
    for name, where in (("log_depth", target.known), ("position", target.visible & other.visible)):
        torch.testing.assert_close(getattr(other, name)[where], getattr(target, name)[where], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.cam_from_world, target.cam_from_world, rtol=1e-3, atol=1e-4)
    assert float((other.visible != target.visible).float().mean()) < 1e-3


def test_scale_is_the_geometric_mean_depth(batch: SceneBatch, target: Target) -> None:
    for scene in range(2):
        depth = batch.depth[scene]
        torch.testing.assert_close(target.scale[scene].log(), depth[depth > 0].log().mean(), rtol=1e-4, atol=1e-4)


def test_target_follows_from_the_cameras(batch: SceneBatch, target: Target) -> None:
    """Every visible patch, unprojected and projected again by the geometry room, lands on its position, its cell
    and a pixel of the other view at the same depth."""
    height, width = batch.depth.shape[-2:]
    cols = width // CELL
    middle = slice(CELL // 2, None, CELL)
    side = (height * width) ** 0.5
    for scene in range(2):
        depth, k, pose = (t[scene].double() for t in (batch.depth, batch.intrinsics, batch.cam_from_world))
        for one in range(VIEWS):
            points = unproject(depth[one], k[one])[middle, middle].flatten(0, 1)
            assert torch.equal(target.known[scene, one], points[:, 2] > 0)
            assert not bool(target.visible[scene, one, one].any())
            for other in range(VIEWS):
                seen = target.visible[scene, one, other]
                assert not bool((seen & ~target.known[scene, one]).any())
                there = transform_points(pose[other] @ invert_pose(pose[one]), points[seen])
                pixel = project(there, k[other])
                position = (pixel - torch.tensor([width / 2, height / 2])) / side
                torch.testing.assert_close(
                    target.position[scene, one, other, seen].double(), position, rtol=1e-3, atol=1e-4
                )
                col, row = pixel.floor().long().unbind(-1)
                near = depth[other, row.clamp(0, height - 1), col.clamp(0, width - 1)]
                # Far background counts as FAR_RATIO mean depths deep, on both sides.
                limit = truths.FAR_RATIO * float(target.scale[scene])
                same = (near.clamp_max(limit) - there[:, 2].clamp_max(limit)).abs() < 0.065 * there[:, 2]
                assert float(same.double().mean()) > 0.99 if len(same) else True
                cell = (row // CELL) * cols + col // CELL
                assert int((cell != target.cell[scene, one, other, seen]).sum()) <= 1


def test_target_has_both_focal_lengths(batch: SceneBatch) -> None:
    stretched = batch.intrinsics.clone()
    stretched[..., 1, 1] *= 1.3
    target = make_target(replace(batch, intrinsics=stretched), CELL)
    points = unproject(batch.depth[0, 0], stretched[0, 0])[CELL // 2 :: CELL, CELL // 2 :: CELL].flatten(0, 1)
    there = transform_points(batch.cam_from_world[0, 1] @ invert_pose(batch.cam_from_world[0, 0]), points)
    seen = (points[:, 2] > 0) & (points[:, 2] < 3 * target.scale[0]) & (there[:, 2] > 0.5)
    height, width = batch.depth.shape[-2:]
    position = (project(there[seen], stretched[0, 1]) - torch.tensor([width / 2, height / 2])) / (height * width) ** 0.5
    assert int(seen.sum()) > 10
    torch.testing.assert_close(target.position[0, 0, 1, seen], position, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("full", [0.0, 1.0])
def test_objective_of_nano_has_all_parts_and_finite_gradients(batch: SceneBatch, full: float) -> None:
    torch.manual_seed(0)
    model = Nano(NanoConfig(width=32, heads=2, pairs=2))
    total, parts = nano_loss(model, batch, full=full)
    total.backward()
    assert set(parts) - {"hit"} == set(WEIGHTS) - (set() if full else {"full", "edge"})
    assert bool(total.isfinite()) and all(bool(value.isfinite()) for value in parts.values())
    rests = () if full else ("upsampler",)
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name.startswith(rests), f"{name} gets no gradient"
        else:
            assert bool(parameter.grad.isfinite().all()), name


def test_targets_and_pose_losses_keep_their_precision_under_autocast(batch: SceneBatch, target: Target) -> None:
    turned = target.cam_from_world.clone()
    turned[:, 1, :3, :3] = so3_exp(torch.tensor([0.0, 0.0, 1e-3])) @ turned[:, 1, :3, :3]
    poses = invert_pose(turned), turned
    expected = truths.pose_losses(*poses, target)
    with torch.autocast("cpu", torch.bfloat16):
        found, losses = make_target(batch, CELL), truths.pose_losses(*poses, target)
    for part in fields(Target):
        assert torch.equal(getattr(found, part.name), getattr(target, part.name)), part.name
    assert [float(loss) for loss in losses] == [float(loss) for loss in expected]


def test_rays_of_the_stereo_objective_keep_their_precision_under_autocast(batch: SceneBatch) -> None:
    poses, intrinsics = batch.cam_from_world[0], batch.intrinsics[0]
    slopes = pinhole_slopes(intrinsics[:1], *batch.depth.shape[-2:])
    expected = rays_into(slopes, poses[:1], poses[None, 1:], intrinsics[None, 1:], 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = rays_into(slopes, poses[:1], poses[None, 1:], intrinsics[None, 1:], 4)
    assert torch.equal(found.direction, expected.direction)
