"""A model of lean3r as the program that `lean3r evaluate` runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lean3r.eval.runs.predicting import Predict

if TYPE_CHECKING:
    from lean3r.models.base import Backbone
    from lean3r.types import Reconstruction


@dataclass(frozen=True)
class LoadedModel:
    """A model by its name, and how it is run: with `refine` "off" the network alone, otherwise as `lean3r reconstruct`
    runs it. On several NVIDIA GPUs each process has one in turn."""

    model: str
    weights: str | None
    plan: str | None
    offline: bool
    device: str
    dtype: str
    resolution: int | None
    refine: Literal["off", "auto", "on"]

    def start(self, worker: int, workers: int) -> tuple[Predict, dict[str, Any]]:
        """See Program."""
        import torch

        from lean3r.bench.machine import cores, hardware
        from lean3r.pipeline.devices import resolve_device
        from lean3r.pipeline.load import load
        from lean3r.pipeline.options import RunOptions

        device = resolve_device(self.device)
        if device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1:
            device = torch.device("cuda", worker % torch.cuda.device_count())
        if device.type == "cpu" and workers > 1:
            torch.set_num_threads(max(1, cores() // workers))
        model = load(self.model, self.weights, str(device), dtype=self.dtype, offline=self.offline, plan=self.plan)
        RunOptions(resolution=self.resolution).check(model)
        description = {
            "model": model.name,
            "plan": None if model.plan is None else model.plan.name,
            "plan_steps": None if model.plan is None else json.loads(json.dumps(model.plan.as_dict()))["steps"],
            "weights": model.origin.hash,
            "weights_from": self.weights or model.origin.weights,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(model.origin.dtype).removeprefix("torch."),
            "device": str(device),
            "hardware": hardware(),
        }
        return partial(self._predict, model), description

    def _predict(
        self, model: Backbone, pictures: Sequence[np.ndarray], names: tuple[str, ...], folder: Path
    ) -> dict[str, Any]:
        from lean3r.export import npz
        from lean3r.export.options import ExportOptions

        start = time.process_time()
        scene = self._alone(model, pictures) if self.refine == "off" else self._refined(model, pictures)
        sources = tuple(replace(s, name=name) for s, name in zip(scene.sources, names, strict=True))
        npz.write(replace(scene, sources=sources), folder, ExportOptions())
        kept = ("seconds", "peak_memory_mb", "peak_gpu_memory_mb")
        costs = {key: scene.info[key] for key in kept if key in scene.info}
        return costs | {"cpu_seconds": time.process_time() - start}

    def _refined(self, model: Backbone, pictures: Sequence[np.ndarray]) -> Reconstruction:
        from lean3r.options import PointOptions
        from lean3r.pipeline.reconstruct import reconstruct

        points = PointOptions(keep_sky=True)
        return reconstruct(model, list(pictures), resolution=self.resolution, refine=self.refine, points=points)

    def _alone(self, model: Backbone, pictures: Sequence[np.ndarray]) -> Reconstruction:
        """What the network says of every pixel, without the judgement of a reconstruction."""
        from lean3r.inputs.pictures import Pictures
        from lean3r.pipeline.network_scene import scene_of
        from lean3r.pipeline.observer import Observer
        from lean3r.pipeline.options import RunOptions
        from lean3r.pipeline.predict import check_finite, predict
        from lean3r.pipeline.record import with_costs

        observer = Observer()
        with observer.stage("reading"):
            views = Pictures(list(pictures)).views(resolution=self.resolution or model.resolution, patch=model.patch)
        with observer.stage("network"):
            prediction = predict(model, views, RunOptions().reference(len(pictures)))
        check_finite(prediction, [source.name for source in views.sources])
        scene = scene_of(prediction, views)
        return with_costs(scene, observer.seconds, next(model.parameters()).device)
