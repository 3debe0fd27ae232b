"""Losses on cameras, depth and matches, and the ground truth they need from a batch.

All lengths are in units of the scene: ground truth is divided by the geometric mean depth of its views.
Letters as in layers/matching.py: B scenes, S views, N patches. Sources: the relative-pose form without a
reference view is Pi3's; the confidence term is DUSt3R's with the error cut from the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.errors import InputError
from lean3r.geometry.pose import invert_pose
from lean3r.tracing import without_autocast

DECAY = 0.8  # factor of an estimate's weight for each pair of blocks between it and the last estimate
EDGE_STEP = 0.3  # of log depth: a ratio of 1.35 between neighbouring pixels
EDGE_REACH = 4  # pixels
FAR_RATIO = 12.0  # depth is clamped to this many mean depths


@dataclass(frozen=True)
class Target:
    """Ground truth at patch centres, with lengths normalised by scene.

    log_depth [B, S, N] and known [B, S, N]; log_focal [B, S] in units of sqrt(picture area);
    world_from_cam, cam_from_world [B, S, 4, 4]; position [B, S, S, N, 2]: the projection of a patch of view i into
    view j; visible [B, S, S, N]: whether it is visible in view j; cell [B, S, S, N]: the patch of view j that contains
    it; scale [B]: the divisor of lengths.
    """

    log_depth: Tensor
    known: Tensor
    log_focal: Tensor
    world_from_cam: Tensor
    cam_from_world: Tensor
    position: Tensor
    visible: Tensor
    cell: Tensor
    scale: Tensor


def require_known(batch: SceneBatch, known: Tensor) -> None:
    """Raise InputError, with the names of the samples, if no pixel of a batch is `known`: a loss would be 0."""
    if not known.any():
        names = f" ({', '.join(batch.ids[:3])})" if batch.ids else ""
        raise InputError(
            f"no pixel of a batch has known depth{names}, so a loss against ground truth has nothing to learn from. "
            "Use data sets with depth."
        )


@torch.no_grad()
def make_target(batch: SceneBatch, cell: int, tolerance: float = 0.06, *, unit_from: int | None = None) -> Target:
    """Ground truth for patches of `cell` pixels.

    A point is visible in a view if the view's depth agrees with it within the relative `tolerance`. The unit of length
    is the geometric mean depth of the first `unit_from` views, if any of it is known; of all (None). InputError if no
    pixel has known depth.
    """
    views, height, width = batch.depth.shape[1:]
    cols = width // cell
    depth, known_full = batch.depth, batch.depth > 0
    require_known(batch, known_full)
    counts = known_full
    if unit_from is not None:
        first = known_full & (torch.arange(views, device=depth.device) < unit_from)[:, None, None]
        counts = first.where(first.flatten(1).any(-1)[:, None, None, None], known_full)
    log_sum = (depth.clamp_min(1e-6).log() * counts).flatten(1).sum(-1)
    scale = (log_sum / counts.flatten(1).sum(-1).clamp_min(1)).exp()
    depth = (depth / scale[:, None, None, None]).clamp_max(FAR_RATIO)
    at = depth[..., cell // 2 :: cell, cell // 2 :: cell].flatten(2)
    known = at > 0
    y = torch.arange(cell // 2, height, cell, device=depth.device) + 0.5
    x = torch.arange(cell // 2, width, cell, device=depth.device) + 0.5
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    focal, center = batch.intrinsics[..., (0, 1), (0, 1)], batch.intrinsics[..., :2, 2]
    points = F.pad((pixels - center[:, :, None]) / focal[:, :, None], (0, 1), value=1.0) * at[..., None]
    cam_from_world = batch.cam_from_world.clone()
    cam_from_world[..., :3, 3] /= scale[:, None, None]
    with without_autocast(depth.device.type):  # in bfloat16, targets would be off by pixels
        world_from_cam = invert_pose(cam_from_world)
        relative = cam_from_world[:, None] @ world_from_cam[:, :, None]
        there = torch.einsum("bijkl,binl->bijnk", relative[..., :3, :3], points) + relative[..., None, :3, 3]
    z = there[..., 2]
    u = focal[:, None, :, None] * there[..., :2] / z.clamp_min(1e-3)[..., None] + center[:, None, :, None]
    inside = (z > 1e-3) & (u >= 0).all(-1) & (u[..., 0] < width) & (u[..., 1] < height)
    col, row = (u[..., k].clamp(0, limit - 1).long() for k, limit in ((0, width), (1, height)))
    flat = depth.flatten(2)[:, None].expand(-1, views, -1, -1)
    there_depth = flat.gather(-1, row * width + col)
    agree = (there_depth - z).abs() < tolerance * z
    other = ~torch.eye(views, dtype=torch.bool, device=depth.device)[None, :, :, None]
    visible = inside & agree & known[:, :, None] & other
    side = float(height * width) ** 0.5
    position = (u - torch.tensor([width / 2, height / 2], device=u.device)) / side
    return Target(
        at.clamp_min(1e-6).log(),
        known,
        (focal / side).log().mean(-1),
        world_from_cam,
        cam_from_world,
        position,
        visible,
        (row // cell) * cols + col // cell,
        scale,
    )


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of `values` where `where` is true; 0 if it is true nowhere."""
    weight = where.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1.0)


