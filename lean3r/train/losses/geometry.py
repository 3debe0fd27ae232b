"""Losses on geometry from papers: Speed3R's against a teacher's points and cameras, Lite3R's against ground truth.

Shapes: B scenes, N views, H x W pixels. Points are in the axes of their own camera, poses are camera-to-world, and
both sides are of unknown scale. Sources: Ren et al. 2026, "Speed3R", its released training code (which is Pi3's loss);
Zhang et al. 2026, "Lite3R" (VGGT's camera loss).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.errors import UsageError
from lean3r.geometry.camera import fov_from_intrinsics
from lean3r.geometry.pose import invert_pose
from lean3r.geometry.rotation import quaternion_from_matrix
from lean3r.train.losses.truth import require_known
from lean3r.types import Prediction

SCALE_POINTS = 4096  # points of each scene that determine the scale
NEAR_SHARE = 0.1  # of a view's mean depth: nearer points have the weight of this depth
DEPTH_EDGE = 0.03  # relative depth difference of neighbours that marks an edge, where normals are not compared
SMALLEST_RAD, LARGEST_RAD, KNEE_RAD = math.radians(1), math.radians(90), math.radians(3)
HUBER_DELTA = 0.1
TRANSLATION_WEIGHT, CAMERA_WEIGHT = 100.0, 0.1
FIELD_WEIGHT = 0.5  # of Lite3R's camera loss; translation, rotation and depth have 1
NEARLY_ONE = 1 - 1e-6


@dataclass(frozen=True)
class GeometryLoss:
    """The terms of `total` = points + normals + 0.1 (100 translation + rotation [rad]).

    scale, student_size and teacher_size [B] are the factors that aligned the scales of student and teacher.
    """

    total: Tensor
    points: Tensor
    normals: Tensor
    translation: Tensor
    rotation: Tensor
    scale: Tensor
    student_size: Tensor
    teacher_size: Tensor


def geometry_loss(
    points: Tensor,
    world_from_cam: Tensor,
    teacher_points: Tensor,
    teacher_world_from_cam: Tensor,
    known: Tensor,
    has_normals: Tensor,
) -> GeometryLoss:
    """Loss of points [B, N, H, W, 3] and poses [B, N, 4, 4] against the teacher's, on `known` pixels [B, N, H, W].

    has_normals [B] bool marks scenes whose surfaces are good enough to compare normals. Gradients flow only to the
    student, through its size but not through the scale. UsageError if shapes do not match.
    """
    if points.shape != teacher_points.shape or points.shape[:-1] != known.shape:
        raise UsageError(
            f"points are {list(points.shape)}, the teacher's {list(teacher_points.shape)}, known pixels "
            f"{list(known.shape)}; expected [B, N, H, W, 3] twice and [B, N, H, W]. Use a teacher of the same kind."
        )
    with torch.no_grad():
        target, target_poses, teacher_size = normalise_scale(teacher_points, teacher_world_from_cam, known)
        weight = inverse_depth(target[..., 2], known)
    ours, poses, student_size = normalise_scale(points, world_from_cam, known)
    with torch.no_grad():
        scale = torch.stack([_scene_scale(p, t, w, k) for p, t, w, k in zip(ours, target, weight, known, strict=True)])
    ours = ours * scale[:, None, None, None, None]
    gap = (weight[..., None] * (ours - target).abs())[known]
    point_loss = gap.mean() if len(gap) else ours.sum() * 0
    normals = ours.sum() * 0
    if bool(has_normals.any()):
        normals = normal_loss(ours[has_normals], target[has_normals], known[has_normals])
    moved = _with_translation(poses, poses[..., :3, 3] * scale[:, None, None])
    translation, rotation = relative_pose_loss(moved, target_poses)
    total = point_loss + normals + CAMERA_WEIGHT * (TRANSLATION_WEIGHT * translation + rotation)
    return GeometryLoss(total, point_loss, normals, translation, rotation, scale, student_size, teacher_size)


def normalise_scale(points: Tensor, world_from_cam: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points and poses divided by the scene's size, and that size [B]: the mean distance of known points from their
    camera. A scene without known pixels has size 0 and is not divided."""
    reach = torch.linalg.vector_norm(points, dim=-1).where(known, 0.0).flatten(1).sum(1)
    size = reach / (known.flatten(1).sum(1) + 1e-8)
    unit = size.where(size > 0, 1.0)
    poses = _with_translation(world_from_cam, world_from_cam[..., :3, 3] / unit[:, None, None])
    return points / unit[:, None, None, None, None], poses, size


def inverse_depth(depth: Tensor, known: Tensor) -> Tensor:
    """Weights [B, N, H, W] of pixels: 1 / depth, where depth is at least a tenth of the view's mean depth."""
    share = known.to(depth.dtype)
    mean = (depth * share).mean((-1, -2)) / (share.mean((-1, -2)) + 1e-7)
    return 1 / (torch.maximum(depth, NEAR_SHARE * mean[..., None, None]) + 1e-6)


