"""A name and perhaps a file of weights in, a backbone ready to run out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lean3r.compress import CompressionPlan, compress, resolve_plan
from lean3r.compress.sparsify import stored_plan
from lean3r.errors import UsageError, WeightsError
from lean3r.models import EMBEDDED, MODELS, STUDENTS, is_non_commercial, model_of
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import check_model, load_weights, without_memory
from lean3r.models.execution import accelerate
from lean3r.models.fingerprint import fingerprint
from lean3r.models.origin import Origin
from lean3r.models.sources import SCHEME, find_weights, licence_of, official_source
from lean3r.models.weight_files import open_weights
from lean3r.pipeline.budget import Budget, Measure
from lean3r.pipeline.devices import place_model, resolve_device, resolve_dtype
from lean3r.pipeline.lighten import lighten

logger = logging.getLogger("lean3r")


def load(
    name: str = "nano",
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    offline: bool = False,
    plan: str | Path | Mapping[str, Any] | CompressionPlan | None = None,
    memory: str | int | Budget | None = None,
    compile: bool = False,
    cuda_graphs: bool = False,
) -> Backbone:
    """Load a backbone by its name (see lean3r.list_models), ready to run.

    `weights` is a .safetensors or .pt file, an index of shards, a folder with one of these, or
    hf:OWNER/NAME[@REVISION] (None: those that come with the package, else the authors' own, downloaded once;
    `offline` takes them from the cache only). `device` is auto, cpu, cuda or mps; `dtype` is auto, float32, bfloat16
    or float16 (None or auto: float32 on a CPU, bfloat16 on a GPU that has it); parameters stay float32 and
    matrix products run in `dtype`. `plan` compresses the model (see compress); weights of a compressed model bring
    their own plan along. `memory` ("8GB", bytes, or a Budget that says for how many views) chooses how the weights are
    held, where dtype and plan are left open: pipeline/lighten.py. `compile` and `cuda_graphs` hand the blocks to
    torch.compile and record them as CUDA graphs: models/execution.py. UsageError on an unknown name, device or
    dtype, on a plan other than that of the weights, and where a device cannot do what was asked for;
    WeightsError when the weights are missing, damaged, of another model or cannot be downloaded.
    """
    asked = None if plan is None else resolve_plan(plan)
    kind = model_of(name)
    backbone = MODELS.get(kind)
    where = resolve_device(device)
    number_type = resolve_dtype(dtype, where)
    source = weights or official_source(name) or embedded_weights(name)
    path = find_weights(source, offline=offline)
    check_model(open_weights(path), kind)
    stored = plan_in(path)
    if stored is None and name in STUDENTS:
        raise WeightsError(
            f"{path} holds a dense {kind}, not {name}. Load it as {kind}, or give the student's weights."
        )
    if asked is not None and stored is not None and asked.steps != stored.steps:
        raise UsageError(
            f"{path} holds a model that was compressed as {stored}; it cannot become {asked}. "
            "Leave the plan out, or give weights of the dense model."
        )
    model: Backbone = without_memory(backbone)
    plan = stored or asked
    if plan is not None:  # before the weights come: what is quantised never exists in full
        model = compress(model, plan)
    lighter = None
    if memory is not None:
        fixed: dict[Measure, bool] = {"plan": plan is not None, "dtype": dtype not in (None, "auto")}
        lighter = lighten(model, Budget.of(memory), where, number_type, [key for key in fixed if fixed[key]])
        model, number_type = lighter.model, lighter.dtype
    new = () if stored else [key for key, value in model.state_dict().items() if not value.is_meta]
    load_weights(model, path, torch.float32, new)
    model.licence = licence_of(source) or model.licence
    if is_non_commercial(model.licence):
        logger.warning("The published weights of %s are for non-commercial use only (%s).", name, model.licence)
    called = str(source) if str(source).startswith(SCHEME) else path.name
    model.origin = Origin(called, fingerprint(path), number_type)
    if lighter is not None:
        model.origin = replace(model.origin, changes=lighter.changes, is_exact=lighter.is_exact)
    model = place_model(model.eval(), where)
    accelerate(model, compile=compile, cuda_graphs=cuda_graphs)
    return model


def plan_in(path: Path) -> CompressionPlan | None:
    """The plan that the model in a file of weights was compressed with; WeightsError when it cannot be read."""
    try:
        return stored_plan(open_weights(path).metadata)
    except UsageError as error:
        raise WeightsError(f"{path} carries a plan that cannot be used: {error}") from error


def embedded_weights(name: str) -> Path:
    """The weights file of a model inside the package; WeightsError when it is not there."""
    path = EMBEDDED / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"the weights of {name} do not come with lean3r (no {path.name} in lean3r/weights). "
            f"Give a file with --weights; {_made_by(name)}"
        )
    return path


def _made_by(name: str) -> str:
    if name in STUDENTS:
        return f"those of {name} are made by lean3r distill --recipe {name}"
    return f"where there is a recipe of that name, lean3r train {name} makes one"
