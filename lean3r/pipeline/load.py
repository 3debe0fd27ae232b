"""Load a model: its name and optional weights give a backbone ready to run."""

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
from lean3r.models import EMBEDDED, MODELS, NO_NETWORK, STUDENTS, is_non_commercial, model_of
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import check_model, load_weights, without_memory
from lean3r.models.execution import accelerate, choose_dtype, hold
from lean3r.models.fingerprint import fingerprint
from lean3r.models.lite3r import RELEASE
from lean3r.models.no_network import NoNetwork
from lean3r.models.origin import Origin
from lean3r.models.sources import SCHEME, find_weights, licence_of, official_source
from lean3r.models.weight_files import open_weights
from lean3r.pipeline.budget import Budget, Measure
from lean3r.pipeline.devices import place_model, resolve_device, resolve_dtype
from lean3r.pipeline.lighten import lighten
from lean3r.pipeline.memory import chunk_bytes
from lean3r.pipeline.releases import check_plan

logger = logging.getLogger("lean3r")

UNUSABLE = "{} contains an unusable plan: {}"


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
    """Load a backbone by its name (see lean3r.list_models), ready to run; "none" is no network: it takes known cameras,
    and depth comes from stereo alone.

    `weights` is a .safetensors or .pt file, an index of shards, a folder with one of these, or
    hf:OWNER/NAME[@REVISION] (None: those in the package, else the authors' own, downloaded once; `offline` uses only
    the cache). `device` is auto, cpu, cuda or mps; `dtype` is auto, float32, bfloat16 or float16 (None or auto: see
    models/execution.choose_dtype): matrix products run in it, and the matrices of encoder and trunk are held in it;
    give float32 to train the model or to save it. `plan`
    compresses the model (see compress); weights of a compressed model contain their plan, those of the Lite3R release
    need one, such as "lite3r". `memory` ("8GB", bytes, or a Budget for a number of views) chooses the number type of
    the weights, unless dtype and plan are given: pipeline/lighten.py. `compile` compiles the blocks with
    torch.compile, and `cuda_graphs` replays `encode` as a CUDA graph for few views: models/execution.py. UsageError
    for an unknown name, device or dtype, for a plan other than that of the weights, and for an option that the device
    does not support; WeightsError if the weights are missing, damaged, of another model or cannot be downloaded.
    """
    if name == NO_NETWORK:
        if weights is not None or plan is not None:
            raise UsageError(f"the model {name} has no weights; leave weights and plan out.")
        given = {"dtype": dtype not in (None, "auto"), "compile": compile, "cuda_graphs": cuda_graphs}
        given["memory"] = memory is not None
        if of_network := [option for option, is_given in given.items() if is_given]:
            raise UsageError(f"the model {name} has no network; leave {' and '.join(of_network)} out.")
        return NoNetwork().eval()
    requested = None if plan is None else resolve_plan(plan)
    kind = model_of(name)
    backbone = MODELS.get(kind)
    target = resolve_device(device)
    asked = resolve_dtype(dtype)
    source = weights or official_source(name) or embedded_weights(name)
    path = find_weights(source, offline=offline)
    files = open_weights(path)
    check_model(files, kind)
    stored = read_plan(path)
    if stored is None and name in STUDENTS:
        raise WeightsError(
            f"{path} holds a dense {kind}, not {name}. Load it as {kind}, or give the student's weights."
        )
    if requested is not None and stored is not None and requested.steps != stored.steps:
        raise UsageError(
            f"{path} holds a model that was compressed as {stored}; it cannot become {requested}. "
            "Leave the plan out, or give weights of the dense model."
        )
    check_plan(files, requested)
    model: Backbone = without_memory(lambda: backbone.for_names(files.shapes))
    plan = stored or requested
    if plan is not None:  # before the weights are read: quantised layers never exist in full precision
        try:
            model = compress(model, plan)
        except UsageError as error:
            if stored is None:
                raise
            raise WeightsError(UNUSABLE.format(path, error)) from error
    number_type, why = choose_dtype(model, target) if asked is None else (asked, "asked for")
    if number_type != torch.float32:
        model = hold(model, number_type)
    lighter = None
    if memory is not None:
        fixed: dict[Measure, bool] = {"plan": plan is not None, "dtype": asked is not None}
        lighter = lighten(model, Budget.of(memory), target, number_type, [key for key in fixed if fixed[key]])
        why = why if lighter.dtype == number_type else "to stay within the memory"
        model, number_type = lighter.model, lighter.dtype
    new = (
        ()
        if stored or RELEASE in files.metadata
        else [key for key, value in model.state_dict().items() if not value.is_meta]
    )
    load_weights(model, path, torch.float32, new)
    model.licence = licence_of(source) or model.licence
    if is_non_commercial(model.licence):
        logger.warning("The published weights of %s are for non-commercial use only (%s).", name, model.licence)
    label = str(source) if str(source).startswith(SCHEME) else path.name
    model.origin = Origin(label, fingerprint(path), number_type, why_dtype=why)
    if lighter is not None:
        model.origin = replace(model.origin, changes=lighter.changes, is_exact=lighter.is_exact)
    model = place_model(model.eval(), target)
    if memory is None:  # a budget chooses its own chunks
        model.set_chunk_bytes(chunk_bytes(target, model.chunk_bytes))
    accelerate(model, compile=compile, cuda_graphs=cuda_graphs)
    return model


def read_plan(path: Path) -> CompressionPlan | None:
    """The compression plan of the model in a file of weights; None if it is dense, WeightsError if it is unreadable."""
    try:
        return stored_plan(open_weights(path).metadata)
    except UsageError as error:
        raise WeightsError(UNUSABLE.format(path, error)) from error


def embedded_weights(name: str) -> Path:
    """The file of a model's weights inside the package; WeightsError if there is none."""
    path = EMBEDDED / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(
            f"the weights of {name} are not part of lean3r (no {path.name} in lean3r/weights). "
            f"Give a file with --weights; {_how_to_train(name)}."
        )
    return path


def _how_to_train(name: str) -> str:
    if name in STUDENTS:
        return f"lean3r distill --recipe {name} makes one"
    return f"if there is a recipe of that name, lean3r train {name} makes one"
