"""Pictures in, Reconstruction out: read, run the network, check it, refine it, fuse the points."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import InputError, LeanError, UsageError
from lean3r.geometry.photo_scale import Shown
from lean3r.inputs.cameras import GivenCameras
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.masks import Masks, check_folder
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.options import PointOptions
from lean3r.pipeline.budget import Budget, Fit, Measure, fit_run, within
from lean3r.pipeline.known import (
    Given,
    depth_factor,
    given_in,
    in_given_world,
    known_record,
    lenses_of,
    uses,
    with_cameras,
)
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.old_keywords import OldKeywords, translate
from lean3r.pipeline.options import CameraOptions, RunOptions
from lean3r.pipeline.predict import check_finite, predict
from lean3r.pipeline.record import record_of, with_costs
from lean3r.pipeline.refining import applies, refine_scene
from lean3r.pipeline.trust import Seen, judge_scene, look_at, no_points
from lean3r.refine import Refine, RefineOptions
from lean3r.types import Reconstruction, Source, Views

if TYPE_CHECKING:
    from lean3r.inputs.pictures import PictureInput


def reconstruct(
    model: Backbone,
    pictures: PictureInput | Pictures | Views | None = None,
    *,
    frames: FrameChoice | int | None = None,
    cameras: str | Path | GivenCameras | CameraOptions | None = None,
    masks: str | Path | None = None,
    resolution: int | None = RunOptions.resolution,
    reference_view: int | str = RunOptions.reference_view,
    seed: int = RunOptions.seed,
    memory: str | int | Budget | None = None,
    refine: Refine | RefineOptions = "auto",
    points: PointOptions | None = None,
    observer: Observer | None = None,
    **old: Unpack[OldKeywords],
) -> Reconstruction:
    """Reconstruct one scene from pictures, a folder, a glob, a zip, a video, or ready Views of one scene.

    Pictures may also be PIL images, arrays or tensors, or a `Pictures` that is at hand (lean3r.inputs.pictures).
    `frames` chooses among them (FrameChoice); what is black in the pictures of the folder `masks`, sky unless
    `points` keep it, and views that show nothing give no features, no depth and no points. `cameras` are what is known
    of them: a file, GivenCameras, or CameraOptions, which say more. `resolution`, `reference_view` and `seed` are those
    of RunOptions. `memory` ("8GB", bytes or a Budget) is the process's on a CPU, torch's on a GPU: the mildest change
    that keeps the peak below it is made and told (pipeline/budget.py); what was given by name, and ready Views, stay.
    `refine` ("auto", "on", "off", or RefineOptions) makes the cameras exact by matches and bundle adjustment where that
    is better; Ctrl-C then keeps the network's. `points` says which points the cloud has (PointOptions).

    `info["warnings"]` says what nothing supports (pipeline/trust.py). Without poses the world's origin and unit are the
    network's choice (`scale` says which). InputError when no picture is usable or cameras or masks are not,
    OutOfMemoryError when memory does not hold the views, LeanError when the network returns NaN.
    """
    if old or not isinstance(frames, FrameChoice | None):
        pictures, frames, cameras, refine, points = translate(old, pictures, frames, cameras, refine, points)
    if pictures is None:
        raise TypeError("reconstruct() is given no pictures")
    if not isinstance(model, Backbone):
        raise UsageError(f"the model is {type(model).__name__}; expected a loaded one: lean3r.load('nano').")
    run = RunOptions(resolution=resolution, reference_view=reference_view, seed=seed)
    run.check(model)
    budget = None if memory is None else Budget.of(memory)
    refining, points = RefineOptions.of(refine), points or PointOptions()
    known = cameras if isinstance(cameras, CameraOptions) else CameraOptions(cameras=cameras)
    if masks is not None:
        check_folder(Path(masks))
    is_refined = applies(refining, model, not isinstance(pictures, Views))
    observer = observer or Observer()
    with observer.stage("reading") as progress:
        if not isinstance(pictures, Views | Pictures):
            pictures = Pictures(pictures, frames, keep_frames=is_refined)
        elif frames is not None:
            raise UsageError(f"frames are chosen for {type(pictures).__name__}, which stand already; leave them out.")
        views, pictures, run, fit = _read(model, pictures, run, budget, progress)
    files = pictures if isinstance(pictures, Pictures) else None
    sources = views.sources or _default_sources(views)
    names = [source.name for source in sources]
    skipped = () if files is None else files.skipped
    observer.read(names, skipped)
    if fit is not None:
        observer.fitted(str(fit))
    given = given_in(views.known)
    if known.are_given:
        views, given = with_cameras(views, sources, known)
    masking = None if files is None or masks is not None else files.masks
    if masks is not None:
        masking = Masks.find(Path(masks), names)
    scene, seen = _first(model, views, sources, run, points, given, masking, fit, observer)
    options = (FrameChoice() if files is None else files.frames, known, run, points)
    folder = None if masking is None else str(masking.folder)
    info = scene.info | record_of(model, options, refining, fit, {"masks": folder})
    if masking is not None:
        info["masks"] = {"folder": folder, "views": len(masking.files)}
    scene = replace(scene, skipped=skipped, info=info)
    if is_refined:
        held = None if given is None else given.for_refinement(sources, known.known_poses)
        scene = refine_scene(scene, files, refining, held, masking, observer)
    if "known" in scene.info:
        told = scene.info["known"]
        used = uses(told, scene.info.get("refinement"), known.known_poses)
        scene = replace(scene, info={**scene.info, "known": {**told, "used": used}})
    with observer.stage("points"):
        scene = judge_scene(scene, seen)
    return with_costs(scene, observer.seconds, next(model.parameters()).device)


def _first(
    model: Backbone,
    views: Views,
    sources: tuple[Source, ...],
    run: RunOptions,
    points: PointOptions,
    given: Given | None,
    masking: Masks | None,
    fit: Fit | None,
    observer: Observer,
) -> tuple[Reconstruction, Seen]:
    """The network's scene, without points, in the world of the given cameras; and what its pictures show."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _seeded(run.seed, device), within(model, fit):
        with observer.stage("network"):
            prediction = predict(model, views, run.reference(len(sources)))
        check_finite(prediction, [source.name for source in sources])
        read = model.reads(views.known)
        placed = in_given_world(prediction, given, read)
        prediction = placed.prediction
        images, mask = _pictures(views)
        seen = look_at(images, mask if masking is None else masking.of_network(sources, mask), points.keep_sky)
        depth = np.where(seen.counts, _array(prediction.depth, np.float32), np.float32(0))
        intrinsics = _array(prediction.intrinsics, np.float64)
        lenses = lenses_of(given, sources, intrinsics)
        if given is not None and placed.span:
            depth *= depth_factor(placed, given, Shown(images, mask, depth), sources, lenses)
    scene = Reconstruction(
        sources=sources,
        images=images,
        mask=mask,
        depth=depth,
        conf=np.where(seen.counts, _array(prediction.conf, np.float32), np.float32(0)),
        cam_from_world=_array(prediction.cam_from_world, np.float64),
        intrinsics=intrinsics,
        points=no_points(),
        scale=placed.scale,
        info={} if views.known is None else {"known": known_record(views.known, given, read)},
        lenses=lenses,
        registration=() if given is None else tuple("given" if has else "predicted" for has in given.has_pose.tolist()),
        point_options=points,
    )
    return scene, seen


