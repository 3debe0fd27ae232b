"""Lite3R's task loss as its release computes it: cameras after every iteration of the head, and depth with confidence.

Shapes: B scenes, S views, H x W pixels. Source: Zhang et al. 2026, "Lite3R", its released training code, which is
VGGT's loss with one scale fitted to translations and one to depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 100  # valid pixels: a first view needs more for its scene's cameras, a batch as many for its depth
FILTERED = 1000  # entries: shorter lists are not filtered, and at least as many remain
LARGEST = 100.0  # bound of every entry of the loss, and of true depth
SCALES = (0.1, 10.0)  # bounds of the fitted scales
LEAST_CONFIDENCE = 1e-3
STRIDES = (1, 2, 4, 8)  # of the gradient term


@dataclass(frozen=True)
class TaskWeights:
    """Weights of the task loss; the defaults are those of the released settings.

    `decay` is the factor of an iteration's weight for each iteration after it. `confidence` is the weight of the
    residuals times confidence, `reward` that of the logarithm of confidence. The largest entries of depth, from the
    share `quantile` of the sorted entries on, are dropped (0: none). `gradient` is the weight of the multi-scale
    gradient term, which the released settings do not use.
    """

    camera: float = 1.0
    depth: float = 1.0
    translation: float = 1.0
    rotation: float = 1.0
    field: float = 0.5
    decay: float = 0.6
    confidence: float = 1.0
    reward: float = 0.2
    quantile: float = 0.95
    gradient: float = 0.0


RELEASED = TaskWeights()


@dataclass(frozen=True)
class TaskLoss:
    """The terms of `total` = camera + depth terms, each with its weight in TaskWeights; scalars.

    camera = translation + rotation + 0.5 field; depth = confident + residual + gradient.
    """

    total: Tensor
    camera: Tensor
    translation: Tensor
    rotation: Tensor
    field: Tensor
    confident: Tensor
    residual: Tensor
    gradient: Tensor

    def terms(self) -> dict[str, Tensor]:
        """All terms except the total, detached, to log."""
        return {name: value.detach() for name, value in vars(self).items() if name != "total"}


def task_loss(
    encodings: Sequence[Tensor],
    depth: Tensor,
    conf: Tensor,
    true_encoding: Tensor,
    true_depth: Tensor,
    valid: Tensor,
    weights: TaskWeights = RELEASED,
    *,
    as_released: bool = False,
) -> TaskLoss:
    """Loss of camera encodings [B, S, 9] (geometry/pose_encoding.py) after each iteration, and of depth and conf
    [B, S, H, W], on `valid` pixels [B, S, H, W].

    Predictions that are not finite have no part in it. With `as_released` they have: the loss stays finite, but one
    such depth gives gradients of NaN to all valid ones.
    """
    if not as_released:
        finite = depth.isfinite() & conf.isfinite()
        valid, depth, conf = valid & finite, depth.where(finite, 0.0), conf.where(finite, 1.0)
    translation, rotation, field = camera_terms(encodings, true_encoding, valid, weights.decay, as_released)
    camera = weights.translation * translation + weights.rotation * rotation + weights.field * field
    confident, residual, gradient = depth_terms(depth, conf, true_depth, valid, weights)
    total = weights.camera * camera + weights.depth * (confident + residual + gradient)
    return TaskLoss(total, camera, translation, rotation, field, confident, residual, gradient)


def camera_terms(
    encodings: Sequence[Tensor], truth: Tensor, valid: Tensor, decay: float, as_released: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(translation, rotation, field of view): L1, each a mean over the iterations with weights decay ** age.

    Scenes count whose first view has more than FEWEST valid pixels; without such a scene all terms are 0.
    """
    counts = valid[:, 0].sum((-1, -2)) > FEWEST
    if not counts.any():
        zero = torch.stack([(e * 0).nan_to_num().mean() for e in encodings]).mean()
        return zero, zero, zero
    means = []
    for encoding in encodings:
        ours, goal = encoding[counts], truth[counts]
        if not as_released:
            finite = ours.isfinite().all(-1)
            ours, goal = ours[finite], goal[finite]
        place = (translation_scale(ours[..., :3], goal[..., :3]) * ours[..., :3] - goal[..., :3]).abs()
        other = finite_or_zero((ours[..., 3:] - goal[..., 3:]).abs())
        each = (finite_or_zero(place).clamp(max=LARGEST), other[..., :4], other[..., 4:])
        means.append(torch.stack([x.sum() / max(1, x.numel()) for x in each]))
    ages = torch.arange(len(means) - 1, -1, -1, dtype=truth.dtype, device=truth.device)
    total = (torch.stack(means) * (decay**ages)[:, None]).sum(0) / len(means)
    return total[0], total[1], total[2]


