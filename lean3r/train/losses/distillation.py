"""Objectives with a teacher, for sparse or quantised students.

An objective is called like every loss (train/loop.py) and holds its teacher, frozen.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lean3r.compress.distill import attention_loss, attention_outputs, gamma
from lean3r.data.base import SceneBatch
from lean3r.data.sampling.lite3r import in_unit
from lean3r.errors import InputError, UsageError
from lean3r.geometry.camera import unproject
from lean3r.geometry.pose import invert_pose
from lean3r.geometry.pose_encoding import encode_camera
from lean3r.layers.embed import before_imagenet
from lean3r.train.losses.geometry import camera_depth_loss, geometry_loss
from lean3r.train.losses.lite3r import task_loss
from lean3r.train.losses.nano import Estimate, half_pictures, truth_loss, weigh
from lean3r.train.losses.truth import DECAY, depth_loss, pose_losses, require_known
from lean3r.train.teacher_cache import TeacherCache
from lean3r.types import Views

logger = logging.getLogger("lean3r")

Terms = dict[str, Tensor]

EMPTY_SCENES = 4  # a data set whose first scenes are all without labels is an error

GOOD_SURFACES = ("synthetic", "blendedmvs", "dtu", "eth3d", "hypersim", "scannet", "scannetpp", "sintel", "vkitti2")
"""Data sets whose depth is good enough for the normal loss: Speed3R's list as far as we read it, and our own world."""


class Objective:
    """A loss with a teacher. The constructor freezes the teacher and sets evaluation mode; its device does not change.

    `gamma_from` and `gamma_to` are the weights of the attention-output distillation at the start and at the end of the
    run, with half a cosine in between (compress/distill.py). If both are 0, it is not computed. `needs_depth`: whether
    every data set must have depth. `is_cacheable`: whether the teacher's outputs may come from a cache (`remember`).
    """

    needs_depth: ClassVar[bool] = True
    is_cacheable: ClassVar[bool] = False

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

    def attention_of(self, ours: list[Tensor], views: Views, progress: float) -> tuple[Tensor, Terms]:
        """`attention`, against the teacher's outputs for the same views."""
        with torch.no_grad(), attention_outputs(self.teacher) as theirs:
            self.teacher(views)
        return self.attention(ours, theirs, progress)


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
    """Speed3R's objective: the teacher's points and cameras are the labels, on the pixels of `label_pixels`.

    `points` selects the points: "own" for the local points that a model predicts (Pi3's `outputs`), "depth" for its
    depth along the rays of its intrinsics. `confidence` is that of the teacher from which on a pixel of a scene without
    depth is a label, as a probability, 1 - 1 / conf; Pi3's own threshold is 0.1.
    """

    needs_depth, is_cacheable = False, True

    def __init__(
        self,
        teacher: nn.Module,
        *,
        points: Literal["own", "depth"] = "depth",
        confidence: float = 0.1,
        gamma_from: float = 0.0,
        gamma_to: float = 0.0,
    ):
        super().__init__(teacher, gamma_from=gamma_from, gamma_to=gamma_to)
        if points not in ("own", "depth"):
            raise UsageError(f"objective: points is {points!r}, expected 'own' or 'depth'.")
        if not (isinstance(confidence, int | float) and 0 <= confidence < 1):
            raise UsageError(f"objective: confidence is {confidence!r}, expected a probability of at least 0, below 1.")
        self.points: Literal["own", "depth"] = points
        self.confidence = confidence
        self.empty = EmptyScenes()
        self.cache: TeacherCache | None = None

    def __call__(self, model: nn.Module, batch: SceneBatch, progress: float = 0.0) -> tuple[Tensor, Terms]:
        """Total loss and its parts; InputError if a data set has no labels, scene after scene."""
        views = Views(batch.images, batch.mask)
        with torch.no_grad(), attention_outputs(self.teacher) as theirs:
            labels, terms = self.labels(views)
        with attention_outputs(model) as ours:
            prediction = local_geometry(model, views, self.points)
        known = label_pixels(batch, labels.conf, self.confidence)
        has_labels = known.flatten(1).any(1)
        self.empty.note(batch.ids, has_labels.tolist())
        sides = [*prediction[:2], *labels[:2], known, good_surfaces(batch)]
        if not has_labels.all():  # the scale of a scene without labels is unknown: its cameras say nothing either
            sides = [side[has_labels] for side in sides]
        terms["labelled"] = known.float().mean()
        if has_labels.any():
            with torch.autocast(batch.images.device.type, enabled=False):
                loss = geometry_loss(*sides)
            terms |= {name: getattr(loss, name).detach() for name in ("points", "normals", "translation", "rotation")}
            total = loss.total
        else:
            total = 0 * (prediction.points.sum() + prediction.world_from_cam.sum())
        if self.gamma_from:
            kd, more = self.attention(ours, theirs, progress)
            total, terms = total + kd, terms | more
        return total, terms

    def labels(self, views: Views) -> tuple[LocalGeometry, Terms]:
        """The teacher's output; with a cache, also a term "cached": 1 if the teacher did not have to run."""
        if self.cache is None:
            return local_geometry(self.teacher, views, self.points), {}

        def ask() -> Terms:
            found = local_geometry(self.teacher, views, self.points)._asdict()
            return {name: value for name, value in found.items() if value is not None}

        found, was_cached = self.cache.recall((views.images, views.mask), ask)
        return LocalGeometry(**{"conf": None, **found}), {"cached": torch.tensor(float(was_cached))}

    def remember(self, folder: Path, limit_bytes: float) -> None:
        """Keep the teacher's outputs in a folder (train/teacher_cache.py). UsageError if the objective needs others."""
        if self.gamma_from:
            raise UsageError("a teacher cache holds points and cameras, no attention outputs; set gamma_from to 0.")
        self.cache = TeacherCache(folder, limit_bytes, self.teacher, self.points)


