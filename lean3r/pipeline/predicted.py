"""The scene that the network predicts of what was read, in the world of the known cameras."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from lean3r.geometry.photo_scale import Shown
from lean3r.group import Group
from lean3r.inputs.masks import Masks
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.pipeline.budget import Fit, within
from lean3r.pipeline.known import Given, depth_factor, known_record, lenses_of, place_in_world
from lean3r.pipeline.network_scene import array_of, pictures_of
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.options import RunOptions
from lean3r.pipeline.predict import check_finite, predict
from lean3r.pipeline.together import predict_together
from lean3r.pipeline.trust import Content, judge_content, no_points
from lean3r.types import Prediction, Reconstruction, Source, Views, with_warning

LITTLE = 0.1  # share of the pictures with a mask that is used, below which masks are probably inverted
INVERTED = (
    "the masks leave {:.0%} of the pictures that have one: black is left out, and anything else is used. If yours have "
    "white where something is to be left out, invert them"
)


class Read(NamedTuple):
    """What a run has read: the views with their sources, the `files` that they come from, if they do, what is `given`
    of their cameras, and their masks."""

    views: Views
    sources: tuple[Source, ...]
    files: Pictures | None
    given: Given | None
    masks: Masks | None


def predict_scene(
    model: Backbone,
    read: Read,
    run: RunOptions,
    keep_sky: bool,
    fit: Fit | None,
    observer: Observer,
    group: Group | None,
) -> tuple[Reconstruction, Content]:
    """Run the network; return its scene without points, in the world of the given cameras, and its content."""
    views, sources, files, given, masks = read
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _seeded(run.seed, device), within(model, fit):
        with observer.stage("network"):
            first = run.reference(len(sources))

            def network() -> Prediction:
                return predict(model, views, first) if group is None else predict_together(model, views, first, group)

            prediction = network() if files is None else files.predicted(network)
        check_finite(prediction, [source.name for source in sources])
        parts = model.reads(views.known)
        placed = place_in_world(prediction, given, parts)
        prediction = placed.prediction
        images, mask = pictures_of(views)
        counts = mask if masks is None else masks.of_network(sources, mask)
        content = judge_content(images, counts, keep_sky)
        depth = np.where(content.usable, array_of(prediction.depth, np.float32), np.float32(0))
        intrinsics = array_of(prediction.intrinsics, np.float64)
        lenses = lenses_of(given, sources, intrinsics)
        if given is not None and placed.span:
            depth *= depth_factor(placed, given, Shown(images, mask, depth), sources, lenses)
    seen = parts if model.SEES else frozenset()
    scene = Reconstruction(
        sources=sources,
        images=images,
        mask=mask,
        depth=depth,
        conf=np.where(content.usable, array_of(prediction.conf, np.float32), np.float32(0)),
        cam_from_world=array_of(prediction.cam_from_world, np.float64),
        intrinsics=intrinsics,
        points=no_points(),
        scale=placed.scale,
        info={} if views.known is None else {"known": known_record(views.known, given, seen)},
        lenses=lenses,
        registration=() if given is None else tuple("given" if has else "predicted" for has in given.has_pose.tolist()),
    )
    return scene if masks is None else _with_masks(scene, masks, counts), content


def _with_masks(scene: Reconstruction, masks: Masks, counts: np.ndarray) -> Reconstruction:
    """The scene with what its masks are, and the share of its pictures with one that they leave: `counts` [S, H, W]."""
    views = [view for view, source in enumerate(scene.sources) if source.name in masks.files]
    used = float(counts[views].sum() / max(1, scene.mask[views].sum()))
    record = {"folder": str(masks.folder), "views": len(masks.files), "used": round(used, 4)}
    scene = replace(scene, info={**scene.info, "masks": record})
    return with_warning(scene, "masks", INVERTED.format(used), views) if used < LITTLE else scene


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's random numbers are seeded; afterwards the caller's random state is restored."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
