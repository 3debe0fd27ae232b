"""The objective of nano-stream: nano's loss on clips, with what a frame sees drawn anew for every step."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.geometry.pose import camera_centers
from lean3r.layers.frames import CachePolicy
from lean3r.train.losses.nano import IterativeModel, half_pictures, truth_loss


class StreamedModel(IterativeModel, Protocol):
    """A causal model with a settable policy."""

    policy: CachePolicy


def policy_at(policy: CachePolicy, progress: float, views: int) -> CachePolicy:
    """The policy of a step: a window from 2 frames to the whole clip; a pure function of `progress`."""
    return replace(policy, window=random.Random(f"{progress!r}").randint(2, max(2, views)))


def streamed_loss(
    model: StreamedModel, batch: SceneBatch, progress: float = 0.0, *, full: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """nano_loss of a causal pass over clips; lengths are in units of the anchors' depth, since later frames come too
    late to change the unit. `model.policy` is restored afterwards."""
    policy = model.policy
    model.policy = policy_at(policy, progress, batch.images.shape[1])
    try:
        output = model.iterate(half_pictures(batch, full))
    finally:
        model.policy = policy
    return truth_loss(model, output, batch, full=full, unit_from=policy.anchors)


def in_walking_order(batch: SceneBatch) -> SceneBatch:
    """The same views, ordered as a walk: from one end of the path always to the nearest view that is left.

    Near is: between the centres, in units of the scene's median depth, plus the angle in radians.
    """
    orders = []
    for poses, depth in zip(batch.cam_from_world, batch.depth, strict=True):
        known = depth[depth > 0]
        unit = known.median() if len(known) else torch.ones(())
        centers = camera_centers(poses) / unit
        turn = poses[:, None, :3, :3] @ poses[None, :, :3, :3].mT
        angle = ((turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).arccos()
        far = torch.cdist(centers, centers) + angle
        left = set(range(len(poses)))
        order = [int(far.mean(1).argmax())]
        while left := left - {order[-1]}:
            order.append(min(left, key=lambda view: float(far[order[-1], view])))
        orders.append(torch.tensor(order))
    index = torch.stack(orders).to(batch.images.device)
    rows = torch.arange(len(index), device=index.device)[:, None]
    names = ("images", "depth", "intrinsics", "cam_from_world", "normals", "mask")
    moved = {n: v[rows, index] for n in names if (v := getattr(batch, n)) is not None}
    return replace(batch, **moved)
