"""Objectives with a teacher, for sparse or quantised students.

An objective is called like every loss (train/loop.py) and holds its teacher, frozen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lean3r.compress.distill import attention_loss, attention_outputs, gamma
from lean3r.data.base import SceneBatch
from lean3r.errors import UsageError
from lean3r.geometry.camera import unproject
from lean3r.geometry.pose import invert_pose
from lean3r.train.losses.geometry import camera_depth_loss, geometry_loss
from lean3r.train.losses.nano import Estimate, half_pictures, truth_loss, weigh
from lean3r.train.losses.truth import DECAY, depth_loss, pose_losses
from lean3r.types import Views

Terms = dict[str, Tensor]

GOOD_SURFACES = ("synthetic", "blendedmvs", "dtu", "hypersim", "scannet", "scannetpp", "vkitti2")
"""Data sets whose depth is good enough for the normal loss: Speed3R's list as far as we read it, and our own world."""


class Objective:
    """A loss with a teacher. The constructor freezes the teacher and sets evaluation mode; its device does not change.

    `gamma_from` and `gamma_to` are the weights of the attention-output distillation at the start and at the end of the
    run, with half a cosine in between (compress/distill.py). If both are 0, it is not computed.
    """

    def __init__(self, teacher: nn.Module, *, gamma_from: float = 0.1, gamma_to: float = 0.01):
        self.teacher: Any = teacher.eval().requires_grad_(False)
        self.gamma_from, self.gamma_to = check_weights(gamma_from=gamma_from, gamma_to=gamma_to)
        if gamma_to > gamma_from:
            raise UsageError(
                f"gamma rises from {gamma_from} to {gamma_to}; expected a weight that falls or stays constant."
            )

    def attention(self, ours: list[Tensor], theirs: list[Tensor], progress: float) -> tuple[Tensor, Terms]:
        """gamma times the mean squared difference of attention outputs, and the terms to log."""
        distance = attention_loss(ours, theirs)
        if not distance.layers:
            raise UsageError(
                f"student and teacher share no attention layer ({len(ours)} and {len(theirs)} ran): "
                "the teacher does not fit the student. Take a teacher of the student's own architecture."
            )
        weight = gamma(round(progress * 1_000_000), 1_000_000, highest=self.gamma_from, lowest=self.gamma_to)
        return weight * distance.loss, {"attention": distance.loss.detach()}


def check_weights(**weights: float) -> tuple[float, ...]:
    """Return the weights of an objective's terms; UsageError unless each is a finite number of at least 0."""
    for name, value in weights.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise UsageError(f"objective: {name} is {value!r}, expected a number of at least 0.")
    return tuple(weights.values())


class NanoDistillation(Objective):
    """nano's own loss on the ground truth (losses/nano.py, weight `truth`), and losses against the dense nano.

    `labels` is the weight of the teacher's cameras and depth after every pair of blocks. `tokens` is the weight of the
    squared difference of final tokens in units of their variance; it keeps the guided head, which was trained on the
    dense tokens, usable.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        truth: float = 1.0,
        labels: float = 1.0,
        tokens: float = 1.0,
        gamma_from: float = 0.1,
        gamma_to: float = 0.01,
    ):
        super().__init__(teacher, gamma_from=gamma_from, gamma_to=gamma_to)
        self.truth, self.labels, self.tokens = check_weights(truth=truth, labels=labels, tokens=tokens)

    def __call__(
        self, model: Any, batch: SceneBatch, progress: float = 0.0, *, full: float = 0.0
    ) -> tuple[Tensor, Terms]:
        """Total loss and its parts; `full` as in nano_loss."""
        half = half_pictures(batch, full)
        with torch.no_grad(), attention_outputs(self.teacher) as theirs:
            labels = self.teacher.iterate(half)
        with attention_outputs(model) as ours:
            output = model.iterate(half)
        total, terms = truth_loss(model, output, batch, full=full)
        total = self.truth * total
        if self.gamma_from:
            kd, more = self.attention(ours, theirs, progress)
            total, terms = total + kd, terms | more
        if self.labels:
            difference = teacher_loss(output.estimates, labels.estimates)
            total, terms = total + self.labels * difference, terms | {"labels": difference.detach()}
        if self.tokens:
            gap = (output.tokens - labels.tokens).float().square().mean() / labels.tokens.float().var()
            total, terms = total + self.tokens * gap, terms | {"tokens": gap.detach()}
        return total, terms


def teacher_loss(estimates: Sequence[Estimate], labels: Sequence[Estimate]) -> Tensor:
    """Loss of nano's cameras and depth against those of a teacher, with the same weights as against ground truth."""
    total = torch.zeros((), device=estimates[-1].log_depth.device)
    for age, (ours, theirs) in enumerate(zip(reversed(estimates), reversed(labels), strict=True)):
        level, shift = depth_loss(ours.log_depth, theirs.log_depth, torch.ones_like(ours.log_depth, dtype=torch.bool))
        rotation, translation = pose_losses(ours.world_from_cam, ours.cam_from_world, theirs)
        focal = (ours.cameras.log_focal - theirs.cameras.log_focal).abs().mean()
        parts = {"rotation": rotation, "translation": translation, "depth": level, "shift": shift, "focal": focal}
        total = total + DECAY**age * weigh(parts)
    return total


