"""`lean3r add`: put new pictures into a result, whose cameras stay where they are."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lean3r.cli.console import Console, group_skips
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
    option,
)
from lean3r.inputs.frames import FrameChoice

if TYPE_CHECKING:
    from lean3r.types import Reconstruction


@dataclass
class Add:
    """Put new pictures into a result, whose cameras stay where they are.

    See docs/how-to/add.md.
    """

    scene: Annotated[
        tyro.conf.Positional[Path],
        option("SCENE", help="Folder of a result of `lean3r reconstruct`; it is replaced by the larger one."),
    ]
    inputs: Annotated[
        tyro.conf.Positional[list[str]],
        option("INPUT [INPUT ...]", help="New pictures: folders, pictures, globs, .zip files or a video."),
    ]
    out: Annotated[
        Path | None,
        option("DIR", "-o", "--export-dir", help="Write the larger result to this folder, and leave SCENE as it is."),
    ] = None

    stored: Annotated[tyro.conf.UseAppendAction[list[str]], option("PATH")] = field(default_factory=list)
    """Where the pictures of SCENE are now, if they moved; may be repeated."""

    model: Annotated[
        Model, option(help="Which model (`lean3r models`); auto is that of SCENE, another one may be used, too.")
    ] = "auto"
    weights: Weights = None
    offline: Offline = False
    plan: Plan = None
    device: Device = "auto"
    resolution: Resolution = None
    seed: Seed = 0
    frame_choice: Annotated[Flags[FrameChoice], of(FrameChoice)] = field(default_factory=flags(FrameChoice))

    masks: Annotated[Path | None, option("DIR")] = None
    """Folder of masks, DIR/IMG.jpg.png for IMG.jpg (as in COLMAP): black gives no features, depth or points."""

    overwrite: Annotated[Overwrite, option(help="Replace an earlier result in the folder of -o.")] = False

    json: Annotated[Json, option(help="Print a summary as JSON on standard output, instead of the output folder.")] = (
        False
    )
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Add the pictures, and print the folder, or JSON."""
        check_named(self.inputs)
        check_found(self.inputs)
        console = Console(self.quiet)
        with console.stage("loading"):
            from lean3r.grow.result import read_about
            from lean3r.grow.run import add
            from lean3r.pipeline.load import load
            from lean3r.pipeline.predict import where

            used = read_about(self.scene)
            name = used.model if self.model == "auto" else self.model
            model = load(name, self.weights, self.device, offline=self.offline, plan=self.plan)
        console.line("model", f"{name}; licence of the weights: {model.licence}")
        console.line("device", where(model))
        scene = add(
            model,
            self.scene,
            self.inputs,
            self.out,
            frames=self.frame_choice.options,
            stored=self.stored,
            masks=self.masks,
            resolution=self.resolution,
            seed=self.seed,
            overwrite=self.overwrite,
            command=shlex.join(sys.argv),
            observer=console,
        )
        done = summary(scene, used.views, self.out or self.scene, console.seconds)
        console.table("summary", rows(scene, done))
        print(json.dumps(done) if self.json else done["out"])


def summary(scene: Reconstruction, before: int, out: Path, seconds: Mapping[str, float]) -> dict:
    """The values that `--json` prints; `before` is the number of views that the scene had."""
    new = scene.names[before:]
    last = scene.info["added"][-1] if new else {}
    labels = dict(zip(scene.names, scene.registration, strict=True))
    return {
        "out": str(out),
        "views": len(scene.names),
        "added": list(new),
        "uncertain": [name for name in new if labels[name] == "uncertain"],
        "recalled": last.get("recalled", []),
        "refinement": last.get("refinement"),
        "warnings": scene.info.get("warnings", []),
        "skipped": [{"name": name, "reason": reason} for name, reason in scene.skipped],
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "points": len(scene.points.xyz),
        "scale": scene.scale,
    }


def rows(scene: Reconstruction, done: Mapping) -> list[tuple[str, str]]:
    """The table at the end."""
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in done["seconds"].items())
    before = done["views"] - len(done["added"])
    sure = len(done["added"]) - len(done["uncertain"])
    doubts = [("uncertain", ", ".join(done["uncertain"]))] if done["uncertain"] else []
    return [
        *doubts,
        ("views", f"{len(done['added']):,} added, of {sure:,} the camera is certain; {before:,} stay as they were"),
        ("compared", f"with {len(done['recalled']):,} of the {before:,}"),
        *(("skipped", text) for text in group_skips(scene.skipped)),
        ("seconds", f"{sum(done['seconds'].values()):.1f} ({stages})"),
        ("points", f"{done['points']:,}, scale: {done['scale']}"),
        ("folder", done["out"]),
    ]
