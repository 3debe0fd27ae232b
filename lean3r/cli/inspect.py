"""`lean3r inspect attention`: draw which regions of the pictures one window of patches attends to."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import (
    Device,
    Inputs,
    Json,
    MaxViews,
    Model,
    Out,
    Overwrite,
    Plan,
    Quiet,
    Resolution,
    Verbose,
    Weights,
    check_named,
    option,
)


@dataclass
class Inspect:
    """Draw which regions of which pictures a window of patches attends to, and report how dense attention is.

    See docs/how-to/compress.md.
    """

    what: Annotated[tyro.conf.Positional[Literal["attention"]], option()]
    """What to inspect."""

    inputs: Inputs
    out: Annotated[Out, option(help="Folder to write attention.png and attention.json into.")]
    model: Model = "nano"
    weights: Weights = None
    plan: Plan = None

    view: Annotated[int | None, option("N")] = None
    """The picture of the window, from 0; by default the middle one."""

    at: Annotated[tuple[float, float] | None, option("X Y")] = None
    """The centre of the window, in pixels of the original picture; by default the picture's centre."""

    block: Annotated[int | None, option("N")] = None
    """Number among the blocks that attend across pictures, from 0; by default the last one."""

    device: Device = "auto"
    resolution: Resolution = None
    max_views: MaxViews = None
    overwrite: Overwrite = False
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Run the network, draw its attention, and print the folder, or JSON."""
        from lean3r.attention.picture import COLUMNS, draw
        from lean3r.compress.looking import look
        from lean3r.export.atomic import atomic_folder
        from lean3r.export.manifest import write_short
        from lean3r.inputs.frames import FrameChoice
        from lean3r.inputs.pictures import Pictures
        from lean3r.models.base import grey_padding
        from lean3r.pipeline.load import load

        check_named(self.inputs)
        console = Console(self.quiet)
        with atomic_folder(self.out, overwrite=self.overwrite, inputs=self.inputs) as folder:
            with console.stage("loading"):
                model = load(self.model, self.weights, self.device, "float32", plan=self.plan)
            with console.stage("reading"):
                resolution = self.resolution or model.resolution
                pictures = Pictures(self.inputs, FrameChoice(max_views=self.max_views), keep_frames=False)
                views = pictures.views(resolution=resolution, patch=model.patch)
            console.read([source.name for source in views.sources], pictures.skipped)
            visible = grey_padding(views.to(next(model.parameters()).device))
            with console.stage("network"):
                plan = None if model.plan is None else model.plan.name
                run = partial(model.encode, visible)
                attention = look(model, run, views, plan=plan, view=self.view, at=self.at, block=self.block)
            about = {"model": self.model, "plan": model.plan and model.plan.as_dict(), **attention.as_dict()}
            notes = textwrap.wrap(attention.not_in_effect, 50 * min(len(attention.names), COLUMNS))
            title = [f"{self.model}, {attention.layer}: {attention.mechanism}", *notes]
            picture = draw(views, attention.shares, attention.window, attention.view, attention.names, title)
            picture.save(folder / "attention.png")
            (folder / "attention.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
            write_short(folder)
        for name, density in attention.density.items():
            console.line("density", f"{name}: {'not reported' if density is None else f'{100 * density:.1f} %'}")
        share = max(attention.shares.by_view)
        most = attention.names[attention.shares.by_view.index(share)]
        console.line("looks at", f"{most} most, with {100 * share:.0f} % of its attention")
        if attention.not_in_effect:
            console.warn(attention.not_in_effect)
        print(json.dumps(about) if self.json else self.out)