class Speed3rDistillation(Objective):
    """Speed3R's objective: the teacher's points and cameras are the labels, on pixels with known depth in the data set.

    `points` selects the points: "own" for the local points that a model predicts (Pi3's `outputs`), "depth" for its
    depth along the rays of its intrinsics.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        points: Literal["own", "depth"] = "depth",
        gamma_from: float = 0.0,
        gamma_to: float = 0.0,
    ):
        super().__init__(teacher, gamma_from=gamma_from, gamma_to=gamma_to)
        if points not in ("own", "depth"):
            raise UsageError(f"objective: points is {points!r}, expected 'own' or 'depth'.")
        self.points: Literal["own", "depth"] = points

    def __call__(self, model: nn.Module, batch: SceneBatch, progress: float = 0.0) -> tuple[Tensor, Terms]:
        """Total loss and its parts."""
        views = Views(batch.images, batch.mask)
        with torch.no_grad(), attention_outputs(self.teacher) as theirs:
            labels = local_geometry(self.teacher, views, self.points)
        with attention_outputs(model) as ours:
            prediction = local_geometry(model, views, self.points)
        with torch.autocast(batch.images.device.type, enabled=False):
            loss = geometry_loss(*prediction, *labels, known_pixels(batch), good_surfaces(batch))
        terms = {name: getattr(loss, name).detach() for name in ("points", "normals", "translation", "rotation")}
        total = loss.total
        if self.gamma_from:
            kd, more = self.attention(ours, theirs, progress)
            total, terms = total + kd, terms | more
        return total, terms


class Lite3rDistillation(Objective):
    """Lite3R's objective: cameras and depth of the data set, and the teacher's attention outputs with weight gamma."""

    def __call__(self, model: nn.Module, batch: SceneBatch, progress: float = 0.0) -> tuple[Tensor, Terms]:
        """Total loss and its parts."""
        views = Views(batch.images, batch.mask)
        with attention_outputs(model) as ours:
            prediction = model(views)
        with torch.autocast(batch.images.device.type, enabled=False):
            total, terms = camera_depth_loss(prediction, batch, known_pixels(batch))
        if self.gamma_from:
            with torch.no_grad(), attention_outputs(self.teacher) as theirs:
                self.teacher(views)
            kd, more = self.attention(ours, theirs, progress)
            total, terms = total + kd, terms | more
        return total, terms


def known_pixels(batch: SceneBatch) -> Tensor:
    """Mask [B, S, H, W] bool of picture pixels (not padding) with known depth."""
    return batch.depth > 0 if batch.mask is None else (batch.depth > 0) & batch.mask


def good_surfaces(batch: SceneBatch) -> Tensor:
    """Mask [B] bool of scenes whose depth is good enough for normals.

    These are scenes of GOOD_SURFACES, by name; scenes without names if the batch has normals.
    """
    if not batch.ids:
        return torch.full((len(batch.depth),), batch.normals is not None, device=batch.depth.device)
    sets = [name.split("/")[0] for name in batch.ids]
    return torch.tensor([name in GOOD_SURFACES for name in sets], device=batch.depth.device)


def local_geometry(model: Any, views: Views, points: Literal["own", "depth"]) -> tuple[Tensor, Tensor]:
    """Points [B, S, H, W, 3] in the axes of their own camera, and world_from_cam [B, S, 4, 4], float32."""
    if points == "own":
        outputs = model.outputs(model.encode(views))
        if not {"local_points", "camera_poses"} <= outputs.keys():
            raise UsageError("the model predicts no points in camera axes, which this recipe needs. Use a Pi3 model.")
        return outputs["local_points"].float(), outputs["camera_poses"].float()
    scene = model(views)
    with torch.autocast(views.images.device.type, enabled=False):
        return unproject(scene.depth.float(), scene.intrinsics.float()), invert_pose(scene.cam_from_world.float())
