"""`lean3r stream`: reconstruct a video, a folder or a camera as it comes, in bounded memory."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lean3r.cli.console import Console
from lean3r.cli.flags import Flags, flags, of
from lean3r.cli.options import (
    Device,
    Json,
    Model,
    Offline,
    Overwrite,
    Plan,
    Quiet,
    Resolution,
    Seed,
    Verbose,
    Weights,
    check_found,
    check_named,
    library_option,
    option,
)
from lean3r.cli.summary import describe_warning
from lean3r.errors import InputError
from lean3r.export.atomic import check_target
from lean3r.options import PointOptions
from lean3r.pipeline.options import CameraOptions, MemoryOptions
from lean3r.refine.options import RefineOptions
from lean3r.stereo.options import Dense
from lean3r.stream.options import StreamOptions

if TYPE_CHECKING:
    from lean3r.stream.run import Stream

SHOW_S = 5.0  # between two lines of progress


@dataclass
class StreamCommand:
    """A stream of any length in; cameras, depth and a growing cloud out, in bounded memory, resumable.

    See docs/how-to/stream.md.
    """

    inputs: Annotated[
        tyro.conf.Positional[list[str]],
        option("INPUT [INPUT ...]", help="A video, folders, pictures, .zip files, or a camera: camera:0."),
    ]
    out: Annotated[Path, option("DIR", "-o", help="Folder to write; must be new or empty, unless --resume is given.")]
    model: Model = "nano"
    weights: Weights = None
    offline: Offline = False
    plan: Plan = None
    device: Device = "auto"
    resolution: Resolution = None
    seed: Seed = 0

    memory: Annotated[str | None, library_option(MemoryOptions, "memory")] = None
    intrinsics: Annotated[str | None, library_option(CameraOptions, "intrinsics")] = None
    stream_options: Annotated[Flags[StreamOptions], of(StreamOptions)] = field(default_factory=flags(StreamOptions))
    refine_options: Annotated[Flags[RefineOptions], of(RefineOptions)] = field(default_factory=flags(RefineOptions))

    dense: Annotated[Dense, option()] = "network"
    """Where the depth of keyframes comes from."""

    point_options: Annotated[Flags[PointOptions], of(PointOptions)] = field(default_factory=flags(PointOptions))

    resume: Annotated[bool, option()] = False
    """Go on with the stream in the output folder, where it was stopped, even by kill -9."""

    overwrite: Overwrite = False

    json: Annotated[Json, option(help="Print figures as JSON on standard output, instead of the output folder.")] = (
        False
    )
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Reconstruct the stream, and print the folder, or JSON."""
        check_named(self.inputs)
        check_found(self.inputs, or_camera=True)
        if not (self.resume or self.overwrite) and self.out.is_dir():
            check_target(self.out, shown=str(self.out), overwrite=False)
        console = Console(self.quiet)
        with console.stage("loading"):
            from lean3r.pipeline.load import load
            from lean3r.pipeline.predict import where
            from lean3r.stream.frames import Source
            from lean3r.stream.run import stream

            model = load(self.model, self.weights, self.device, offline=self.offline, plan=self.plan)
        console.line("model", f"{model.name}; licence of the weights: {model.licence}")
        console.line("device", where(model))
        running = stream(
            model,
            self.inputs,
            self.out,
            options=self.stream_options.options,
            resolution=self.resolution,
            intrinsics=self.intrinsics,
            memory=self.memory,
            refine=self.refine_options.options,
            dense=self.dense,
            points=self.point_options.options,
            seed=self.seed,
            resume=self.resume,
            overwrite=self.overwrite,
            observer=console,
        )
        try:
            self._follow(running, console)
        except KeyboardInterrupt:
            if running.frames:
                goes_on = "" if Source.is_once(self.inputs) else "; go on with --resume"
                console.line("stopped", f"{self.out} holds what was known{goes_on}")
            raise
        if not running.frames:
            wrong = "".join(f" ({what}: {count:,})" for what, count in running.notes.items())
            raise InputError(
                f"no usable picture in {', '.join(self.inputs)}{wrong}; expected a video, pictures or a camera."
            )
        done = {"out": str(self.out), "warnings": running.warnings, **running.figures, "notes": running.notes}
        is_refined = any(report.get("refinement", "kept") != "kept" for report in running.reports)
        console.table("summary", rows(done, is_refined))
        print(json.dumps(done) if self.json else self.out)

    def _follow(self, running: Stream, console: Console) -> None:
        """Take the frames, and show from time to time how it goes."""
        shown, seen = time.perf_counter(), 0
        for _ in running:
            new = min(running.report_count - seen, len(running.reports))
            for report in list(running.reports)[len(running.reports) - new :]:
                console.line("window", describe(report))
            seen = running.report_count
            if time.perf_counter() - shown >= SHOW_S:
                shown = time.perf_counter()
                console.line("frames", progress(running.figures))


def progress(figures: dict[str, Any]) -> str:
    """How far a stream is, in a line."""
    delay = figures["delay_s"]
    return (
        f"{figures['frames']:,} ({figures['keyframes']:,} keyframes), {figures['frames_a_second']:.1f} a second, delay "
        f"{delay['p50']:.1f} s, p95 {delay['p95']:.1f} s, {figures['peak_memory_mb']:,.0f} MB peak"
        + (f", {figures['dropped']:,} dropped" if figures["dropped"] else "")
    )


def describe(report: dict[str, Any]) -> str:
    """A window, and how well it is joined, in a line."""
    text = f"{report['window']}: frames {report['first']} to {report['last']}, {report['keyframes']} keyframes"
    if report["certain"] < report["keyframes"]:
        text += f", {report['keyframes'] - report['certain']} uncertain"
    if joined := report.get("join"):
        text += (
            f"; joined by {joined['frames']} of {joined['shared']} frames, scale x {joined['scale_ratio']:.3f}, "
            f"{joined['residual']:.1%} and {joined['angle_deg']:.2f} degrees off"
        )
        text += f": BAD, {joined['bad']}" if joined["bad"] else ""
    if loop := report.get("loop"):
        text += (
            f"; frame {loop['frame']} shows the place of frame {loop['with']} again: {loop['angle_deg']:.2f} degrees, "
            f"scale x {loop['scale_ratio']:.3f} corrected"
        )
    return text


def rows(done: dict[str, Any], is_refined: bool) -> list[tuple[str, str]]:
    """The table at the end; cameras that were never refined are not called certain."""
    sure = done["frames"] - done["uncertain"]
    how = "the camera is certain" if is_refined else "no join contradicts the camera: the network's own, not refined"
    told = f"of {sure:,} {how}" if sure else "and nothing confirms the camera of any of them"
    return [
        *(("warning", describe_warning(warning)) for warning in done["warnings"]),
        *(("warning", f"{what}: {count:,}") for what, count in done["notes"].items()),
        ("frames", f"{done['frames']:,}, {told}"),
        ("keyframes", f"{done['keyframes']:,} in {done['windows']:,} windows; {done['revisions']:,} loops closed"),
        ("speed", progress(done)),
        ("folder", done["out"]),
    ]
