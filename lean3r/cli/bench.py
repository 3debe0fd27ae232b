"""`lean3r bench`: time and memory of models, plans and peers, in one run on one machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lean3r.cli.console import Console, format_table
from lean3r.cli.options import Json, Overwrite, Quiet, Verbose, option

HEADER = ("model", "program", "views", "size", "device", "dtype", "s", "min-max", "CPU s", "views/s", "MB", "dB")


@dataclass
class Bench:
    """Measure time, throughput and memory by views, resolution, model, plan and device, peers beside in the same run.

    See docs/how-to/benchmark.md.
    """

    out: Annotated[Path, option("FILE", "-o")]
    """JSON file to write, after every row."""

    models: Annotated[str, option("NAME[,NAME ...]", "-m")] = ""
    """Models; nano by default, none beside --layer."""

    plans: Annotated[str, option("PLAN[,PLAN ...]")] = "dense"
    """Plans as --plan of other commands takes them; dense is none."""

    layer: Annotated[str, option("HEADSxCHANNELS[,...]")] = ""
    """Also one global block alone, with random weights, of so many heads of so many channels, such as 16x64."""

    views: Annotated[str, option("N[,N ...]|N..N")] = "2,4,8"
    """Numbers of views: a list, or a range that doubles, such as 2..64."""

    resolution: Annotated[str | None, option("PIXELS|HEIGHTxWIDTH[,...]")] = None
    """Sides of the pictures, rounded to patches; by default the model's own."""

    whole: Annotated[str | None, option("PHOTOS")] = None
    """Time whole reconstructions of these photos (a folder, a video), from decoding to files, not only the network."""

    refine: Annotated[Literal["auto", "on", "off"], option()] = "auto"
    """Refinement of --whole: as `lean3r reconstruct` does it, always, or not at all."""

    against: Annotated[tyro.conf.UseAppendAction[list[str]], option("PEER[,PEER ...]")] = field(default_factory=list)
    """Peers: sdpa (torch's fused attention), official (the authors' code), or more plans; may be repeated."""

    peer: Annotated[tyro.conf.UseAppendAction[list[str]], option("NAME=PATH")] = field(default_factory=list)
    """A clone of an official repository, vggt or pi3; may be repeated."""

    weights: Annotated[tyro.conf.UseAppendAction[list[str]], option("[MODEL=]FILE")] = field(default_factory=list)
    """Weights of a model; by default those on this machine, else random ones."""

    device: Annotated[str, option("NAME[,NAME ...]")] = "auto"
    """Devices: auto, cpu, cuda, mps."""

    dtype: Annotated[str, option("NAME[,NAME ...]")] = "auto"
    """Number types: auto, float32, bfloat16, float16; decibels are against the dense model in the first."""

    repeats: Annotated[int, option("N")] = 5
    """Runs of each program, by turns."""

    threads: Annotated[int | None, option("N")] = None
    """Threads of each program; by default torch's choice."""

    limit: Annotated[float, option("SECONDS")] = 600.0
    """The longest that one run may take; a longer one is an error row."""

    profile: Annotated[bool, option()] = False
    """Also write a trace of a run of each row, for chrome://tracing, into a folder beside FILE."""

    resume: Annotated[bool, option()] = False
    """Go on with FILE of an earlier run; rows that it has are not measured again."""

    overwrite: Annotated[Overwrite, option(help="Replace an earlier FILE.")] = False
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Measure, and print a table and the exponents, or JSON."""
        from lean3r.bench.run import bench, without_effect

        settings, console = self._settings(), Console(self.quiet)
        result = bench(
            settings, self.out, resume=self.resume, overwrite=self.overwrite, say=lambda row: _say(console, row)
        )
        if self.json:
            print(json.dumps(result))
            return
        print(format_table([_cells(row) for row in result["rows"]], HEADER))
        for line in without_effect(result["rows"]):
            print(line)
        for name, found in result["exponents"].items():
            powers = {"seconds": found["seconds"], "CPU seconds": found["cpu_seconds"], **found["parts"]}
            print(
                f"{name}: views to the power of", ", ".join(f"{_number(power)} ({of})" for of, power in powers.items())
            )

    def _settings(self) -> Any:
        from lean3r.bench.official import parse_clones
        from lean3r.bench.settings import Settings, parse_layers, parse_sizes, parse_views, split_plans
        from lean3r.errors import UsageError

        layers = parse_layers(self.layer)
        named = [name.strip() for name in self.models.split(",") if name.strip()]
        models = list(dict.fromkeys([*named, *layers])) or ["nano"]
        weights = []
        for text in self.weights:
            model, equals, file = text.partition("=")
            if not equals and len(models) > 1:
                raise UsageError(f"--weights is {text}, but there are {len(models)} models; expected MODEL=FILE.")
            weights.append((model, file) if equals else (models[0], text))
        plans = split_plans(self.plans)
        if not plans:
            raise UsageError("--plans is empty; expected names such as dense,gsa.")
        return Settings(
            tuple(models),
            plans,
            split_plans(self.against),
            parse_views(self.views),
            parse_sizes(self.resolution),
            tuple(self.device.split(",")),
            tuple(self.dtype.split(",")),
            tuple(weights),
            tuple((name, str(folder)) for name, folder in parse_clones(self.peer).items()),
            self.whole,
            self.refine,
            self.repeats,
            self.threads,
            self.limit,
            self.profile,
        )


def _say(console: Console, row: dict[str, Any]) -> None:
    """One line of progress."""
    cells = _cells(row)
    console.line(f"{row['views']} views", f"{cells[0]} {cells[1]}: {row['error'] or f'{cells[6]} s'}")


def _cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    what = row["plan"] if row["program"] == "lean3r" else row["program"]
    head = [row["model"], what, str(row["views"]), f"{row['height']}x{row['width']}", row["device"], row["dtype"]]
    if row["error"] is not None:
        return [*head, f"error: {row['error']}", *[""] * (len(HEADER) - len(head) - 1)]
    seconds = row["seconds"]
    return [
        *head,
        f"{seconds['median']:.4g}",
        f"{seconds['min']:.4g}-{seconds['max']:.4g}",
        f"{row['cpu_seconds']['median']:.4g}",
        f"{row['views_per_s']:.4g}",
        f"{row['peak_mb']:.0f}",
        _number(row["decibels"]),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