def _read(
    model: Backbone, pictures: Pictures | Views, run: RunOptions, budget: Budget | None, progress: Any
) -> tuple[Views, Pictures | Views, RunOptions, Fit | None]:
    """The views that the network shall see, from which pictures and with which options, and how they fit."""
    side = run.resolution or model.resolution
    views = pictures
    if isinstance(views, Pictures):
        views = views.views(resolution=side, patch=model.patch, progress=progress)
    elif views.images.ndim != 5 or views.images.shape[0] != 1 or views.images.shape[1] == 0:
        raise InputError(
            f"views have shape {tuple(views.images.shape)}, expected one scene [1, S, 3, H, W] with S >= 1"
        )
    if budget is None:
        return views, pictures, replace(run, resolution=side), None
    # What was given by name may not change, nor ready views, nor the number of views where one is named by its index.
    is_ready = isinstance(pictures, Views)
    fixed: list[Measure] = ["resolution"] if is_ready or run.resolution is not None else []
    if is_ready or isinstance(run.reference_view, int):
        fixed.append("views")
    fit = fit_run(model, views, side, budget, fixed)
    if isinstance(pictures, Pictures) and (fit.resolution, fit.setting.views) != (side, views.images.shape[1]):
        side, pictures = fit.resolution, pictures.at_most(fit.setting.views)
        views = pictures.views(resolution=side, patch=model.patch, progress=progress)
    return views, pictures, replace(run, resolution=side), fit


def _default_sources(views: Views) -> tuple[Source, ...]:
    count, (height, width) = views.images.shape[1], views.images.shape[-2:]
    return tuple(Source(f"view_{i:04d}.png", width, height) for i in range(count))


def _pictures(views: Views) -> tuple[np.ndarray, np.ndarray]:
    """What the network saw, as [S, H, W, 3] uint8, and which pixels of it are picture, [S, H, W] bool."""
    images = (views.images[0] * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    shape = images.shape[:3]
    mask = torch.ones(shape, dtype=torch.bool) if views.mask is None else views.mask[0]
    return images.cpu().numpy(), mask.cpu().numpy()


def _array(value: Tensor | None, dtype: Any) -> np.ndarray:
    if value is None:
        raise LeanError("the backbone returned no depth: a reconstruction needs decode(..., dense=True)")
    return value[0].numpy().astype(dtype)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded random numbers inside, the caller's random state untouched after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
