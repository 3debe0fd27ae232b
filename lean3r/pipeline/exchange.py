"""Write weights as the official code of Lite3R and Speed3R reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lean3r.compress.plan import resolve_plan
from lean3r.compress.quantize import prepare
from lean3r.compress.sparsify import stored_plan
from lean3r.errors import UsageError
from lean3r.models import MODELS, lite3r
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import check_finite, check_model, place, without_memory
from lean3r.models.weight_files import WeightFiles, open_weights
from lean3r.models.writing import write_stream
from lean3r.pipeline.releases import trained_as
from lean3r.pipeline.save import check_file
from lean3r.scratch import atomic_file

Form = Literal["lite3r", "speed3r"]
SUFFIXES = {"lite3r": ".pt", "speed3r": ".safetensors"}


@dataclass(frozen=True)
class Exported:
    """What was written: tensors, numbers in parameters, and what the user has to know."""

    tensors: int
    parameters: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {"tensors": self.tensors, "parameters": self.parameters, "notes": list(self.notes)}


def export_file(name: str, source: Path, out: Path, form: Form, *, overwrite: bool = False) -> Exported:
    """Write the weights of model `name` in `source` as the code of a release reads them, in float32.

    "lite3r": a .pt file, of VGGT without point and track head; the whole model is in memory. "speed3r": .safetensors,
    tensor by tensor.
    UsageError if the file has codes, or lacks what the release has.
    """
    check_file(out, overwrite=overwrite, suffix=SUFFIXES[form])
    stored = open_weights(source)
    check_model(stored, name)
    export = {"lite3r": _export_lite3r, "speed3r": _export_speed3r}[form]
    try:
        return export(name, stored, out, overwrite)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}.") from error


def _export_lite3r(name: str, stored: WeightFiles, out: Path, overwrite: bool) -> Exported:
    plan = resolve_plan(trained_as(stored)) if lite3r.RELEASE in stored.metadata else stored_plan(stored.metadata)
    if plan is None or not any(step.mechanism == "sla" for step in plan.exchanges):
        raise UsageError(f"{stored.path} has no linear branches ({plan or 'it is dense'}); train it by a lite3r plan.")
    rounding = {step.quantize for step in plan.quantizes}
    kept = [key for key in stored.shapes if not lite3r.is_left_out(key)]
    dense = without_memory(lambda: MODELS.get(name).for_names(kept))
    form = next((f"lite3r-{each}" for each in ("w4a16", "w4a8") if each in rounding), "lite3r")
    model = prepare(dense, form)
    tensors = dict(_full_tensors(model, stored, kept, neutral=".smooth"))
    payload = {
        "model": {lite3r.released_name(key): value for key, value in tensors.items()},
        "optim": None,
        "step": int(stored.metadata.get(lite3r.STEP, 0)),
        "extra": {},
    }
    with atomic_file(out, overwrite=overwrite) as partial:
        torch.save(payload, partial)
    notes = []
    if lite3r.RELEASE not in stored.metadata:
        notes.append(f"the file does not record the plan, {plan}: give keep ratio and mode to the official code")
    if len(kept) < len(stored.shapes):
        notes.append(f"left out: {' and '.join(lite3r.LEFT_OUT)}")
    return Exported(len(tensors), model.parameter_count, tuple(notes))


def _export_speed3r(name: str, stored: WeightFiles, out: Path, overwrite: bool) -> Exported:
    plan = stored_plan(stored.metadata)
    if name != "speed3r-pi3" or plan is not None:
        raise UsageError(
            f"{stored.path} holds {name}{f', compressed as {plan}' if plan else ''}; the code of Speed3R reads the "
            "model speed3r-pi3, which has no register tokens, without a plan. Train the student in that form."
        )
    model = without_memory(MODELS.get(name))
    like = {key: value.float() for key, value in model.KEY_MAP.write(model.state_dict()).items()}
    write_stream(out, like, _full_tensors(model, stored, list(stored.shapes)), {"format": "pt"}, overwrite=overwrite)
    return Exported(len(like), model.parameter_count)


def _full_tensors(
    model: Backbone, stored: WeightFiles, kept: Collection[str], *, neutral: str | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model with its official name, in float32; tied names share one. Those that end in `neutral` are
    1 if the file lacks them."""
    coded = [key for key in kept if not (stored.dtypes[key].is_floating_point and stored.dtypes[key].itemsize > 1)]
    if coded:
        raise UsageError(
            f"{stored.path} has {len(coded)} tensors as codes ({coded[0]}, ...), which cannot become full weights "
            "again. Export the file that training wrote, before it was converted."
        )
    keys, source = model.KEY_MAP, place(stored, model.KEY_MAP)
    own = {ours: (key, value.shape) for ours, value in model.state_dict().items() if (key := keys.official(ours))}
    faults = {
        "lacks": [key for o, (key, _) in own.items() if o not in source and not (neutral and key.endswith(neutral))],
        "has more than the release:": [key for key in kept if keys.ours(key) not in own],
        "has in another shape": [key for o, (key, s) in own.items() if o in source and stored.shapes[source[o]] != s],
    }
    for fault, names in faults.items():
        if names:
            shown = ", ".join(map(lite3r.released_name, names[:3]))
            raise UsageError(f"{stored.path} {fault} {len(names)} tensors ({shown}, ...).")
    yield from ((key, torch.ones(shape)) for ours, (key, shape) in own.items() if ours not in source)
    wanted: dict[str, list[str]] = {}
    for ours, (key, _) in own.items():
        if ours in source:
            wanted.setdefault(source[ours], []).append(key)
    for key, value in stored.read(wanted):
        check_finite(stored, key, value)
        full = value.to(torch.float32, copy=True)
        yield from ((name, full) for name in wanted[key])
