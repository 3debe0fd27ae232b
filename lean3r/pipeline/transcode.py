"""A file of weights in, one of a compressed model out, tensor by tensor: no model is ever held in memory."""

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
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import check_finite, check_model, models_that_fit, place, values_for, without_memory
from lean3r.models.keymap import KeyMap
from lean3r.models.sources import find_weights, official_source
from lean3r.models.weight_files import WeightFiles, open_weights
from lean3r.models.writing import write_stream
from lean3r.pipeline.load import embedded_weights, plan_in
from lean3r.pipeline.save import check_file


@dataclass(frozen=True)
class Written:
    """What became of a file of weights: the plan, the layers that changed, how many parameters went in, how many are
    new."""

    plan: CompressionPlan
    changes: Sequence[Change | Quantized]
    parameters: int
    new_parameters: int


def named_weights(source: str, model: str | None = None, *, offline: bool = False) -> tuple[str, Path]:
    """Name of a model and the local file of its weights, of a model's name (its own ones), a file, or hf:OWNER/NAME.

    What the file does not say of its model, `model` does, or its names and shapes tell. UsageError where they cannot.
    """
    if source in MODELS and not Path(source).is_file():
        if model not in (None, source):
            raise UsageError(f"IN is the model {source}, --model says {model}. Leave one out.")
        return source, find_weights(official_source(source) or embedded_weights(source), offline=offline)
    path = find_weights(source, offline=offline)
    stored = open_weights(path)
    name = model or stored.metadata.get("model")
    if name is None:
        fitting = models_that_fit(stored)
        if len(fitting) != 1:
            found = f"fits {' and '.join(fitting)}" if fitting else "fits no model by its names and shapes"
            raise UsageError(f"{path} {found}. Say with --model which it is; `lean3r models` lists them.")
        name = fitting[0]
    return MODELS.check(name), path


def compress_file(
    name: str, source: Path, out: Path, plan: CompressionPlan | None, *, overwrite: bool = False
) -> Written:
    """Write the weights of `source` as `plan` would have them to `out`.

    What is not quantised keeps the number type of the file. `plan` may be None where the file was trained for one.
    UsageError on a plan that does not fit the model or the file; WeightsError as load_weights.
    """
    check_file(out, overwrite=overwrite)
    stored = open_weights(source)
    if any(out.exists() and out.samefile(file) for file in {source, *stored.files.values()}):
        raise UsageError(f"{out} is among the files that are read; name another file.")
    check_model(stored, name)
    dense = without_memory(MODELS.get(name))
    model, changes = _apply_plan(dense, stored, plan)
    new = {key: value for key, value in model.state_dict().items() if not value.is_meta}
    keys = model.KEY_MAP
    like, held = {}, place(stored, keys)
    for ours, value in model.state_dict().items():
        official = keys.official(ours)
        if official is not None:
            kept = ours in held and value.dtype.is_floating_point and value.dtype.itemsize > 1
            dtype = stored.dtypes[held[ours]] if kept else value.dtype
            like[official] = torch.empty(value.shape, dtype=dtype, device="meta")
    metadata = {"model": name, **model.metadata}
    try:
        write_stream(out, like, _values(model, stored, keys, new), metadata, overwrite=overwrite)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}.") from error
    plan = plan_of(model)
    assert plan is not None
    return Written(plan, changes, dense.parameter_count, sum(value.numel() for value in new.values()))


def _apply_plan(
    model: Backbone, stored: WeightFiles, plan: CompressionPlan | None
) -> tuple[Backbone, Sequence[Change | Quantized]]:
    before, prepared = plan_in(stored.path), stored.metadata.get(STAGE_KEY) == PREPARED
    if before is not None and prepared and (plan is None or plan.steps == before.steps):
        return apply(model, before)
    if plan is None:
        raise UsageError(f"{stored.path} was not trained for a plan. Name one with --plan or --scheme.")
    if before is None:
        return apply(model, plan)
    sparse, _ = apply(model, before)
    return apply(sparse, plan)


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
