"""From files to a scene by options: what the command line and the service have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lean3r.inputs.frames import FrameChoice
from lean3r.options import PointOptions
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.options import CameraOptions, MemoryOptions, RunOptions
from lean3r.refine.options import RefineOptions, ScaleOptions
from lean3r.stereo.options import StereoOptions

if TYPE_CHECKING:
    from lean3r.group import Group
    from lean3r.inputs.pictures import Pictures
    from lean3r.models.base import Backbone
    from lean3r.pipeline.budget import Budget
    from lean3r.refine.ahead import Ahead
    from lean3r.types import Lens, Reconstruction, Source


@dataclass(frozen=True)
class Choices:
    """The options of a scene; `masks` is a folder of them. What will be written says whether the pictures have
    `one_lens`, whether to `keep_frames` of videos, by `check` which cameras it cannot hold (Observer), and by
    `check_map` which places on earth."""

    frames: FrameChoice
    run: RunOptions
    memory: MemoryOptions
    cameras: CameraOptions
    refine: RefineOptions
    stereo: StereoOptions
    scale: ScaleOptions
    points: PointOptions
    masks: Path | None = None
    one_lens: bool = False
    keep_frames: bool = False
    check: Callable[[Sequence[Source], Sequence[Lens | None]], None] | None = None
    check_map: Callable[[Sequence[tuple[float, float]]], None] | None = None


def reconstruct_files(
    inputs: Sequence[str],
    choices: Choices,
    load: Callable[[int, Budget | None], Backbone],
    observer: Observer,
    loaded: Callable[[Backbone], None] = lambda model: None,
    group: Group | None = None,
    ahead: Ahead | None = None,
) -> tuple[Reconstruction, Pictures]:
    """The scene in its final scale, and its pictures. `load` makes the model for a number of views and a budget;
    `loaded` is told of it; `group` is that of the processes that share the views; what works `ahead` of refinement ends
    then. The errors are those of Pictures, of `load` and of lean3r.reconstruct."""
    refine = choices.refine
    with observer.stage("loading"):  # of torch, too
        from lean3r.inputs.pictures import Pictures
        from lean3r.pipeline.budget import Budget
        from lean3r.pipeline.reconstruct import reconstruct
        from lean3r.pipeline.refining import applies

        keep = choices.keep_frames or refine.when != "off" or choices.stereo.may_enlarge(choices.cameras.are_given)
        pictures = Pictures(inputs, choices.frames, masks=choices.masks, keep_frames=keep)
        if ahead is not None:
            pictures.kept, pictures.searched = ahead.kept, ahead.end
        places = choices.scale.check(pictures)
        if choices.check_map is not None:
            choices.check_map([(place.latitude_deg, place.longitude_deg) for place in places])
        budget = Budget.from_options(choices.memory, len(pictures), choices.run.resolution)
        model = load(len(pictures), budget)
    loaded(model)
    if applies(refine, model, has_files=True) and choices.one_lens:
        refine = replace(refine, share_lens="always")
    observer.check = choices.check
    scene = reconstruct(
        model,
        pictures,
        cameras=choices.cameras,
        resolution=choices.run.resolution,
        reference_view=choices.run.reference_view,
        seed=choices.run.seed,
        memory=budget,
        refine=refine,
        dense=choices.stereo,
        points=choices.points,
        observer=observer,
        group=group,
    )
    return choices.scale.apply(scene, pictures), pictures
