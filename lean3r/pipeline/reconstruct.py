"""Views in, Reconstruction out: read, run the network, check it, fuse the points."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import InputError, LeanError, OutOfMemoryError, UsageError
from lean3r.geometry.photo_scale import Pictures
from lean3r.inputs.cameras import GivenCameras
from lean3r.inputs.masks import Masks, check_folder
from lean3r.inputs.views import Loaded, load_views
from lean3r.models.base import Backbone
from lean3r.pipeline.budget import Budget, Measure, chunk_text, fit_run, what_fits, within
from lean3r.pipeline.known import (
    Intrinsics,
    Part,
    depth_factor,
    given_in,
    in_given_world,
    lenses_of,
    told_of,
    uses,
    with_cameras,
)
from lean3r.pipeline.memory import chunked, is_out_of_memory
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.refining import Refining, refined
from lean3r.pipeline.trust import judged, look_at, no_points
from lean3r.processes import peak_memory_mb
from lean3r.refine import KnownPoses, LensName, Refine, ShareLens, originals_of
from lean3r.types import Prediction, Reconstruction, Source, Views

CONF_PERCENTILE = 20.0
MAX_POINTS = 1_000_000
REFERENCES = ("auto", "first", "middle")
RETRY_DIVISOR = 8  # of the chunks' memory, when it ran out

logger = logging.getLogger("lean3r")


def reconstruct(
    model: Backbone,
    inputs: str | Path | Sequence[str | Path] | Views,
    *,
    resolution: int | None = None,
    max_views: int | None = None,
    fps: float | None = None,
    every: int | None = None,
    frames: int | None = None,
    cameras: str | Path | GivenCameras | None = None,
    known: Part = "both",
    intrinsics: Intrinsics | None = None,
    known_poses: KnownPoses = "fixed",
    reference_view: int | str = "auto",
    conf_percentile: float = CONF_PERCENTILE,
    max_points: int = MAX_POINTS,
    seed: int = 0,
    memory: str | int | Budget | None = None,
    refine: Refine = "auto",
    refine_seconds: float | None = None,
    lens: LensName = "auto",
    share_lens: ShareLens = "auto",
    masks: str | Path | None = None,
    keep_sky: bool = False,
    observer: Observer | None = None,
) -> Reconstruction:
    """Reconstruct one scene from pictures, a folder, a glob, a zip, a video, or ready Views of one scene.

    `resolution` is the side in pixels of the square with the network picture's area (None: the model's own);
    `max_views` thins the input evenly; `fps`, `every` and `frames` choose frames of a video. `cameras` are what is
    known of them (a file, see cameras.read_given, or the cameras themselves), of which `known` takes the intrinsics,
    the poses or both; `intrinsics` are those of all pictures: (fx, fy, cx, cy) in pixels of the originals, or a JSON
    file. What is known stands in the result, which comes in the world of the known poses (pipeline/known.py), and is
    held by refinement; with `known_poses` "start" this begins at the poses and changes them. `reference_view` is the
    index of the view that the network starts from, "first", "middle", or "auto" for the model's own choice. The least
    confident `conf_percentile` per cent of the depths give no points, and at most `max_points` are kept. `memory`
    ("8GB", bytes or a Budget) is the process's on a CPU, torch's on a GPU: the mildest change that keeps the peak below
    it is made and told (pipeline/budget.py); what was given by name, and ready Views, stay. `refine` makes the cameras
    exact by matches and bundle adjustment where that is better ("auto": the embedded model, on files), in at most
    `refine_seconds`, with the camera model `lens`, shared between pictures as `share_lens` says (lean3r.refine.
    RefineOptions); Ctrl-C then keeps the network's cameras. What is black in the pictures of the folder `masks`
    (inputs/masks.py), sky unless `keep_sky`, and views that show nothing give no features, no depth and no points;
    `info["warnings"]` says what nothing supports (pipeline/trust.py). Without poses the world's origin and unit are the
    network's choice (`scale` says which). InputError when no picture is usable or cameras or masks are not,
    OutOfMemoryError when memory does not hold the views, LeanError when the network returns NaN.
    """
    if memory is not None:
        memory = Budget.of(memory)
    _check_options(model, resolution, conf_percentile, max_points, reference_view, known)
    if masks is not None:
        check_folder(Path(masks))
    refining = Refining(refine, refine_seconds, lens, share_lens, known_poses)
    observer = observer or Observer()
    chosen = None
    with observer.stage("reading") as progress:
        loaded = _read(model, inputs, resolution, max_views, fps, every, frames, progress)
        if memory is not None:
            fixed = _fixed(inputs, resolution, reference_view)
            side = resolution or model.resolution
            chosen = fit_run(model, loaded.views, side, memory, fixed)
            if (chosen.resolution, chosen.setting.views) != (side, loaded.views.images.shape[1]):
                resolution, max_views = chosen.resolution, chosen.setting.views
                loaded = _read(model, inputs, resolution, max_views, fps, every, frames, progress)
    views = loaded.views
    sources = views.sources or _unnamed(views)
    names = [source.name for source in sources]
    observer.read(names, loaded.skipped)
    if chosen is not None:
        observer.fitted(str(chosen))
    given = given_in(views.known)
    if cameras is not None or intrinsics is not None:
        views, given = with_cameras(views, sources, cameras, known, intrinsics)
    masking = None if masks is None else Masks.find(Path(masks), names)
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _seeded(seed, device), within(model, chosen):
        with observer.stage("network"):
            prediction = predict(model, views, _reference(reference_view, len(names)))
        check_finite(prediction, names)
        read = model.reads(views.known)
        placed = in_given_world(prediction, given, read)
        prediction, scale = placed.prediction, placed.scale
        images, mask = _pictures(views)
        seen = look_at(images, mask if masking is None else masking.of_network(sources, mask), keep_sky)
        arrays: dict[str, Any] = {
            "depth": np.where(seen.counts, _array(prediction.depth, np.float32), np.float32(0)),
            "conf": np.where(seen.counts, _array(prediction.conf, np.float32), np.float32(0)),
            "cam_from_world": _array(prediction.cam_from_world, np.float64),
            "intrinsics": _array(prediction.intrinsics, np.float64),
        }
        lenses = lenses_of(given, sources, arrays["intrinsics"])
        if given is not None and placed.span:
            arrays["depth"] *= depth_factor(placed, given, Pictures(images, mask, arrays["depth"]), sources, lenses)
    origin, plan = model.origin, model.plan
    info = {
        "model": model.name,
        "licence": model.licence,
        "weights": origin.weights,
        "weights_hash": origin.hash,
        "plan": None if plan is None else plan.as_dict(),
        "device": device_name(device),
        "torch": torch.__version__,
        "config": {
            "model": model.name,
            "plan": None if plan is None else plan.name,
            "loops": model.loops,
            "dtype": str(origin.dtype).removeprefix("torch."),
            "resolution": resolution or model.resolution,
            "max_views": max_views,
            "fps": fps,
            "every": every,
            "frames": frames,
            "cameras": None if cameras is None else _origin(cameras),
            "known": known,
            "intrinsics": str(intrinsics) if isinstance(intrinsics, Path) else intrinsics,
            "known_poses": known_poses,
            "reference_view": reference_view,
            "conf_percentile": conf_percentile,
            "max_points": max_points,
            "seed": seed,
            "memory": None if chosen is None else chosen.budget.as_dict(),
            "refine": refining.as_dict(),
            "masks": None if masks is None else str(masks),
            "keep_sky": keep_sky,
        },
        "seconds": observer.seconds,
        "peak_memory_mb": peak_memory_mb(),
    }
    if chosen is not None:
        info["memory"] = chosen.as_dict()
    if views.known is not None:
        info["known"] = told_of(views.known, given, read)
    if masking is not None:
        info["masks"] = {"folder": str(masks), "views": len(masking.files)}
    if device.type == "cuda":
        info["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    scene = Reconstruction(
        sources=sources,
        images=images,
        mask=mask,
        points=no_points(),
        scale=scale,
        skipped=tuple(loaded.skipped),
        info=info,
        lenses=lenses,
        registration=() if given is None else tuple("given" if has else "predicted" for has in given.has_pose.tolist()),
        **arrays,
    )
    if refining.applies(model, not isinstance(inputs, Views)):
        originals = None if isinstance(inputs, Views) else originals_of(_listed(inputs), fps, every, frames, max_views)
        scene = refined(scene, originals, refining, given, masking, observer)
    if "known" in scene.info:
        told = scene.info["known"]
        scene.info["known"] = {**told, "used": uses(told, scene.info.get("refinement"), known_poses)}
    with observer.stage("points"):
        return judged(scene, seen)


def predict(model: Backbone, views: Views, reference: int | None = None) -> Prediction:
    """Run a backbone on views: no gradients, the model's device and number type, tensors back on the CPU.

    Where memory runs out, once more with smaller chunks of views; then OutOfMemoryError says what should fit.
    """
    model.eval()
    try:
        return _predict(model, views, reference)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # After the handler: inside it, the error would keep the tensors of the failed run.
    device = next(model.parameters()).device
    smaller = max(1, model.chunk_bytes // RETRY_DIVISOR)
    logger.warning("memory ran out; once more with %s", chunk_text(smaller))
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        with chunked(model, smaller):
            return _predict(model, views, reference)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)
    count, (height, width) = views.images.shape[1], views.images.shape[-2:]
    raise OutOfMemoryError(
        f"{count} views of {width}x{height} pixels do not fit into the memory of {device_name(device)}, tried twice. "
        f"Use fewer or smaller ones: {what_fits(model, views, model.origin.dtype)}"
    ) from failure


def _predict(model: Backbone, views: Views, reference: int | None) -> Prediction:
    device = next(model.parameters()).device
    dtype = model.origin.dtype
    cast = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with torch.inference_mode(), cast:
        found = model(views.to(device), **({} if reference is None else {"reference": reference}))
    return replace(found, **{k: v.float().cpu() for k, v in vars(found).items() if isinstance(v, Tensor)})


def check_finite(prediction: Prediction, names: Sequence[str]) -> None:
    """Raise LeanError that names the first view and quantity with NaN or infinity in a prediction of one scene."""
    for quantity in ("cam_from_world", "intrinsics", "depth", "conf"):
        value = getattr(prediction, quantity)
        if value is None or bool(torch.isfinite(value).all()):
            continue
        bad = ~torch.isfinite(value[0]).flatten(1)
        first = int(bad.any(1).nonzero()[0, 0])
        raise LeanError(
            f"the network returned NaN or infinity: {quantity} of view {first + 1} ({names[first]}), "
            f"{int(bad[first].sum())} of {bad.shape[1]} values, {int(bad.any(1).sum())} of {len(names)} views. "
            "The weights may be damaged or the number type too small: try --dtype float32, or other --weights"
        )


def where(model: Backbone) -> str:
    """On what a model runs: `NVIDIA H200` or `CPU, 2 threads`."""
    return device_name(next(model.parameters()).device)


def device_name(device: torch.device) -> str:
    """`NVIDIA H200` or `CPU, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (mps)"
    return f"CPU, {torch.get_num_threads()} threads"


def _check_options(
    model: Backbone,
    resolution: int | None,
    conf_percentile: float,
    max_points: int,
    reference_view: int | str,
    known: str,
) -> None:
    if resolution is not None and resolution < model.patch:
        raise UsageError(f"resolution is {resolution}; {model.name} needs at least one patch of {model.patch} pixels.")
    if not 0 <= conf_percentile < 100:
        raise UsageError(f"conf_percentile is {conf_percentile}; expected 0 or more and less than 100.")
    if max_points < 1:
        raise UsageError(f"max_points is {max_points}; expected at least 1.")
    if known not in get_args(Part):
        raise UsageError(f"known is '{known}'; expected {', '.join(get_args(Part))}.")
    if isinstance(reference_view, str) and reference_view not in REFERENCES:
        raise UsageError(f"reference_view is '{reference_view}'; expected an index, {', '.join(REFERENCES)}.")
    if reference_view != "auto" and model.REFERENCE is None:
        raise UsageError(f"{model.name} has no reference view: all views count alike. Leave the choice out.")


def _reference(choice: int | str, views: int) -> int | None:
    """The index that a choice of reference view means, None for the model's own choice."""
    if isinstance(choice, int):
        return choice
    return {"auto": None, "first": 0, "middle": views // 2}[choice]


def _fixed(inputs: object, resolution: int | None, reference_view: int | str) -> list[Measure]:
    """What a budget of memory may not change: what was given by name, ready views, views that are counted."""
    if isinstance(inputs, Views):
        return ["resolution", "views"]
    fixed: list[Measure] = [] if resolution is None else ["resolution"]
    return [*fixed, "views"] if isinstance(reference_view, int) else fixed


def _listed(inputs: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [inputs] if isinstance(inputs, str | Path) else list(inputs)


def _origin(cameras: str | Path | GivenCameras) -> str:
    return cameras.origin if isinstance(cameras, GivenCameras) else str(cameras)


def _read(
    model: Backbone,
    inputs: str | Path | Sequence[str | Path] | Views,
    resolution: int | None,
    max_views: int | None,
    fps: float | None,
    every: int | None,
    frames: int | None,
    progress: Any,
) -> Loaded:
    if not isinstance(inputs, Views):
        return load_views(
            _listed(inputs),
            resolution=resolution or model.resolution,
            patch=model.patch,
            max_views=max_views,
            fps=fps,
            every=every,
            frames=frames,
            progress=progress,
        )
    if inputs.images.ndim != 5 or inputs.images.shape[0] != 1 or inputs.images.shape[1] == 0:
        raise InputError(
            f"views have shape {tuple(inputs.images.shape)}, expected one scene [1, S, 3, H, W] with S >= 1"
        )
    return Loaded(inputs, ())


def _unnamed(views: Views) -> tuple[Source, ...]:
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
def _seeded(seed: int, device: torch.device) -> Any:
    """Seeded random numbers inside, the caller's random state untouched after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