@torch.no_grad()
def translation_scale(place: Tensor, truth: Tensor) -> Tensor:
    """The scale of translations that fits best in least squares, of either sign, its magnitude within SCALES."""
    scale = (place * truth).sum() / place.square().sum().clamp_min(1e-8)
    return scale.sign() * scale.abs().clamp(*SCALES)


def depth_terms(
    depth: Tensor, conf: Tensor, truth: Tensor, valid: Tensor, weights: TaskWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """(residuals times confidence, residuals, gradient term): means over the entries that the filter keeps.

    All scenes and views are pooled. With fewer than FEWEST valid pixels all terms are 0.
    """
    truth = finite_or_zero(truth).clamp(-LARGEST, LARGEST)
    count = int(valid.sum())
    if count < FEWEST:
        zero = ((depth + conf) * 0).nan_to_num().mean()
        return zero, zero, zero
    gradient = weights.gradient * gradient_term(depth, truth, valid) if weights.gradient else depth.new_zeros(())
    d, y, c = truth[valid], depth[valid], conf[valid]
    scale = depth_scale(y, d) if count > FEWEST else 1.0
    residual = finite_or_zero((d - scale * y).abs()).clamp(-LARGEST, LARGEST)
    sure = c.clamp_min(LEAST_CONFIDENCE)
    entries = weights.confidence * residual * sure - weights.reward * sure.log()
    entries = finite_or_zero(entries).clamp(-LARGEST, LARGEST)
    confident, plain = (without_largest(x, weights.quantile).mean() for x in (entries, residual))
    return confident, plain, gradient


@torch.no_grad()
def depth_scale(depth: Tensor, truth: Tensor) -> Tensor:
    """The scale of depths [M] that fits best in least squares, within SCALES."""
    return ((truth * depth).sum() / depth.square().sum().clamp_min(1e-8)).clamp(*SCALES)


def without_largest(entries: Tensor, quantile: float) -> Tensor:
    """The entries [M] below `threshold`, if more than FILTERED of them remain; otherwise all."""
    if not quantile or len(entries) <= FILTERED:
        return entries
    entries = entries.clamp(max=LARGEST)
    kept = entries < threshold(entries, quantile)
    return entries[kept] if int(kept.sum()) > FILTERED else entries


@torch.no_grad()
def threshold(entries: Tensor, quantile: float) -> Tensor:
    """The entry at the place quantile * (M - 1), rounded half to even, of the sorted entries [M]."""
    return entries.kthvalue(round(quantile * (len(entries) - 1)) + 1).values


def gradient_term(depth: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Mean over STRIDES of the differences of neighbouring errors, without a scale, for each valid pixel."""
    total = depth.new_zeros(())
    for stride in STRIDES:
        error, there = ((depth - truth)[..., ::stride, ::stride], valid[..., ::stride, ::stride])
        for axis in (-1, -2):
            n = error.shape[axis] - 1
            step = (error.narrow(axis, 1, n) - error.narrow(axis, 0, n)).abs()
            both = there.narrow(axis, 1, n) & there.narrow(axis, 0, n)
            total = total + step.where(both, 0.0).sum() / there.sum().clamp_min(1)
    return total / len(STRIDES)


def finite_or_zero(values: Tensor) -> Tensor:
    """The values, 0 where they are not finite; no gradient flows there."""
    return values.where(values.isfinite(), 0.0)
