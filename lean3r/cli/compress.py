"""`lean3r compress`: compress the weights of a model into a file that contains its plan."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import Json, Offline, Overwrite, Plan, Quiet, Verbose, option
from lean3r.compress import SCHEMES
from lean3r.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from lean3r.compress.fp8_linear import Quantized
    from lean3r.compress.plan import CompressionPlan
    from lean3r.compress.sparsify import Change
    from lean3r.models.base import Backbone
    from lean3r.pipeline.exchange import Form
    from lean3r.types import Views

CALIBRATION_VIEWS = 16  # pictures
SCAN_VIEWS, SCAN_SIDE, SCAN_SEED = 4, 240, 20  # pictures, pixels, and seed of the synthetic world for a scan
OPTION_OF = {"photos": "scan", "floor_db": "scan", "budget": "calibrate", "by_head": "calibrate", "remove": "calibrate"}
"""Field -> the field without which nothing reads it."""


@dataclass
class Compress:
    """Give a model sparse attention or quantise it, tensor by tensor; the new file contains the plan.

    See docs/how-to/compress.md and docs/how-to/quantise.md.
    """

    source: Annotated[tyro.conf.Positional[str], option("IN")]
    """Weights of a model (a file, or hf:OWNER/NAME), or the name of a model for its own weights."""

    out: Annotated[tyro.conf.Positional[Path], option("OUT")]
    """File to write (.safetensors; .pt with --export lite3r; .json with --calibrate); with --scan a folder."""

    plan: Plan = None

    scheme: Annotated[
        str | None,
        option(
            "NAME",
            help=f"Number format of linear layers: {', '.join(SCHEMES)}; applied after --plan, if both are given.",
        ),
    ] = None

    export: Annotated[Literal["lite3r", "speed3r", "lean3r"] | None, option("FORM")] = None
    """Write full weights for the official code of Lite3R (.pt) or Speed3R, or for lean3r's own training."""

    scan: Annotated[bool, option()] = False
    """Write the error of each layer instead of weights: scan.json, scan.png, and plan.json without the worst layers."""

    calibrate: Annotated[list[str], option("INPUT [INPUT ...]")] = field(default_factory=list)
    """Write a plan (.json) instead of weights: for each global layer the mechanism and density that change the model's
    results on these pictures least."""

    budget: Annotated[float, option("SHARE")] = 0.1
    """--calibrate: mean density of global attention, the share of pairs of tokens that attend to each other."""

    by_head: Annotated[bool, option()] = False
    """--calibrate: choose for each head of a layer by itself."""

    remove: Annotated[int, option("N")] = 0
    """--calibrate: write a plan that removes so many whole blocks instead, those that matter least; then use --fit."""

    fit: Annotated[list[str], option("INPUT [INPUT ...]")] = field(default_factory=list)
    """Pictures by which the matrices are fitted that replace the blocks that --plan removes."""

    photos: Annotated[list[str], option("INPUT [INPUT ...]")] = field(default_factory=list)
    """Pictures for --scan; by default the synthetic world."""

    floor_db: Annotated[float, option("DB")] = 18.0
    """--scan leaves out layers whose signal-to-noise ratio would be lower than this."""

    model: Annotated[str | None, option("NAME", "-m")] = None
    """The model of these weights; by default read from the file, or recognised by its names and shapes."""

    overwrite: Annotated[Overwrite, option(help="Replace OUT.")] = False
    offline: Offline = False
    json: Json = False
    verbose: Annotated[Verbose, option(help="Name every layer, and show the traceback of an unexpected error.")] = False
    quiet: Quiet = False

    def run(self) -> None:
        """Compress, write the file and report the changes; print its path, or JSON."""
        from lean3r.pipeline.save import check_file

        self._check()
        console = Console(self.quiet)
        if self.scan:
            self._scan(console)
            return
        if self.calibrate:
            self._calibrate(console)
            return
        if self.fit:
            self._fit(console)
            return
        if self.export in ("lite3r", "speed3r"):
            self._export(console, self.export)
            return
        check_file(self.out, overwrite=self.overwrite)
        plan = self._plan()
        with console.stage("compressing"):
            from lean3r.pipeline.transcode import compress_file, resolve_weights

            name, path = resolve_weights(self.source, self.model, offline=self.offline)
            trainable = self.export == "lean3r"
            written = compress_file(name, path, self.out, plan, overwrite=self.overwrite, trainable=trainable)
        before, after = _size(path), _size(self.out)
        report = {
            "out": str(self.out),
            "source": str(path),
            "model": name,
            "plan": written.plan.as_dict(),
            "parameters": {"before": written.parameters, "after": written.parameters + written.new_parameters},
            "bytes": {"before": before, "after": after},
            "changed": [change.as_dict() for change in written.changes],
        }
        console.line("plan", str(written.plan))
        for text in _describe_changes(written.changes, each=self.verbose):
            console.line("", text)
        console.line("weights", f"{written.parameters:,} parameters unchanged, {written.new_parameters:,} new")
        console.line("file", f"{before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB now")
        console.line("next", f"lean3r reconstruct PHOTOS -o DIR --model {name} --weights {self.out}")
        print(json.dumps(report) if self.json else self.out)

    def _check(self) -> None:
        """UsageError for two things to write at once, and for options that nothing would read."""
        given = [name for name in ("scan", "calibrate", "fit", "export") if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} write different files; use one of them at a time.")
        changed = [f.name for f in fields(self) if f.name in OPTION_OF and getattr(self, f.name) != _default(f)]
        for name in changed:
            if not getattr(self, OPTION_OF[name]):
                raise UsageError(f"--{name.replace('_', '-')} is for --{OPTION_OF[name]}, which is missing.")
        if self.remove and "budget" in changed:
            raise UsageError("--budget is a density of attention, and --remove takes whole blocks; use one of them.")

    def _export(self, console: Console, form: Form) -> None:
        """Write what the code of a release reads."""
        from lean3r.pipeline.exchange import export_file
        from lean3r.pipeline.transcode import resolve_weights

        if self.plan is not None or self.scheme is not None:
            raise UsageError(f"--export {form} writes the weights as they were trained; leave --plan and --scheme out.")
        with console.stage("exporting"):
            name, path = resolve_weights(self.source, self.model, offline=self.offline)
            exported = export_file(name, path, self.out, form, overwrite=self.overwrite)
        report = {"out": str(self.out), "source": str(path), "model": name, "export": form, **exported.as_dict()}
        console.line("weights", f"{exported.tensors:,} tensors, {exported.parameters:,} numbers")
        for note in exported.notes:
            console.line("note", note)
        print(json.dumps(report) if self.json else self.out)

    def _scan(self, console: Console) -> None:
        """Measure the error of each layer; write it, with a figure and a plan that leaves out the worst layers."""
        from lean3r.compress.presets import fp8
        from lean3r.compress.scan_picture import draw
        from lean3r.compress.sensitivity import leave_out, propose_leave_out, scan
        from lean3r.export.atomic import atomic_folder
        from lean3r.export.manifest import write_short
        from lean3r.pipeline.load import load
        from lean3r.pipeline.predict import predict
        from lean3r.pipeline.transcode import resolve_weights

        plan = self._plan() or fp8()
        name, path = resolve_weights(self.source, self.model, offline=self.offline)
        with atomic_folder(self.out, overwrite=self.overwrite, inputs=(path, *self.photos)) as folder:
            with console.stage("loading"):
                model = load(name, path, dtype="float32")
                views = self._views(model, console)
            with console.stage("scanning"):
                rows = scan(model, plan, lambda _: predict(model, views))
            left_out = propose_leave_out(rows, self.floor_db)
            better = leave_out(model, plan, left_out)
            about = {
                "model": name,
                "plan": plan.as_dict(),
                "views": [source.name for source in views.sources] or views.images.shape[1],
                "floor_db": self.floor_db,
                "left_out": left_out,
                "layers": [row.as_dict() for row in rows],
            }
            picture = draw(rows, left_out, self.floor_db, f"{name}, plan {plan.name}, {views.images.shape[1]} views")
            picture.save(folder / "scan.png")
            (folder / "scan.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            (folder / "plan.json").write_text(json.dumps(better.as_dict(), indent=1), encoding="utf-8")
            write_short(folder)
        worst = sorted((row for row in rows if row.snr_db is not None), key=lambda row: row.snr_db or 0.0)[:5]
        console.table(
            "layers with the largest error", [(row.layer, row.scheme, f"{row.snr_db:.1f} dB") for row in worst]
        )
        console.line("left out", f"{len(left_out)} of {len(rows)} layers, below {self.floor_db:g} dB")
        console.line("next", f"lean3r compress {self.source} FILE --plan {self.out / 'plan.json'}")
        print(json.dumps(about) if self.json else self.out)

    def _calibrate(self, console: Console) -> None:
        """Measure every candidate in every global layer, or sets of blocks to remove; write the best plan."""
        from lean3r.compress.calibrate import calibrate
        from lean3r.compress.removal import choose_blocks
        from lean3r.pipeline.calibration import outputs_of
        from lean3r.pipeline.load import load
        from lean3r.pipeline.transcode import resolve_weights

        if self.plan is not None or self.scheme is not None:
            raise UsageError("--calibrate chooses the plan itself; leave --plan and --scheme out.")
        if self.remove < 0 or (self.remove and self.by_head):
            raise UsageError(
                f"--remove {self.remove}: expected a number of whole blocks, 1 or more, without --by-head."
            )
        if self.out.suffix != ".json":
            raise UsageError(f"--calibrate writes a plan, got {self.out}; expected a name that ends in .json.")
        if self.out.exists() and not self.overwrite:
            raise UsageError(f"{self.out} already exists. Use --overwrite to replace it, or name another file.")
        name, path = resolve_weights(self.source, self.model, offline=self.offline)
        with console.stage("loading"):
            model = load(name, path, dtype="float32")
            views = self._pictures(self.calibrate, CALIBRATION_VIEWS, model, console)
        if views.images.shape[1] < 2:
            raise UsageError("--calibrate needs two pictures or more: global attention is between views.")

        def outputs(candidate: Backbone) -> list[Tensor]:
            return outputs_of(candidate, views)

        if self.remove:
            with console.stage("measuring"):
                found = choose_blocks(model, outputs, self.remove)
            plan = found[0].plan
            self._write_plan(plan)
            rows = [(str(removal.plan.steps[0]), f"{removal.error:.2g}") for removal in found]
            console.table("blocks, the error of the results without them, before the fit", rows)
            console.line("next", f"lean3r compress {self.source} FILE --plan {self.out} --fit PHOTOS")
            report = {"out": str(self.out), "model": name, "error": found[0].error, "plan": plan.as_dict()}
            print(json.dumps(report) if self.json else self.out)
            return
        with console.stage("calibrating"):
            plan, chosen, _ = calibrate(model, outputs, self.budget, by_head=self.by_head)
        self._write_plan(plan)
        heads = ["" if c.head is None else f" head {c.head}" for c in chosen]
        rows = [
            (f"{c.layer}{head}", str(c.step or "dense"), f"{c.density:.3f}", f"{c.error:.2g}")
            for c, head in zip(chosen, heads, strict=True)
        ]
        console.table("global layer, what it gets, its density, the error of the results", rows)
        density = sum(choice.density for choice in chosen) / len(chosen)
        console.line("density", f"{density:.3f} at {views.images.shape[1]} views")
        console.line("next", f"lean3r compress {self.source} FILE --plan {self.out}")
        report = {"out": str(self.out), "model": name, "density": density, "plan": plan.as_dict()}
        print(json.dumps(report) if self.json else self.out)

    def _write_plan(self, plan: CompressionPlan) -> None:
        from lean3r.scratch import atomic_file

        with atomic_file(self.out, overwrite=self.overwrite) as partial:
            partial.write_text(json.dumps(plan.as_dict(), indent=1), encoding="utf-8")

    def _fit(self, console: Console) -> None:
        """Remove blocks, fit what replaces them, and write the weights."""
        from lean3r.compress.removal import remove
        from lean3r.pipeline.load import load
        from lean3r.pipeline.predict import predict
        from lean3r.pipeline.save import check_file, save
        from lean3r.pipeline.transcode import resolve_weights

        plan = self._plan()
        if plan is None:
            raise UsageError("--fit needs a plan that removes blocks: --plan PLAN.json.")
        check_file(self.out, overwrite=self.overwrite)
        name, path = resolve_weights(self.source, self.model, offline=self.offline)
        with console.stage("loading"):
            model = load(name, path, dtype="float32")
            views = self._pictures(self.fit, CALIBRATION_VIEWS, model, console)
        with console.stage("fitting"):
            removed = remove(model, plan, lambda network: predict(network, views))
        save(removed, self.out, overwrite=self.overwrite)
        before, after = model.parameter_count, removed.parameter_count
        console.line("plan", str(plan))
        console.line("weights", f"{before:,} parameters before, {after:,} now")
        console.line("next", f"lean3r reconstruct PHOTOS -o DIR --model {name} --weights {self.out}")
        parameters = {"before": before, "after": after}
        report = {"out": str(self.out), "model": name, "plan": plan.as_dict(), "parameters": parameters}
        print(json.dumps(report) if self.json else self.out)

    def _views(self, model: Backbone, console: Console) -> Views:
        """The pictures of --photos, or one scene of the synthetic world."""
        from lean3r.data.world.synthetic import SyntheticWorld
        from lean3r.types import Views

        if self.photos:
            return self._pictures(self.photos, SCAN_VIEWS, model, console)
        side = min(model.resolution, SCAN_SIDE) // model.patch * model.patch
        return Views(SyntheticWorld(seed=SCAN_SEED, views=SCAN_VIEWS, height=side, width=side).batch(0, 1).images)

    def _pictures(self, inputs: Sequence[str], most: int, model: Backbone, console: Console) -> Views:
        """At most so many pictures, evenly spaced, at the model's own size."""
        from lean3r.inputs.frames import FrameChoice
        from lean3r.inputs.pictures import Pictures

        pictures = Pictures(inputs, FrameChoice(max_views=most), keep_frames=False)
        views = pictures.views(resolution=model.resolution, patch=model.patch)
        console.read([source.name for source in views.sources], pictures.skipped)
        return views

    def _plan(self) -> CompressionPlan | None:
        """The plan of --plan and --scheme; None for the plan that the file was trained for."""
        from lean3r.compress.plan import resolve_plan
        from lean3r.compress.presets import of_scheme

        plan = None if self.plan is None else resolve_plan(self.plan)
        if self.scheme is None:
            return plan
        return of_scheme(self.scheme) if plan is None else plan + of_scheme(self.scheme)


def _default(option: Field) -> object:
    return option.default if option.default_factory is MISSING else option.default_factory()


def _describe_changes(changes: Sequence[Change | Quantized], *, each: bool) -> list[str]:
    """One line for each layer, or one for all layers with the same change."""
    if each:
        return [f"{change.site.name}: {_describe(change)}" for change in changes]
    counts = Counter(f"{_describe_site(change)}: {_describe(change)}" for change in changes)
    return [f"{count} {text}" for text, count in counts.items()]


def _describe_site(change: Change | Quantized) -> str:
    from lean3r.compress.fp8_linear import Quantized

    return f"layers ({change.site.part})" if isinstance(change, Quantized) else f"{change.site.role} blocks"


def _describe(change: Change | Quantized) -> str:
    from lean3r.compress.fp8_linear import Quantized

    if isinstance(change, Quantized):
        return change.scheme
    new = ", ".join(f"{name.rpartition('.mechanism.')[2]} {list(s)}" for name, s in change.new_parameters.items())
    text = change.mechanism.splitlines()[0].rstrip("( ") if "\n" in change.mechanism else change.mechanism
    return text + (f"; new: {new}" if new else "")


def _size(path: Path) -> int:
    """Bytes of all files of the weights."""
    from lean3r.models.weight_files import open_weights

    return sum(file.stat().st_size for file in set(open_weights(path).files.values()))
