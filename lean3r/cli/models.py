"""`lean3r models`: list the models with their predictions, sizes, licences and costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated

import tyro

from lean3r.cli.options import Json, Quiet, Verbose, option
from lean3r.errors import UsageError
from lean3r.models import CARDS, EMBEDDED, MODELS, NO_NETWORK, STUDENTS, is_non_commercial, list_models, model_of

if TYPE_CHECKING:
    from rich.table import Table

    from lean3r.models.base import Backbone
    from lean3r.models.summary import Summary

_PLAIN_COLUMNS = 240
OF_RUN = ("views", "height", "width")  # options that only --verbose reads


@dataclass
class Models:
    """List the models that can be loaded; --verbose shows the cost of a run.

    See docs/models.md.
    """

    name: Annotated[tyro.conf.Positional[str | None], option("[NAME]")] = None
    """One model instead of all."""

    verbose: Annotated[Verbose, option(help="Show parameters, operations and bytes of one run, part by part.")] = False

    views: Annotated[int, option("N")] = 8
    """Views of that run."""

    height: Annotated[int | None, option("PIXELS")] = None
    """Height of its pictures, rounded to whole patches; by default the model's own resolution."""

    width: Annotated[int | None, option("PIXELS")] = None
    """Width of its pictures, likewise."""

    json: Json = False
    quiet: Quiet = False

    def run(self) -> None:
        """Print tables, or JSON; UsageError for an unknown name, and for a size that is too small or not used."""
        self._check()
        known = list_models()
        names = known if self.name is None else [self.name if self.name in known else MODELS.check(self.name)]
        rows = [describe(name) for name in names]
        costs = [self._costs(name) for name in names] if self.verbose else []
        if self.json:
            if costs:
                rows = [{**row, "costs": asdict(cost)} for row, cost in zip(rows, costs, strict=True)]
            print(json.dumps(rows))
            return
        tables = [_list(rows)]
        if self.name is not None and costs:
            tables.append(_parts(costs[0]))
        elif costs:
            tables.append(_overview(names, costs))
        _print(tables)

    def _check(self) -> None:
        """UsageError for the size of a run that is not shown, and for the absence of a network."""
        if self.name == NO_NETWORK:
            raise UsageError(
                f"{NO_NETWORK} is no network, so it has no row; expected one of {', '.join(list_models())}."
            )
        given = [f.name for f in fields(self) if f.name in OF_RUN and getattr(self, f.name) != f.default]
        if given and not self.verbose:
            raise UsageError(f"--{given[0]} is for the costs that --verbose shows; add --verbose.")

    def _costs(self, name: str) -> Summary:
        """Costs of a model; those of a student are with the plan of its weights."""
        from lean3r.compress.sparsify import apply
        from lean3r.models.checkpoint import without_memory
        from lean3r.pipeline.load import read_plan

        model = without_memory(MODELS.get(model_of(name)))
        plan = read_plan(EMBEDDED / f"{name}.safetensors") if name in STUDENTS else None
        model = model if plan is None else apply(model, plan)[0]
        height, width = (_whole_patches(side, model) for side in (self.height, self.width))
        return model.summary(self.views, height, width)


def describe(name: str) -> dict:
    """One model as JSON-ready values; `weights` is the source of its default weights."""
    card = CARDS[model_of(name)]
    path = EMBEDDED / f"{name}.safetensors"
    embedded = f"in the package ({path.stat().st_size / 1e6:.1f} MB)" if path.is_file() else None
    return {
        "name": name,
        "predicts": STUDENTS[name].about if name in STUDENTS else card.about,
        "parameters": card.parameters,
        "licence": card.licence,
        "non_commercial": is_non_commercial(card.licence),
        "licence_stated": None if name in STUDENTS else card.stated,
        "weights": embedded or (None if card.repository is None else f"hf:{card.repository}"),
        "resolution": card.resolution,
        "patch": card.patch,
    }


def _whole_patches(side: int | None, model: Backbone) -> int:
    """The nearest multiple of the patch size; the model itself refuses a side below one pixel."""
    side = model.resolution if side is None else side
    return max(1, round(side / model.patch)) * model.patch if side > 0 else side


def _list(rows: list[dict]) -> Table:
    table = _table("name", "parameters", "licence", "weights", "predicts", right=("parameters",))
    for row in rows:
        licence = row["licence"] + (" (non-commercial)" if row["non_commercial"] else "")
        weights = row["weights"] or "needs --weights"
        table.add_row(row["name"], f"{row['parameters'] / 1e6:,.1f} M", licence, weights, row["predicts"])
    return table


def _overview(names: Sequence[str], costs: list[Summary]) -> Table:
    """One line for each model: operations by part, and bytes."""
    parts = list(costs[0].flops)
    numbers = ("TFLOP", *parts, "weights", "activations")
    table = _table("name", "run", *numbers, right=numbers)
    for name, cost in zip(names, costs, strict=True):
        flops = [f"{value / 1e12:,.3f}" for value in (sum(cost.flops.values()), *cost.flops.values())]
        table.add_row(name, _run(cost), *flops, _bytes(cost.weight_bytes), _bytes(cost.activation_bytes))
    return table


def _parts(cost: Summary) -> Table:
    """One line for each part of one model."""
    table = _table(_run(cost), "parameters", "TFLOP", "share", right=("parameters", "TFLOP", "share"))
    total = sum(cost.flops.values())
    for part, flops in cost.flops.items():
        table.add_row(part, f"{cost.parameters[part] / 1e6:,.1f} M", f"{flops / 1e12:,.3f}", f"{flops / total:.0%}")
    table.add_section()
    table.add_row("all", f"{sum(cost.parameters.values()) / 1e6:,.1f} M", f"{total / 1e12:,.3f}", "100%")
    table.add_row("weights", _bytes(cost.weight_bytes))
    table.add_row("activations, peak", _bytes(cost.activation_bytes))
    return table


def _run(cost: Summary) -> str:
    plural = "" if cost.views == 1 else "s"
    return f"{cost.views} view{plural}, {cost.width}x{cost.height}, float32"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _print(tables: list[Table]) -> None:
    """Print tables as wide as the terminal; on a pipe wide enough that no line breaks."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _PLAIN_COLUMNS, highlight=False)
    for table in tables:
        console.print(table)
