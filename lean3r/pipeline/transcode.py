"""Compress a file of weights tensor by tensor; the whole model is never in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lean3r.compress.fp8_linear import Quantized
from lean3r.compress.plan import CompressionPlan
from lean3r.compress.sparsify import PREPARED, STAGE_KEY, Change, apply, plan_of
from lean3r.errors import UsageError
from lean3r.models import MODELS, STUDENTS, model_of
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import check_finite, check_model, models_that_fit, place, values_for, without_memory
from lean3r.models.keymap import KeyMap
from lean3r.models.lite3r import RELEASE, STEP
from lean3r.models.sources import find_weights, official_source
from lean3r.models.weight_files import WeightFiles, open_weights
from lean3r.models.writing import write_stream
from lean3r.pipeline.load import embedded_weights, read_plan
from lean3r.pipeline.releases import check_plan
from lean3r.pipeline.save import check_file


@dataclass(frozen=True)
class Written:
    """The result of compressing a file: the plan, the layers that changed, and the numbers of original and of new
    parameters."""

    plan: CompressionPlan
    changes: Sequence[Change | Quantized]
    parameters: int
    new_parameters: int


def resolve_weights(source: str, model: str | None = None, *, offline: bool = False) -> tuple[str, Path]:
    """Resolve `source` to a model's name and the local file of its weights.

    `source` is a model's name (for its own weights), a file, or hf:OWNER/NAME. The model is named by `model`, or by the
    file, or recognised by the names and shapes of its tensors; UsageError if that is ambiguous.
    """
    if (source in MODELS or source in STUDENTS) and not Path(source).is_file():
        if model not in (None, source, model_of(source)):
            raise UsageError(f"IN is the model {source}, --model says {model}. Leave one out.")
        return model_of(source), find_weights(official_source(source) or embedded_weights(source), offline=offline)
    path = find_weights(source, offline=offline)
    stored = open_weights(path)
    name = model or stored.metadata.get("model")
    if name is None:
        fitting = models_that_fit(stored)
        if len(fitting) != 1:
            fit = (
                f"fits {' and '.join(fitting)}"
                if fitting
                else "fits no model, judged by the names and shapes of its tensors"
            )
            raise UsageError(f"{path} {fit}. Name the model with --model; `lean3r models` lists them.")
        name = fitting[0]
    return MODELS.check(name), path


def compress_file(
    name: str,
    source: Path,
    out: Path,
    plan: CompressionPlan | None,
    *,
    overwrite: bool = False,
    trainable: bool = False,
) -> Written:
    """Compress the weights of `source` by `plan` and write them to `out`.

    Tensors that are not quantised keep their number type; with `trainable` none is, as in the files that training
    writes. `plan` may be None if the file was trained for one.
    UsageError if the plan does not fit the model or the file; WeightsError as in load_weights.
    """
    check_file(out, overwrite=overwrite)
    stored = open_weights(source)
    if any(out.exists() and out.samefile(file) for file in {source, *stored.files.values()}):
        raise UsageError(f"{out} is one of the input files; name another file.")
    check_model(stored, name)
    check_plan(stored, plan)
    dense = without_memory(lambda: MODELS.get(name).for_names(stored.shapes))
    model, changes = _apply_plan(dense, stored, plan, prepared=trainable)
    # A file with a plan has what mechanisms add: nothing of it may be drawn again.
    is_whole = RELEASE in stored.metadata or read_plan(stored.path) is not None
    new = {} if is_whole else {key: value for key, value in model.state_dict().items() if not value.is_meta}
    keys = model.KEY_MAP
    like, sources = {}, place(stored, keys)
    for ours, value in model.state_dict().items():
        official = keys.official(ours)
        if official is not None:
            keeps_dtype = ours in sources and value.dtype.is_floating_point and value.dtype.itemsize > 1
            dtype = stored.dtypes[sources[ours]] if keeps_dtype else value.dtype
            like[official] = torch.empty(value.shape, dtype=dtype, device="meta")
    steps = {STEP: stored.metadata[STEP]} if STEP in stored.metadata else {}
    metadata = {"model": name, **model.metadata, **steps}
    try:
        write_stream(out, like, _values(model, stored, keys, new), metadata, overwrite=overwrite)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}.") from error
    plan = plan_of(model)
    assert plan is not None
    parameters = (model if is_whole else dense).parameter_count
    return Written(plan, changes, parameters, sum(value.numel() for value in new.values()))


def _apply_plan(
    model: Backbone, stored: WeightFiles, plan: CompressionPlan | None, *, prepared: bool
) -> tuple[Backbone, Sequence[Change | Quantized]]:
    before, trained = read_plan(stored.path), stored.metadata.get(STAGE_KEY) == PREPARED
    if before is not None and trained and (plan is None or plan.steps == before.steps):
        return apply(model, before, prepared=prepared)
    if plan is None and before is not None:
        raise UsageError(
            f"{stored.path} is compressed already, as {before}. Name a plan that it does not have (--plan, --scheme), "
            "or give the file from before it was compressed."
        )
    if plan is None:
        raise UsageError(f"{stored.path} was not trained for a plan. Name one with --plan or --scheme.")
    if before is None:
        return apply(model, plan, prepared=prepared)
    sparse, _ = apply(model, before)
    return apply(sparse, plan, prepared=prepared)


def _values(
    model: Backbone, stored: WeightFiles, keys: KeyMap, new: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    rest = dict(new)
    for name, ours, value in values_for(model, stored, new):
        official = keys.official(ours)
        if official is not None:
            check_finite(stored, name, value)
            rest.pop(ours, None)
            yield official, value
    for ours, value in rest.items():
        official = keys.official(ours)
        if official is not None:
            yield official, value