class EmptyScenes:
    """Counts scenes without labels: a warning at the first of each data set, InputError if it has only such scenes."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.labelled: set[str] = set()
        self.warned: set[str] = set()

    def note(self, ids: Sequence[str], has_labels: Sequence[bool]) -> None:
        """Count the scenes of a batch; `ids` as in SceneBatch, perhaps empty."""
        for name, has in zip(ids or ["the data"] * len(has_labels), has_labels, strict=True):
            source = name.split("/")[0]
            self.seen[source] += 1
            if has:
                self.labelled.add(source)
                continue
            why = "no depth, and the teacher is not confident of any pixel there"
            if source not in self.labelled and self.seen[source] >= EMPTY_SCENES:
                raise InputError(
                    f"all of the first {EMPTY_SCENES} scenes of {source} are without labels: {why}. Leave the set out, "
                    "use another teacher, or lower the objective's `confidence`."
                )
            if source not in self.warned:
                self.warned.add(source)
                logger.warning("a scene without labels, which is left out of the loss: %s has %s.", name, why)


class Lite3rDistillation(Objective):
    """Lite3R's objective as released: cameras and depth of the data set (losses/lite3r.py), and the teacher's attention
    outputs with weight gamma.

    Lengths are in a unit of the scene (data/sampling/lite3r.in_unit). In the `form` "corrected" true cameras are
    relative to the first view, as the networks predict them, and predictions that are not finite have no part in the
    loss. In "as-released" cameras are those of the data set, one such depth gives gradients of NaN to all, and a batch
    without known depth costs 0. `pictures` "raw" gives the network pictures that are not normalised by ImageNet's mean
    and deviation, as the release does with Depth Anything 3.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        form: Literal["corrected", "as-released"] = "corrected",
        pictures: Literal["normalised", "raw"] = "normalised",
        gamma_from: float = 0.1,
        gamma_to: float = 0.01,
    ):
        super().__init__(teacher, gamma_from=gamma_from, gamma_to=gamma_to)
        if form not in ("corrected", "as-released") or pictures not in ("normalised", "raw"):
            raise UsageError(
                f"objective: form is {form!r} and pictures is {pictures!r}; expected 'corrected' or 'as-released', and "
                "'normalised' or 'raw'."
            )
        self.as_released, self.raw = form == "as-released", pictures == "raw"

    def __call__(self, model: nn.Module, batch: SceneBatch, progress: float = 0.0) -> tuple[Tensor, Terms]:
        """Total loss and its parts."""
        known = known_pixels(batch)
        if not self.as_released:
            require_known(batch, known)
        views = Views(before_imagenet(batch.images) if self.raw else batch.images, batch.mask)
        with attention_outputs(model) as ours:
            encodings, depth, conf = camera_steps(model, views)
        with torch.autocast(batch.images.device.type, enabled=False):
            truth = in_unit(batch, relative=not self.as_released)
            true_encoding = encode_camera(truth.cam_from_world, truth.intrinsics, *truth.images.shape[-2:])
            loss = task_loss(encodings, depth, conf, true_encoding, truth.depth, known, as_released=self.as_released)
        total, terms = loss.total, loss.terms()
        if self.gamma_from:
            kd, more = self.attention_of(ours, views, progress)
            total, terms = total + kd, terms | more
        return total, terms