class Poses(Protocol):
    """Poses to compare with, from ground truth or a teacher; both [B, S, 4, 4]."""

    @property
    def world_from_cam(self) -> Tensor:
        """Camera -> world."""
        ...

    @property
    def cam_from_world(self) -> Tensor:
        """World -> camera."""
        ...


def pose_losses(world_from_cam: Tensor, cam_from_world: Tensor, target: Poses) -> tuple[Tensor, Tensor]:
    """Mean over all ordered pairs of (Frobenius norm of the relative rotation error, L2 norm of the relative
    translation error)."""
    views = world_from_cam.shape[1]
    if views == 1:
        zero = world_from_cam.sum() * 0
        return zero, zero
    with without_autocast(world_from_cam.device.type):  # bfloat16 would round away small errors
        ours = cam_from_world[:, None] @ world_from_cam[:, :, None]
        truth = target.cam_from_world[:, None] @ target.world_from_cam[:, :, None]
    error = (ours - truth)[:, ~torch.eye(views, dtype=torch.bool, device=ours.device)]
    rotation = (error[..., :3, :3].square().sum((-1, -2)) + 1e-8).sqrt()
    translation = (error[..., :3, 3].square().sum(-1) + 1e-8).sqrt()
    return rotation.mean(), translation.mean()


def depth_loss(log_depth: Tensor, truth: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """(L1 of log depth after one shift per scene, mean magnitude of that shift); a scene is an entry of axis 0."""
    weight = known.to(log_depth.dtype)
    difference = log_depth - truth
    axes = tuple(range(1, difference.ndim))
    shift = (difference * weight).sum(axes) / weight.sum(axes).clamp_min(1.0)
    residual = difference - shift.detach().view(-1, *[1] * len(axes))
    return mean_where(residual.abs(), known), shift.abs().mean()


def match_losses(logits: Tensor, position: Tensor, visibility: Tensor, target: Target) -> dict[str, Tensor]:
    """Cross-entropy of the matching patch, L1 of its position, cross-entropy of visibility, and the share of hits."""
    visible = target.visible
    entropy = F.cross_entropy(logits.float().flatten(0, -2), target.cell.flatten(), reduction="none")
    other = ~torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)[None, :, :, None]
    seen = F.binary_cross_entropy_with_logits(visibility, visible.to(visibility.dtype), reduction="none")
    hit = (logits.detach().argmax(-1) == target.cell).float()
    return {
        "match": mean_where(entropy.view_as(visible), visible),
        "flow": mean_where((position - target.position).abs().sum(-1), visible),
        "visible": mean_where(seen, (other & target.known[:, :, None]).expand_as(visible)),
        "hit": mean_where(hit, visible),
    }


class TwoSurfaces(Protocol):
    """Full-size log depth [B, S, H, W] as a mixture of two Laplace distributions (see heads/guided.py)."""

    first: Tensor
    second: Tensor
    log_width_first: Tensor
    log_width_second: Tensor
    log_odds: Tensor


def full_depth_losses(surfaces: TwoSurfaces, batch: SceneBatch, scale: Tensor) -> dict[str, Tensor]:
    """Negative log likelihood of log depth: on all known pixels, and only near depth edges."""
    known = batch.depth > 0
    truth = (batch.depth / scale[:, None, None, None]).clamp(1e-6, FAR_RATIO).log()
    cost = -torch.logaddexp(
        F.logsigmoid(surfaces.log_odds) + _log_laplace(truth - surfaces.first, surfaces.log_width_first),
        F.logsigmoid(-surfaces.log_odds) + _log_laplace(truth - surfaces.second, surfaces.log_width_second),
    )
    return {
        "full": mean_where(cost, known),
        "edge": mean_where(cost, near_depth_edge(truth, known)),
    }


def _log_laplace(difference: Tensor, log_width: Tensor) -> Tensor:
    """Log density of a Laplace distribution, up to the constant -log 2."""
    return -log_width - difference.abs() * (-log_width).exp()


def near_depth_edge(log_depth: Tensor, known: Tensor) -> Tensor:
    """Mask [B, S, H, W] of known pixels within EDGE_REACH of neighbours whose log depths differ by over EDGE_STEP.

    There an L1 loss rewards depth on one side of the edge or the other. A loss on the depth differences would remove
    the edge wherever its position is uncertain.
    """
    high = F.max_pool2d(log_depth.where(known, -torch.inf), 3, 1, 1)
    low = -F.max_pool2d((-log_depth).where(known, -torch.inf), 3, 1, 1)
    return (F.max_pool2d((high - low > EDGE_STEP).float(), 2 * EDGE_REACH + 1, 1, EDGE_REACH) > 0) & known
