"""Write a model as a file for other programs, checked against the model before it gets its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lean3r.attention.coarse_fine import Gsa
from lean3r.deploy import onnx_file
from lean3r.deploy.graph import (
    FEWEST_VIEWS,
    OUTPUTS,
    Limits,
    evaluated,
    limits_of,
    outputs_of,
    trace,
    whole_activations,
)
from lean3r.errors import LeanError, UsageError
from lean3r.layers.matching import MANY
from lean3r.models.base import Backbone
from lean3r.models.execution import check_compiler
from lean3r.scratch import LOCK, temporary_folder
from lean3r.types import Views

Run = Callable[[Tensor], dict[str, Tensor]]

KINDS = {".onnx": "ONNX", ".aoti.pt2": "AOTInductor package", ".pt2": "torch.export"}
"""Ending of a file -> its format; of two that fit, the first."""
TOLERANCE = 1e-4
CHECKED = ((0, 8, 6), (1, 5, 3), (4, 4, 7))
"""Pictures on which a file is compared with its model: views beyond the fewest, least rows and columns of patches."""
CHECKED_SPARSE = (4, 12, 16)
"""The same, besides, where attention chooses: more windows than it takes."""
TRIES, SHARE = 3, 0.99
"""Where a model chooses windows or views, what is equally good within rounding may change places: so many pictures are
compared, and the median counts; of one picture, this share of the values."""


class DifferentError(LeanError):
    """A file does not compute what its model does; it is not written."""


@dataclass(frozen=True)
class Exported:
    """A file that was written: its format, size in bytes, limits, axes, and how far its results are from the model's.

    `differences` has for each output |file - model| / max(1, |model|) as `compare` found it; None where onnxruntime,
    which runs ONNX files, is not installed. `details` has what only one format has.
    """

    path: Path
    kind: str
    bytes: int
    axes: dict[str, list[int | str]]
    limits: dict[str, int]
    differences: dict[str, float] | None
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return {**asdict(self), "path": str(self.path)}


def kind_of(path: Path) -> str:
    """The ending in KINDS of a file to write; UsageError if it has none of them."""
    for ending in KINDS:
        if path.name.endswith(ending):
            return ending
    shown = ", ".join(f"{ending} ({kind})" for ending, kind in KINDS.items())
    raise UsageError(f"cannot tell the format of {path}; expected a name that ends in {shown}.")


def export_model(model: Backbone, path: str | Path, *, many_views: bool = False, overwrite: bool = False) -> Exported:
    """Write a model, in float32 on the CPU, as .onnx, as .pt2 (torch.export) or as .aoti.pt2 (compiled by AOTInductor).

    The file takes `images` [1, S, 3, H, W] float32 in [0, 1] and returns the tensors of Prediction by name; S, H and W
    are free within `limits_of(model, many=many_views)`: nano has one graph for few views and one for many. Weights stay
    codes where they are; activations are not rounded. The file is run on pictures of other numbers and sizes than those
    it was recorded with, and gets its name only if all outputs are within TOLERANCE of the model's; see `compare`.
    UsageError for another ending, an operator that ONNX lacks, or no compiler; MissingExtraError without the packages
    for ONNX.
    """
    path = Path(path)
    kind = check_target(path, overwrite=overwrite)
    limits = limits_of(model, many=many_views)
    if kind != ".onnx":
        limits = replace(limits, fewest=max(limits.fewest, FEWEST_VIEWS))
    with whole_activations(model), evaluated(model):
        return _export(model, path, kind, limits)


def _export(model: Backbone, path: Path, kind: str, limits: Limits) -> Exported:
    replaces = path.exists()
    sizes = {
        "fewest_views": limits.fewest,
        "views": limits.views,
        "multiple": limits.patch,
        "least": limits.least,
        "most": limits.most,
    }
    facts = {"model": model.name, "licence": model.licence, "resolution": model.resolution, "limits": sizes}
    facts["plan"] = None if model.plan is None else model.plan.name
    try:
        with temporary_folder("export", path.parent) as folder:  # first: recording takes minutes
            program, new = trace(model, limits), folder / path.name
            details, run = _write(kind, program, new, facts, limits)
            differences = None if run is None else compare(model, run, limits)
            _check(path, differences)
            files = sorted((file for file in folder.iterdir() if file.name != LOCK), reverse=True)  # weights first
            size = sum(file.stat().st_size for file in files)
            for file in files:
                os.replace(file, path.parent / file.name)
            if kind == ".onnx" and replaces and len(files) == 1:  # weights of the file that had this name
                path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}.") from error
    axes = details.pop("axes", None) or {"images": [1, "views", 3, "height", "width"], **_axes(program)}
    return Exported(path, KINDS[kind], size, axes, sizes, differences, details)


def check_target(path: Path, *, overwrite: bool) -> str:
    """The ending of a file that can be written; UsageError or MissingExtraError if it cannot."""
    kind = kind_of(path)
    if path.is_dir() or (path.exists() and not overwrite):
        what = "is a folder" if path.is_dir() else "exists; use --overwrite (overwrite=True)"
        raise UsageError(f"{path} {what}, or name another file.")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist; create it first.")
    if kind == ".onnx":
        onnx_file.check_installed()
    if kind == ".aoti.pt2":
        check_compiler()
    return kind


def compare(model: Backbone, run: Run, limits: Limits) -> dict[str, float]:
    """Largest |run - model| / max(1, |model|) of each output, over pictures of the sizes of CHECKED; for a model that
    chooses windows also of CHECKED_SPARSE, and where windows or views are chosen, of SHARE of the values."""
    is_sparse = any(isinstance(part, Gsa) for part in model.modules())
    chooses = is_sparse or limits.fewest >= MANY
    generator = torch.Generator().manual_seed(0)
    worst: dict[str, float] = {}
    for size in [*CHECKED, *([CHECKED_SPARSE] if is_sparse else [])]:
        tries = [_differences(model, run, limits, size, generator) for _ in range(TRIES if chooses else 1)]
        for name in tries[0]:
            offs = [float(found[name].quantile(SHARE) if chooses else found[name].amax()) for found in tries]
            # Whatever is not finite counts, which median and max may lose.
            off = median(offs) if all(map(isfinite, offs)) else inf
            worst[name] = max(worst.get(name, 0.0), off)
    return worst


def _differences(
    model: Backbone, run: Run, limits: Limits, size: tuple[int, int, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """|run - model| / max(1, |model|) of all values of each output, for random pictures of one size, each in a colour
    of its own, so that views differ."""
    height, width = (max(patches * model.patch, limits.least) for patches in size[1:])
    views = limits.fewest + size[0]
    images = torch.rand(1, views, 3, height, width, generator=generator)
    images = images * torch.rand(1, views, 3, 1, 1, generator=generator)
    with torch.no_grad():
        expected, found = outputs_of(model(Views(images))), run(images)
    return {
        name: ((found[name] - value).abs() / value.abs().clamp_min(1)).flatten() for name, value in expected.items()
    }


def _write(
    kind: str, program: ExportedProgram, path: Path, facts: dict[str, Any], limits: Limits
) -> tuple[dict[str, Any], Run | None]:
    """Write one format; what it has to say of itself, and the file as a function."""
    if kind == ".onnx":
        return onnx_file.write_onnx(program, path, facts, limits), onnx_file.runner(path)
    if kind == ".aoti.pt2":
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        return {}, torch._inductor.aoti_load_package(str(path))
    torch.export.save(program, path, extra_files={"lean3r.json": json.dumps(facts)})
    return {}, torch.export.load(path).module()


def _axes(program: ExportedProgram) -> dict[str, list[int | str]]:
    count = len(program.graph_signature.user_outputs)
    return {name: [1, *axes] for name, axes in list(OUTPUTS.items())[:count]}


def _check(path: Path, differences: dict[str, float] | None) -> None:
    worst = {name: off for name, off in (differences or {}).items() if not off <= TOLERANCE}
    if worst:
        shown = ", ".join(f"{name} {off:.1e}" for name, off in worst.items())
        raise DifferentError(
            f"{path} was not written: it differs from the model by more than {TOLERANCE:g} ({shown}). "
            "Report this as a bug, with the versions that lean3r doctor prints."
        )