class LeanDistillation(Objective):
    """Our variant of Lite3R's objective: L1 of the final cameras and of depth, in units of the mean depth, and the
    teacher's attention outputs with weight gamma."""

    def __call__(self, model: nn.Module, batch: SceneBatch, progress: float = 0.0) -> tuple[Tensor, Terms]:
        """Total loss and its parts."""
        views = Views(batch.images, batch.mask)
        with attention_outputs(model) as ours:
            prediction = model(views)
        with torch.autocast(batch.images.device.type, enabled=False):
            total, terms = camera_depth_loss(prediction, batch, known_pixels(batch))
        if self.gamma_from:
            kd, more = self.attention_of(ours, views, progress)
            total, terms = total + kd, terms | more
        return total, terms


def camera_steps(model: Any, views: Views) -> tuple[list[Tensor], Tensor, Tensor]:
    """(camera encodings [B, S, 9] after each iteration of the camera head, depth, confidence [B, S, H, W]), float32.

    A model whose head does not iterate has one. UsageError if it predicts no depth with confidence.
    """
    tokens = model.encode(views)
    if hasattr(model, "pose_encodings"):
        encodings, (depth, conf) = model.pose_encodings(tokens), model.depth_maps(tokens)
    else:
        found = model.decode(tokens)
        height, width = views.images.shape[-2:]
        encodings = [encode_camera(found.cam_from_world.float(), found.intrinsics.float(), height, width)]
        depth, conf = found.depth, found.conf
    if depth is None or conf is None:
        raise UsageError("the model predicts no depth with confidence, which this recipe needs. Use another model.")
    return [encoding.float() for encoding in encodings], depth.float(), conf.float()


def known_pixels(batch: SceneBatch) -> Tensor:
    """Mask [B, S, H, W] bool of picture pixels (not padding) with known depth."""
    return batch.depth > 0 if batch.mask is None else (batch.depth > 0) & batch.mask


def label_pixels(batch: SceneBatch, conf: Tensor | None, confidence: float) -> Tensor:
    """Mask [B, S, H, W] bool of pixels whose labels count: those with known depth; in scenes without any, such as those
    of data sets without depth, those where the teacher's conf is at least 1 / (1 - confidence)."""
    known = known_pixels(batch)
    without = ~(batch.depth > 0).flatten(1).any(1)
    if not bool(without.any()):
        return known
    if conf is None:
        raise UsageError("the teacher predicts no confidence, which data sets without depth need. Use another teacher.")
    sure = conf >= 1 / (1 - confidence)
    return known | (without[:, None, None, None] & (sure if batch.mask is None else sure & batch.mask))


def good_surfaces(batch: SceneBatch) -> Tensor:
    """Mask [B] bool of scenes whose depth is good enough for normals.

    These are scenes of GOOD_SURFACES, by name; scenes without names if the batch has normals.
    """
    if not batch.ids:
        return torch.full((len(batch.depth),), batch.normals is not None, device=batch.depth.device)
    sets = [name.split("/")[0] for name in batch.ids]
    return torch.tensor([name in GOOD_SURFACES for name in sets], device=batch.depth.device)


class LocalGeometry(NamedTuple):
    """points [B, S, H, W, 3] in the axes of their own camera, world_from_cam [B, S, 4, 4], both float32, and conf
    [B, S, H, W], at least 1; None if the model predicts none."""

    points: Tensor
    world_from_cam: Tensor
    conf: Tensor | None


def local_geometry(model: Any, views: Views, points: Literal["own", "depth"]) -> LocalGeometry:
    """A model's points, cameras and confidence; UsageError if it has no points of that kind."""
    if points == "own":
        outputs = model.outputs(model.encode(views))
        if not {"local_points", "camera_poses"} <= outputs.keys():
            raise UsageError("the model predicts no points in camera axes, which this recipe needs. Use a Pi3 model.")
        conf = 1 + outputs["conf"][..., 0].float().exp()
        return LocalGeometry(outputs["local_points"].float(), outputs["camera_poses"].float(), conf)
    scene = model(views)
    with torch.autocast(views.images.device.type, enabled=False):
        local = unproject(scene.depth.float(), scene.intrinsics.float())
        return LocalGeometry(local, invert_pose(scene.cam_from_world.float()), scene.conf)