def best_scale(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The scalar S that minimises sum of weight |S x - y| over vectors [P]: the weighted median of y / x."""
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    x, y = x * sign, y * sign
    ratio, order = (y / x.clamp_min(1e-7)).sort()
    mass = (weight * x)[order]
    past = 2 * mass.cumsum(0) - mass.sum() >= 0
    return ratio[past.to(torch.uint8).argmax()]


def _scene_scale(points: Tensor, target: Tensor, weight: Tensor, known: Tensor) -> Tensor:
    """`best_scale` of one scene [N, H, W, ...] on SCALE_POINTS evenly chosen known pixels; 1 without known pixels."""
    ours, theirs, weight = points[known], target[known], weight[known]
    count = len(ours)
    if not count:
        return points.new_ones(())
    # In float32, as nearest-neighbour resampling of images computes it.
    steps = torch.arange(SCALE_POINTS, dtype=torch.float32, device=points.device)
    index = (steps * torch.tensor(count / SCALE_POINTS, dtype=torch.float32)).floor().long().clamp_max(count - 1)
    scale = best_scale(ours[index].flatten(), theirs[index].flatten(), weight[index].repeat_interleave(3))
    return scale.abs()


def normal_loss(points: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Angles between the normals of both point maps: four in each cell of 2 x 2 pixels, none across depth edges.

    The loss is constant below one degree and above a right angle. Depth edges are those of the target.
    """
    depth = target[..., 2]
    flat = depth.flatten(0, 1)[:, None]
    spread = (F.max_pool2d(flat, 3, 1, 1) + F.max_pool2d(-flat, 3, 1, 1))[:, 0].view_as(depth)
    known = known & ~((spread / depth).nan_to_num() > DEPTH_EDGE)
    ours, theirs, there = _corners(points), _corners(target), _corners(known[..., None])
    total = points.new_zeros(())
    # (corner, its two neighbours), ordered so that all normals point to the same side.
    for corner, first, second in (("d", "b", "c"), ("b", "a", "d"), ("a", "c", "b"), ("c", "d", "a")):
        a = torch.linalg.cross(ours[first] - ours[corner], ours[second] - ours[corner])
        b = torch.linalg.cross(theirs[first] - theirs[corner], theirs[second] - theirs[corner])
        is_known = (there[corner] & there[first] & there[second])[..., 0]
        total = total + _soft(angle_between(a, b).clamp(SMALLEST_RAD, LARGEST_RAD)).where(is_known, 0.0)
    return total.mean() / (4 * max(points.shape[2:4]))


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle [rad] between vectors [..., 3], with a finite gradient for parallel vectors."""
    return torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=-1) + 1e-12, (a * b).sum(-1))


def _soft(angle: Tensor) -> Tensor:
    return torch.where(angle < KNEE_RAD, 0.5 * angle.square() / KNEE_RAD, angle - 0.5 * KNEE_RAD)


def _corners(x: Tensor) -> dict[str, Tensor]:
    """a b over c d: the corners of all cells of 2 x 2 pixels of [B, N, H, W, C]."""
    return {
        "a": x[:, :, :-1, :-1],
        "b": x[:, :, :-1, 1:],
        "c": x[:, :, 1:, :-1],
        "d": x[:, :, 1:, 1:],
    }


def relative_pose_loss(world_from_cam: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(Huber loss of the translation, angle [rad] of the rotation) between relative poses, mean over ordered pairs."""
    views = target.shape[1]
    if views == 1:
        zero = world_from_cam.sum() * 0
        return zero, zero
    pairs = ~torch.eye(views, dtype=torch.bool, device=target.device)
    ours, theirs = ((invert_pose(t)[:, :, None] @ t[:, None])[:, pairs] for t in (world_from_cam, target))
    translation = F.huber_loss(ours[..., :3, 3], theirs[..., :3, 3], delta=HUBER_DELTA)
    trace = (ours[..., :3, :3] * theirs[..., :3, :3]).sum((-1, -2))  # of R^T R'
    rotation = ((trace - 1) / 2).clamp(-NEARLY_ONE, NEARLY_ONE).acos().mean()
    return translation, rotation


def _with_translation(poses: Tensor, translation: Tensor) -> Tensor:
    """The poses [..., 4, 4] with another translation [..., 3]."""
    top = torch.cat([poses[..., :3, :3], translation[..., None]], dim=-1)
    return torch.cat([top, poses[..., 3:, :]], dim=-2)


def camera_depth_loss(prediction: Prediction, truth: SceneBatch, known: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Lite3R's task loss: L1 of translation, quaternion, half the fields of view [rad], and depth.

    Cameras are relative to the first view. Lengths of both sides are in units of their own mean depth on known pixels
    (no gradient through the student's unit), because no model knows the scale of the data set. Returns the total and
    its parts. InputError if no pixel is known.
    """
    require_known(truth, known)
    if prediction.depth is None:
        raise UsageError("the model predicts no depth, which this recipe needs. Use another model.")
    height, width = truth.images.shape[-2:]
    mass = known.flatten(1).sum(1).clamp_min(1)
    true_unit, unit = ((d.detach() * known).flatten(1).sum(1) / mass for d in (truth.depth, prediction.depth.float()))
    sides = []
    for pose, intrinsics, size in (
        (prediction.cam_from_world.float(), prediction.intrinsics.float(), unit),
        (truth.cam_from_world, truth.intrinsics, true_unit),
    ):
        pose = pose @ invert_pose(pose[:, :1])
        quaternion = quaternion_from_matrix(pose[..., :3, :3])
        place = pose[..., :3, 3] / size.where(size > 0, 1.0)[:, None, None]
        sides.append((place, quaternion, fov_from_intrinsics(intrinsics, height, width)))
    (place, turn, field), (true_place, true_turn, true_field) = sides
    true_turn = true_turn * torch.where((turn.detach() * true_turn).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    depth = prediction.depth.float() / unit.where(unit > 0, 1.0)[:, None, None, None]
    true_depth = truth.depth / true_unit.where(true_unit > 0, 1.0)[:, None, None, None]
    parts = {
        "translation": (place - true_place).abs().mean(),
        "rotation": (turn - true_turn).abs().mean(),
        "field": (field - true_field).abs().mean(),
        "depth": ((depth - true_depth).abs() * known).sum() / known.sum().clamp_min(1),
    }
    total = parts["translation"] + parts["rotation"] + FIELD_WEIGHT * parts["field"] + parts["depth"]
    return total, {name: value.detach() for name, value in parts.items()}
