"""From pictures to a Reconstruction: read, run the network, check its output, refine, fuse the points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from lean3r.errors import InputError, UsageError
from lean3r.geometry.fusion import with_cloud, without_depth
from lean3r.geometry.up import stand_upright, with_up
from lean3r.group import Group
from lean3r.inputs.frames import FrameChoice
from lean3r.inputs.given import GivenCameras
from lean3r.inputs.masks import Masks, check_folder
from lean3r.inputs.pictures import Pictures
from lean3r.models.base import Backbone
from lean3r.options import PointOptions
from lean3r.pipeline.adjusting import adjust_scene, confirmed
from lean3r.pipeline.budget import Budget, Fit, Measure, fit_run
from lean3r.pipeline.densifying import densify_scene, measures, without_network
from lean3r.pipeline.enlarging import check_depth_size, check_room, enlarge_scene, with_maps_of, with_size
from lean3r.pipeline.known import (
    given_cameras,
    with_cameras,
    with_resolution,
    with_uses,
)
from lean3r.pipeline.network_scene import default_sources
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.old_keywords import OldKeywords, translate
from lean3r.pipeline.options import CameraOptions, RunOptions
from lean3r.pipeline.predicted import Read, predict_scene
from lean3r.pipeline.record import record_of, with_costs
from lean3r.pipeline.refining import applies, refine_scene
from lean3r.pipeline.together import check_group
from lean3r.pipeline.trust import judge_scene
from lean3r.refine import Refine, RefineOptions
from lean3r.stereo.options import Dense, StereoOptions
from lean3r.types import Reconstruction, Views, with_warning

if TYPE_CHECKING:
    from lean3r.inputs.pictures import PictureInput


def reconstruct(
    model: Backbone,
    pictures: PictureInput | Pictures | Views | None = None,
    *,
    frames: FrameChoice | int | None = None,
    cameras: str | Path | GivenCameras | CameraOptions | None = None,
    masks: str | Path | Masks | None = None,
    resolution: int | None = RunOptions.resolution,
    reference_view: int | str = RunOptions.reference_view,
    seed: int = RunOptions.seed,
    memory: str | int | Budget | None = None,
    refine: Refine | RefineOptions = "auto",
    dense: Dense | StereoOptions = "auto",
    points: PointOptions | None = None,
    observer: Observer | None = None,
    group: Group | None = None,
    **old: Unpack[OldKeywords],
) -> Reconstruction:
    """Reconstruct one scene from pictures, a folder, a glob, a zip, a video, or ready Views of one scene.

    `pictures` may also be PIL images, arrays, tensors, or a `Pictures` object (lean3r.inputs.pictures). `frames`
    chooses among them (FrameChoice). Three things give no features, depth or points: areas that are black in the
    pictures of the folder `masks`, sky (unless `points` keep it), and views that show nothing. `cameras` are known
    cameras: a file, GivenCameras, or CameraOptions. `resolution`, `reference_view` and `seed` are those of RunOptions.
    `memory` ("8GB", bytes or a Budget) limits the peak memory of the process on a CPU, of torch on a GPU, by the
    mildest change that suffices, which is reported (pipeline/budget.py); options given by name and ready Views do not
    change. `refine` ("auto", "on", "off", or RefineOptions) adjusts the cameras by matches and bundle adjustment and
    keeps the better ones; Ctrl-C during refinement keeps what it has by then. `dense` ("network", "stereo", "auto",
    "off", or StereoOptions) says where depth comes from. `points` selects the points of the cloud (PointOptions).
    With a `group` of processes this runs on its process 0, and the others run the network on a share of the views,
    by `take_share` (docs/how-to/many-cards.md).

    `info["warnings"]` lists the parts of the result that lack evidence (pipeline/trust.py), `info["up"]` says which way
    is up in its world (geometry/up.py). Without known poses the world is upright, y down, with the first camera at its
    origin, and the network chooses its unit (see `scale`). UsageError for invalid options, InputError if no picture
    is usable or cameras or masks are not, OutOfMemoryError if the views do not fit into memory, LeanError if the
    network returns NaN.
    """
    if old or not isinstance(frames, FrameChoice | None):
        pictures, frames, cameras, refine, points = translate(old, pictures, frames, cameras, refine, points)
    if pictures is None:
        raise TypeError("reconstruct() needs pictures: reconstruct(model, pictures)")
    if not isinstance(model, Backbone):
        raise UsageError(f"the model is a {type(model).__name__}; expected a loaded model: lean3r.load('nano').")
    if not isinstance(points, PointOptions | None):
        raise UsageError(f"points is {points!r}; expected PointOptions, such as PointOptions(max_points=100_000).")
    run = RunOptions(resolution=resolution, reference_view=reference_view, seed=seed)
    run.check(model)
    if group is not None:
        check_group(model, group, memory)
    budget = None if memory is None else Budget.of(memory)
    refining, stereo, points = RefineOptions.of(refine), StereoOptions.of(dense), points or PointOptions()
    known = cameras if isinstance(cameras, CameraOptions) else CameraOptions(cameras=cameras)
    if not model.SEES:
        stereo = without_network(stereo, known.are_given or isinstance(pictures, Views), budget is not None)
    if isinstance(masks, str | Path):
        check_folder(Path(masks))
    is_refined = applies(refining, model, not isinstance(pictures, Views))
    check_depth_size(stereo, run.resolution or model.resolution, not isinstance(pictures, Views))
    observer = observer or Observer()
    with observer.stage("reading") as progress:
        if not isinstance(pictures, Views | Pictures):
            keep = is_refined or stereo.may_enlarge(known.are_given)
            pictures = Pictures(pictures, frames, keep_frames=keep)
        elif frames is not None:
            raise UsageError(
                f"frames cannot be chosen for {type(pictures).__name__}, which are final; leave out frames."
            )
        views, pictures, run, fit = _read(model, pictures, run, budget, progress)
    files = pictures if isinstance(pictures, Pictures) else None
    sources = views.sources or default_sources(views)
    names = [source.name for source in sources]
    skipped = () if files is None else files.skipped
    observer.read(names, skipped)
    check_room(stereo, sources, run.resolution or model.resolution, model, budget)
    if fit is not None:
        observer.fitted(str(fit))
    given = given_cameras(views.known)
    if known.are_given:
        views, given = with_cameras(views, sources, known)
    if observer.check is not None:
        observer.check(sources, (None,) * len(sources) if given is None else given.lenses)
    masking = None if files is None or masks is not None else files.masks
    if masks is not None:
        masking = masks if isinstance(masks, Masks) else Masks.find(Path(masks), names)
    read = Read(views, sources, files, given, masking)
    scene, content = predict_scene(model, read, run, points.keep_sky, fit, observer, group)
    options = (FrameChoice() if files is None else files.frames, known, run, stereo, points)
    folder = None if masking is None else masking.place
    more = {"masks": folder} | ({} if files is None else {"inputs": list(files.places)})
    info = scene.info | record_of(model, options, refining, fit, more)
    if group is not None:
        info["processes"] = group.size
    scene = replace(scene, point_options=points, skipped=skipped, info=info)
    for text in () if files is None else files.cautions:
        scene = with_warning(scene, "bars", text)
    observer.has_scene(scene)
    predicted = scene
    if is_refined:
        held = None if given is None else given.for_refinement(sources, known.known_poses)
        scene = refine_scene(scene, files, refining, held, masking, observer, stereo.dense != "off")
    if given is None and group is None and not confirmed(scene):
        with observer.stage("network"):
            scene = adjust_scene(scene, model, views, files if resolution is None and budget is None else None)
    if scene is not predicted:
        observer.has_scene(scene)
    scene, shown = with_uses(scene, known.known_poses), None
    sized = stereo if files is None else with_size(stereo, scene, model, budget)
    if files is not None and sized.depth_size is not None:
        shown, scene = scene, enlarge_scene(scene, files, sized, masking, observer, sized == stereo)
    device = next(model.parameters()).device
    if measures(sized, scene):
        scene = densify_scene(scene, observer, device, model.SEES, budget)
    if shown is not None and sized != stereo and model.SEES and scene.info["stereo"]["status"] == "kept":
        shown, scene = None, with_maps_of(shown, scene)  # a size that nobody chose is for what is measured
    if "adjusted" in scene.info:
        shown = predicted  # focal lengths of its own for each view would hide that a camera only rotates
    with observer.stage("points"):
        scene = judge_scene(scene, content, shown, files is not None and files.chain)
        scene = with_resolution(with_cloud(without_depth(scene) if stereo.dense == "off" else scene))
        scene = stand_upright(with_up(scene))
    return with_costs(scene, observer.seconds, device)


def _read(
    model: Backbone, pictures: Pictures | Views, run: RunOptions, budget: Budget | None, progress: Any
) -> tuple[Views, Pictures | Views, RunOptions, Fit | None]:
    """Read the views for the network; return them, their pictures, the final options, and the fit into memory."""
    side = run.resolution or model.resolution
    views = pictures
    if isinstance(views, Pictures):
        views = views.views(resolution=side, patch=model.patch, progress=progress)
    elif views.images.ndim != 5 or views.images.shape[0] != 1 or views.images.shape[1] == 0:
        raise InputError(
            f"views have shape {tuple(views.images.shape)}; expected one scene [1, S, 3, H, W] with S >= 1."
        )
    if budget is None:
        return views, pictures, replace(run, resolution=side), None
    # Options given by name and ready views may not change, nor the number of views if one is chosen by its index.
    is_ready = isinstance(pictures, Views)
    fixed: list[Measure] = ["resolution"] if is_ready or run.resolution is not None else []
    if is_ready or isinstance(run.reference_view, int):
        fixed.append("views")
    fit = fit_run(model, views, side, budget, fixed)
    if isinstance(pictures, Pictures) and (fit.resolution, fit.setting.views) != (side, views.images.shape[1]):
        side, pictures = fit.resolution, pictures.at_most(fit.setting.views)
        views = pictures.views(resolution=side, patch=model.patch, progress=progress)
    return views, pictures, replace(run, resolution=side), fit
