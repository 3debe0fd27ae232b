"""`lean3r inspect attention`: which regions of which pictures one window of patches looks at."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
    option,
)
from lean3r.errors import UsageError


@dataclass
class Inspect:
    """Draw which regions of which pictures a window of patches looks at, and say how dense attention is.

    See docs/how-to/compress.md.
    """

    what: Annotated[tyro.conf.Positional[Literal["attention"]], option()]
    """What to look at."""

    inputs: Inputs
    out: Annotated[Out, option(help="Folder to write attention.png and attention.json into.")]
    model: Model = "nano"
    weights: Weights = None
    plan: Plan = None

    view: Annotated[int | None, option("N")] = None
    """The picture that looks, from 0; by default the middle one."""

    at: Annotated[tuple[float, float] | None, option("X Y")] = None
    """The spot that looks, in pixels of the original picture; by default its centre."""

    block: Annotated[int | None, option("N")] = None
    """Number among the blocks that look across pictures, from 0; by default the last one."""

    device: Device = "auto"
    resolution: Resolution = None
    max_views: MaxViews = None
    overwrite: Overwrite = False
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Look, draw, write; the folder, or JSON, on standard output."""
        from lean3r.export.atomic import atomic_folder
        from lean3r.export.manifest import write_short

        console = Console(self.quiet)
        with atomic_folder(self.out, overwrite=self.overwrite, inputs=self.inputs) as folder:
            found, picture = self._look(console)
            picture.save(folder / "attention.png")
            text = json.dumps(found, indent=1)
            (folder / "attention.json").write_text(text, encoding="utf-8")
            write_short(folder)
        for name, density in found["density"].items():
            console.line("density", f"{name}: {'not reported' if density is None else f'{100 * density:.1f} %'}")
        most = max(found["views"], key=lambda row: row["share"])
        console.line("looks at", f"{most['name']} most, with {100 * most['share']:.0f} % of its attention")
        if found["not_in_effect"]:
            console.warn(found["not_in_effect"])
        print(json.dumps(found) if self.json else self.out)

    def _look(self, console: Console) -> tuple[dict[str, Any], Any]:
        """What attention.json holds, and the picture."""
        import torch

        from lean3r.attention.base import recording
        from lean3r.attention.probe import capturing
        from lean3r.attention.shares import query_window, shares
        from lean3r.cli.attention_picture import COLUMNS, draw
        from lean3r.compress.targets import sites_of
        from lean3r.inputs.views import load_views
        from lean3r.models.base import grey_padding
        from lean3r.pipeline.load import load

        with console.stage("loading"):
            model = load(self.model, self.weights, self.device, plan=self.plan)
        sites: dict[str, Any] = {
            site.name: model.get_submodule(site.name) for site in sites_of(model) if site.role == "global"
        }
        block = len(sites) - 1 if self.block is None else self.block
        if not 0 <= block < len(sites):
            raise UsageError(f"--block is {block}; {self.model} has {len(sites)} blocks that look across pictures.")
        with console.stage("reading"):
            resolution = self.resolution or model.resolution
            loaded = load_views(self.inputs, resolution=resolution, patch=model.patch, max_views=self.max_views)
        views = loaded.views
        names = [source.name for source in views.sources]
        console.read(names, loaded.skipped)
        view = len(names) // 2 if self.view is None else self.view
        if not 0 <= view < len(names):
            raise UsageError(f"--view is {view}; there are {len(names)} views, 0 to {len(names) - 1}.")
        name = list(sites)[block]
        watched = sites[name]
        both = [m for m in (watched.mechanism, watched.short) if m is not None]
        device = next(model.parameters()).device
        with console.stage("network"), torch.no_grad(), recording() as log, capturing(both) as calls:
            model.encode(grey_padding(views.to(device)))
        window = query_window(calls[-1].layout, views, view, self.at)
        found = shares(calls[-1], window, view)
        densities = {id(record.mechanism): record.density for record in log}
        plan, used = model.plan, calls[-1].mechanism
        missed = ""
        if plan is not None and used is watched.short:
            missed = _not_in_effect(plan.name, found.tokens, len(names), watched.dense_below)
        about = {
            "model": self.model,
            "plan": None if plan is None else plan.as_dict(),
            "layer": name,
            "mechanism": repr(used),
            "not_in_effect": missed,
            "query": {"view": view, "name": names[view], "patches": window.as_dict()},
            "views": [
                {"view": i, "name": n, "share": round(s, 6)}
                for i, (n, s) in enumerate(zip(names, found.by_view, strict=True))
            ],
            "special_tokens_share": round(found.special, 6),
            "tokens": found.tokens,
            "tokens_that_hold_90_percent": found.tokens_of_most,
            "density": {key: _density(a.mechanism, a.short, densities) for key, a in sites.items()},
        }
        title = [f"{self.model}, {name}: {used!r}", *textwrap.wrap(missed, 50 * min(len(names), COLUMNS))]
        return about, draw(views, found, window, view, names, title)


def _not_in_effect(plan: str, tokens: int, pictures: int, dense_below: int) -> str:
    """Why dense attention is seen although there is a plan, and what helps."""
    enough = math.ceil(dense_below * pictures / tokens)
    return (
        f"plan {plan} is not in effect here: {pictures} pictures are {tokens:,} tokens, and below {dense_below:,} it "
        f"stays dense, because sparse attention gains nothing there. What you see is dense attention. Give {enough} "
        "pictures or more, a larger --resolution, or a plan of your own with a smaller dense_below."
    )


def _density(mechanism: Any, short: Any, densities: dict[int, float | None]) -> float | None:
    """The share of pairs that a layer attends to; None where its mechanism did not say."""
    from lean3r.attention.dense import Dense

    for used in (mechanism, short):
        if densities.get(id(used)) is not None:
            return round(densities[id(used)], 6)  # type: ignore[arg-type]
    return 1.0 if isinstance(mechanism, Dense) or isinstance(short, Dense) else None
