"""`lean3r export-model`: write a model as ONNX, torch.export or an AOTInductor package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import Json, Offline, Overwrite, Plan, Quiet, Verbose, Weights, option

if TYPE_CHECKING:
    from lean3r.deploy import Exported


@dataclass
class ExportModel:
    """Write a model as a file that runs without lean3r, for any number of views and sizes; checked before it is named.

    See docs/how-to/deploy-models.md.
    """

    model: Annotated[tyro.conf.Positional[str], option("MODEL")]
    """Name of the model; `lean3r models` lists them."""

    out: Annotated[tyro.conf.Positional[Path], option("FILE")]
    """File to write: .onnx, .pt2 (torch.export) or .aoti.pt2 (compiled by AOTInductor)."""

    weights: Weights = None
    plan: Plan = None
    many_views: bool = False
    """For 50 views and more instead of fewer: nano and its students have another graph there."""

    overwrite: Annotated[Overwrite, option(help="Replace FILE.")] = False
    offline: Offline = False
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Export the model and report what is in the file; print its path, or JSON."""
        from lean3r.deploy.export import check_target, export_model
        from lean3r.pipeline.load import load

        console = Console(self.quiet)
        check_target(self.out, overwrite=self.overwrite)
        model = load(self.model, self.weights, "cpu", "float32", self.offline, self.plan)
        console.line("model", f"{self.model}; tracing, writing and checking it takes a minute or more")
        with console.stage("exporting"):
            exported = export_model(model, self.out, many_views=self.many_views, overwrite=self.overwrite)
        _report(console, exported)
        print(json.dumps(exported.as_dict()) if self.json else self.out)


def _report(console: Console, exported: Exported) -> None:
    details, limits = exported.details, exported.limits
    console.line("file", f"{exported.kind}, {exported.bytes / 1e6:,.1f} MB")
    if "opset" in details:
        found = f"opset {details['opset']}, {details['operators']:,} operators of {', '.join(details['domains'])}"
        console.line("operators", found)
    for name, axes in exported.axes.items():
        console.line("input" if name == "images" else "output", f"{name} [{', '.join(map(str, axes))}]")
    sides = f"sides multiples of {limits['multiple']} from {limits['least']} to {limits['most']:,} pixels"
    console.line("limits", f"{limits['fewest_views']} to {limits['views']:,} views, {sides}")
    if exported.differences is None:
        console.line("check", "not run: onnxruntime is not installed (pip install 'lean3r[onnx]')")
    else:
        shown = ", ".join(f"{name} {off:.1e}" for name, off in exported.differences.items())
        console.line("check", f"largest difference from the model: {shown}")
