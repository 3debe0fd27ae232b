"""The record of a run for manifest.json and config.toml: its model, options and costs, as JSON-ready values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lean3r.models.base import Backbone
from lean3r.options import Options, as_record, options_of
from lean3r.pipeline.budget import Fit
from lean3r.pipeline.predict import device_name
from lean3r.processes import peak_memory_mb
from lean3r.refine import RefineOptions
from lean3r.types import Reconstruction


def record_of(
    model: Backbone,
    options: tuple[Options, ...],
    refine: RefineOptions,
    fit: Fit | None,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """`info` of a reconstruction: the model, its weights and plan, its device, and under "config" every option,
    including those in `more`."""
    origin, plan = model.origin, model.plan
    device = next(model.parameters()).device
    config = {
        "model": model.name,
        "plan": None if plan is None else plan.name,
        "loops": model.loops,
        "dtype": str(origin.dtype).removeprefix("torch."),
        **as_record(*options),
        "memory": None if fit is None else fit.budget.as_dict(),
        "refine": {field.name: getattr(refine, field.name) for field in options_of(refine).values()},
        **more,
    }
    info: dict[str, Any] = {
        "model": model.name,
        "licence": model.licence,
        "weights": origin.weights,
        "weights_hash": origin.hash,
        "plan": None if plan is None else plan.as_dict(),
        "device": device_name(device),
        "why_dtype": origin.why_dtype,
        "torch": torch.__version__,
        "config": config,
    }
    if fit is not None:
        info["memory"] = fit.as_dict()
    return info


def with_costs(scene: Reconstruction, seconds: Mapping[str, float], device: torch.device) -> Reconstruction:
    """The scene with the costs of the run: seconds of each stage, and peak memory in MB (10^6 bytes)."""
    costs: dict[str, Any] = {"seconds": dict(seconds), "peak_memory_mb": peak_memory_mb()}
    if device.type == "cuda":
        costs["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return replace(scene, info={**scene.info, **costs})


def with_settings(scene: Reconstruction, command: str, settings: Mapping[str, Any]) -> Reconstruction:
    """The scene with the command line that made it, and further settings in its config."""
    config = {**scene.info.get("config", {}), **settings}
    return replace(scene, info={**scene.info, "config": config, "command": command})
