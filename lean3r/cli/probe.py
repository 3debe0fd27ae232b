"""`lean3r probe`: rank the blocks of a model by their gradients on some data, to choose where to train adapters."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from lean3r.cli.console import Console
from lean3r.cli.options import DataSets, Device, Json, Plan, Quiet, Seed, Verbose, Weights, option
from lean3r.errors import UsageError
from lean3r.options import check_seed

FULL_BAR = 24


@dataclass
class Probe:
    """Rank the blocks of a model by the gradients that data with known cameras and depth sends through them.

    See docs/how-to/adapters.md.
    """

    model: Annotated[tyro.conf.Positional[str], option("MODEL")] = "nano"
    """Name of the model; `lean3r models` lists them."""

    weights: Weights = None
    plan: Plan = None
    data: DataSets = field(default_factory=list)

    views: Annotated[int, option("N")] = 4
    """Pictures of a scene."""

    resolution: Annotated[int | None, option("PIXELS")] = None
    """Side of the square pictures; by default the model's own resolution."""

    batches: Annotated[int, option("N")] = 5
    """Number of scenes to use."""

    group: Annotated[int, option("N")] = 8
    """Blocks whose gradients are in memory at the same time: fewer take less memory and more time."""

    share: Annotated[float, option("SHARE")] = 0.5
    """Share of the blocks of each role to mark as chosen."""

    seed: Annotated[Seed, option(help="Random seed of the choice of scenes.")] = 42
    device: Device = "auto"
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Probe the model, and print a table, or JSON."""
        for name in ("views", "batches", "group"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; expected at least 1.")
        if not 0 < self.share <= 1:
            raise UsageError(f"--share is {self.share}; expected more than 0 and at most 1.")
        check_seed(self.seed)
        probe = self._probe(Console(self.quiet))
        if self.json:
            print(json.dumps(probe))
            return
        highest = max(unit["score"] for unit in probe["units"])
        width = max(len(unit["target"]) for unit in probe["units"])
        for unit in probe["units"]:
            mark = "*" if unit["chosen"] else " "
            bar = "#" * round(FULL_BAR * unit["score"] / highest)
            print(f"{mark} {unit['target']:<{width}} {unit['score']:>12.4g}  {bar}")
        print(
            f"* chosen: {probe['share_of_parameters']:.0%} of these parameters; targets: {json.dumps(probe['targets'])}"
        )

    def _probe(self, console: Console) -> dict[str, Any]:
        from lean3r.pipeline.load import load
        from lean3r.train.config import Stage
        from lean3r.train.probe import gradient_scores, prediction_loss, report
        from lean3r.train.recipes.sources import Data, Source

        with console.stage("loading"):
            model = load(self.model, self.weights, self.device, dtype="float32", plan=self.plan)
        side = round((self.resolution or model.resolution) / model.patch) * model.patch
        if side < model.patch:
            raise UsageError(f"--resolution is {self.resolution}; expected at least {model.patch}.")
        stage = Stage(self.batches, side, side, (self.views,), self.views)
        data = Data(tuple(Source.parse(text) for text in self.data))
        device = next(model.parameters()).device
        with console.stage("reading"):
            batches = [data.batch(self.seed, step, stage, 0, 1).to(device) for step in range(self.batches)]
        with console.stage("gradients"):
            scores = gradient_scores(model, batches, prediction_loss, group=self.group)
        return {"model": self.model, "views": self.views, "side": side} | report(scores, self.share)
