"""The objective of nano: all estimates of one forward pass against one batch of scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.layers.matching import Matches
from lean3r.train.losses.truth import (
    DECAY,
    Target,
    TwoSurfaces,
    depth_loss,
    full_depth_losses,
    make_target,
    match_losses,
    pose_losses,
)

WEIGHTS = {
    "rotation": 1.0,
    "translation": 1.0,
    "depth": 1.0,
    "shift": 0.1,
    "focal": 0.3,
    "match": 0.3,
    "flow": 2.0,
    "visible": 0.1,
    "full": 0.2,
    "edge": 0.2,
}


class Cameras(Protocol):
    """The part of estimated cameras that the objective uses (heads/camera.py)."""

    log_focal: Tensor


class Estimate(Protocol):
    """Cameras and depth after some of the blocks (models/nano.py)."""

    cameras: Cameras
    world_from_cam: Tensor
    cam_from_world: Tensor
    log_depth: Tensor


class Iterated(Protocol):
    """The output of one forward pass: an estimate after every pair of blocks, matches, final tokens."""

    estimates: list[Estimate]
    matches: Matches
    tokens: Tensor


class IterativeModel(Protocol):
    """The interface of a model that the objective uses (see models/nano.py)."""

    patch: int

    def iterate(self, half: Tensor) -> Iterated:
        """Predict estimates, matches and tokens from half-size pictures."""
        ...

    def sharpen(self, tokens: Tensor, log_depth: Tensor, images: Tensor) -> TwoSurfaces:
        """Predict full-size depth from tokens, coarse log depth and pictures."""
        ...


def nano_loss(
    model: IterativeModel, batch: SceneBatch, progress: float = 0.0, *, full: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss and its parts, independent of `progress`.

    With `full` 0 the batch has half-size pictures and the guided head is not used. Otherwise the pictures have full
    size, and `full` is the weight of the losses of the guided head.
    """
    return truth_loss(model, model.iterate(half_pictures(batch, full)), batch, full=full)


def half_pictures(batch: SceneBatch, full: float) -> Tensor:
    """The input of the trunk [B, S, 3, h, w]: the pictures of the batch; with `full`, at half their size."""
    if not full:
        return batch.images
    return F.avg_pool2d(batch.images.flatten(0, 1), 2).unflatten(0, batch.images.shape[:2])


def truth_loss(
    model: IterativeModel,
    output: Iterated,
    batch: SceneBatch,
    *,
    full: float = 0.0,
    unit_from: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """nano_loss of the `output` of `model.iterate`; `unit_from` as in `make_target`."""
    target = make_target(batch, model.patch if full else model.patch // 2, unit_from=unit_from)
    assert output.matches.logits is not None, "in training mode, a model returns the logits of its matches"
    parts = match_losses(output.matches.logits, output.matches.position, output.matches.visibility, target)
    total = weigh({k: parts[k] for k in ("match", "flow", "visible")})
    estimated, last = estimate_losses(output.estimates, target)
    total, parts = total + estimated, parts | last
    if full:
        sharp = model.sharpen(output.tokens, output.estimates[-1].log_depth, batch.images)
        fine = full_depth_losses(sharp, batch, target.scale)
        total = total + full * weigh(fine)
        parts |= fine
    return total, {k: v.detach() for k, v in parts.items()}


def estimate_losses(estimates: Sequence[Estimate], target: Target) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over all estimates, the last one with weight 1, and the parts of the last."""
    total, last = torch.zeros((), device=target.log_depth.device), dict[str, Tensor]()
    for age, estimate in enumerate(reversed(estimates)):
        level, shift = depth_loss(estimate.log_depth, target.log_depth, target.known)
        rotation, translation = pose_losses(estimate.world_from_cam, estimate.cam_from_world, target)
        focal = (estimate.cameras.log_focal - target.log_focal).abs().mean()
        now = {"rotation": rotation, "translation": translation, "depth": level, "shift": shift, "focal": focal}
        total = total + DECAY**age * weigh(now)
        last = last or now
    return total, last


def weigh(parts: Mapping[str, Tensor]) -> Tensor:
    """Sum of losses, weighted by WEIGHTS."""
    return torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()
