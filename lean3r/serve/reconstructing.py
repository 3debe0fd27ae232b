"""What the worker does with a job: the steps of `lean3r reconstruct`, with models that stay loaded."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lean3r.export import ExportOptions, check_cameras, check_extras, picture_uses, write_all
from lean3r.inputs.frames import FrameChoice
from lean3r.options import PointOptions, as_record
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.options import CameraOptions, MemoryOptions, RunOptions
from lean3r.processes import peak_memory_mb
from lean3r.refine.options import RefineOptions, ScaleOptions
from lean3r.serve.given import cameras_of, masks_of
from lean3r.serve.request import AUTO, ModelOptions, Request
from lean3r.serve.worker import Task
from lean3r.stereo.options import StereoOptions

if TYPE_CHECKING:
    from lean3r.models.base import Backbone
    from lean3r.pipeline.budget import Budget

WARM = 2  # models that stay loaded: the one for few views and the one for many
SKIPS = 50  # that a summary lists


class Reconstructions:
    """A Runner (worker.py) for reconstructions. `settings` has `models`, the names that jobs may ask for, and
    `offline`."""

    def __init__(self, device: str, settings: Mapping[str, Any]) -> None:
        from lean3r.pipeline import reconstruct  # noqa: F401 - imported now, not while the first job waits
        from lean3r.pipeline.devices import resolve_device

        self.device, self.settings = str(resolve_device(device)), settings
        self._models: OrderedDict[tuple, Backbone] = OrderedDict()
        usual = settings["models"][0]
        self.load(ModelOptions(model=usual), usual, None)

    def __call__(self, task: Task, observer: Observer) -> dict[str, Any]:
        """Reconstruct the files of a job into files of a result; the summary. The errors are those of the pipeline."""
        before = os.getcwd()
        os.chdir(task.input)  # so that names, not paths, appear in messages and in the result
        try:
            return self._run(task, observer)
        finally:
            os.chdir(before)

    def _run(self, task: Task, observer: Observer) -> dict[str, Any]:
        from lean3r.pipeline.from_files import Choices, reconstruct_files
        from lean3r.pipeline.record import with_settings

        here = Path()
        asked = Request.of(task.options, self.settings["models"], cameras_of(here))
        wants: ModelOptions = asked[ModelOptions]
        scale: ScaleOptions = asked[ScaleOptions]
        export: ExportOptions = asked[ExportOptions]
        formats = wants.formats(asked[StereoOptions].dense, export.texture)
        uses = picture_uses(formats)
        export.warn_of_unread(formats)
        check_extras(formats)
        choices = Choices(
            asked[FrameChoice],
            asked[RunOptions],
            asked[MemoryOptions],
            asked[CameraOptions],
            asked[RefineOptions],
            asked[StereoOptions],
            scale,
            asked[PointOptions],
            masks_of(here),
            one_lens=export.shared_camera,
            keep_frames=export.keeps_frames(uses),
            check=partial(check_cameras, formats, export),
            check_map=export.check_map,
        )
        name = ""

        def load(views: int, budget: Budget | None) -> Backbone:
            nonlocal name
            name = self._choose(wants, views)
            return self.load(wants, name, budget)

        scene, pictures = reconstruct_files(list(task.names), choices, load, observer)
        with observer.stage("writing"):
            settings = {"inputs": list(task.names), "format": list(formats), **as_record(scale, export)}
            settings |= {"model_loaded": name}
            scene = with_settings(scene, f"lean3r serve, job {task.job}", settings)
            task.out.mkdir()
            files = write_all(scene, task.out, formats, export.with_pictures(pictures, uses, scene.sources))
        return {
            "model": name,
            "views": len(scene.names),
            "skipped": [{"name": name, "reason": reason} for name, reason in scene.skipped[:SKIPS]],
            "skipped_count": len(scene.skipped),
            "warnings": json.loads(json.dumps(scene.info.get("warnings", []), default=str)),
            "points": len(scene.points.xyz),
            "scale": scene.scale,
            "seconds": {stage: round(value, 3) for stage, value in observer.seconds.items()},
            "peak_memory_mb": peak_memory_mb(),
            "files": sorted(Path(file).relative_to(task.out).as_posix() for file in files),
        }

    def _choose(self, wants: ModelOptions, views: int) -> str:
        """The name of the model to load."""
        from lean3r.models import usual_model

        if wants.model != AUTO:
            return wants.model
        offered = self.settings["models"]
        usual = "nano" if wants.plan is not None else usual_model(views, self.device == "cpu")[0]
        return usual if usual in offered else offered[0]

    def load(self, wants: ModelOptions, name: str, budget: Budget | None) -> Backbone:
        """A model by the options of a job; one that is loaded already, if no budget changes it."""
        from lean3r.models.nano_looped import set_loops
        from lean3r.pipeline.load import load

        key = (name, wants.plan, wants.dtype, wants.loops)
        if budget is None and key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        offline = self.settings["offline"]
        model = load(name, None, self.device, wants.dtype, offline=offline, plan=wants.plan, memory=budget)
        if wants.loops is not None:
            set_loops(model, wants.loops)
        if budget is None:
            self._models[key] = model
            if len(self._models) > WARM:
                self._models.popitem(last=False)
        return model
