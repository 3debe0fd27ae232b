"""`lean3r evaluate`: write a model's predictions for benchmarks, then score the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lean3r.cli.console import Console, format_table
from lean3r.cli.options import Device, Json, Offline, Plan, Quiet, Verbose, Weights, option
from lean3r.errors import InputError, UsageError

if TYPE_CHECKING:
    from lean3r.eval.protocols.items import Item

_Roots = Annotated[
    tyro.conf.UseAppendAction[list[str]],
    option("[SET=]DIR", help="Folder of the data; with several data sets SET=DIR, once for each."),
]


@dataclass
class Evaluate:
    """Evaluate a model on benchmarks: predictions are written first, and scored from their files.

    A run that was stopped continues where it was. See docs/how-to/evaluate.md.
    """

    benchmarks: Annotated[tyro.conf.Positional[list[str]], option("BENCHMARK [BENCHMARK ...]")]
    """Benchmarks, perhaps with a number of views as in synthetic@8, or tables of papers; list prints both."""

    root: _Roots = field(default_factory=list)

    out: Annotated[Path | None, option("DIR", "-o")] = None
    """Folder of the run: new, empty, or an earlier run of the same model to continue."""

    model: Annotated[str, option("NAME", "-m", help="Name of the model; `lean3r models` lists them.")] = "nano"
    weights: Weights = None
    plan: Plan = None
    offline: Offline = False
    device: Device = "auto"

    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], option()] = "auto"
    """Number type of the network, as for `lean3r reconstruct`."""

    resolution: Annotated[str | None, option("PIXELS|paper")] = None
    """Longest side of the network's pictures; paper: that of the papers; by default the model's own."""

    refine: Annotated[Literal["off", "auto", "on"], option()] = "off"
    """Refine cameras as `lean3r reconstruct` does; off: the network alone, as in papers."""

    views_from: Annotated[Path | None, option("FILE.json")] = None
    """Lists of views to use, {"scene": [0, 5, ...]}, instead of the benchmark's own choice."""

    limit: Annotated[int | None, option("N")] = None
    """Evaluate the first N scenes of each benchmark only."""

    processes: Annotated[int, option("N")] = 1
    """Processes that work side by side, in turn on the NVIDIA GPUs if there are several."""

    overwrite: Annotated[bool, option()] = False
    """Replace an earlier run of another configuration in the folder."""

    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Predict, score, print the figures, or JSON."""
        if self.benchmarks == ["list"]:
            print_list(self.json)
            return
        from lean3r.eval.papers import benchmarks_of
        from lean3r.eval.protocols.resolving import resolve
        from lean3r.eval.runs.data import items_of, left_out, read_chosen, roots_of
        from lean3r.eval.runs.folder import locked

        self._check()
        assert self.out is not None
        benchmarks = {name: resolve(name) for name in benchmarks_of(self.benchmarks)}
        chosen = None if self.views_from is None else read_chosen(self.views_from)
        roots = roots_of(self.root, [benchmark.data for benchmark in benchmarks.values()])
        console = Console(self.quiet)
        with console.stage("listing"):
            items = {name: items_of(name, roots, chosen, self.limit) for name in benchmarks}
        for what in dict.fromkeys(what for name in benchmarks for what in left_out(name, roots)):
            console.warn(what)
        self._predict(console, items, {name: str(root) for name, root in roots.items()})
        with locked(self.out):
            scores = score_run(console, self.out, items)
        label = self.model if self.plan is None else f"{self.model}, {self.plan}"
        print_scores(scores, self.out, self.benchmarks, label, as_json=self.json, all_figures=self.verbose)

    def _check(self) -> None:
        if self.out is None:
            raise UsageError("a folder for the run is needed: -o DIR.")
        for name in ("limit", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value}; expected at least 1.")
        if self.resolution not in (None, "paper") and not str(self.resolution).isdecimal():
            raise UsageError(f"--resolution is {self.resolution}; expected a number of pixels, or paper.")

    def _predict(self, console: Console, items: dict[str, list[Item]], roots: dict[str, str]) -> None:
        from lean3r import __version__
        from lean3r.cli.evaluated import LoadedModel
        from lean3r.eval.protocols.resolving import resolve
        from lean3r.eval.runs import folder
        from lean3r.eval.runs.predicting import Task, predict_all
        from lean3r.eval.runs.scoring import listing

        assert self.out is not None
        sides = {name: resolve(name).resolution if self.resolution == "paper" else self.resolution for name in items}
        side = {None if value is None else int(value) for value in sides.values()}
        if len(side) > 1:
            raise UsageError("--resolution paper differs among these benchmarks; evaluate them in runs of their own.")
        program = LoadedModel(
            model=self.model,
            weights=self.weights,
            plan=self.plan,
            offline=self.offline,
            device=self.device,
            dtype=self.dtype,
            resolution=side.pop(),
            refine=self.refine,
        )
        settings = {"resolution": program.resolution, "refine": self.refine, "dtype": self.dtype}
        run = self.out
        tasks = [Task(item, run / name / item.id) for name, each in items.items() for item in each]

        def begin(description: dict[str, Any]) -> None:
            data = {
                name: {"data": resolve(name).data, "root": roots.get(resolve(name).data), "items": listing(each)}
                for name, each in items.items()
            }
            config = {"format": folder.FORMAT, "lean3r": __version__, **description, "settings": settings}
            folder.begin(run, config | {"benchmarks": data}, overwrite=self.overwrite)

        with folder.locked(run), console.stage("predicting") as progress:
            predict_all(
                program,
                tasks,
                processes=self.processes,
                begin=begin,
                advanced=lambda done: progress(done, len(tasks)),
            )


def score_run(console: Console, run: Path, items: dict[str, list[Item]]) -> dict[str, dict[str, Any]]:
    """Score the benchmarks of a run and write their scores.json; return these by name. InputError if every item of all
    of them failed."""
    from lean3r.data.sets.scenes import first_few
    from lean3r.eval.protocols.resolving import resolve
    from lean3r.eval.runs.folder import SCORES, write_json
    from lean3r.eval.runs.scoring import score_benchmark

    scores = dict[str, dict[str, Any]]()
    for name, each in items.items():
        if departure := resolve(name).departure(each):
            console.warn(f"{name}: {departure}")
        with console.stage(f"scoring {name}") as progress:
            scores[name] = score_benchmark(name, each, run, advanced=_advance(progress, len(each)))
        (run / name).mkdir(parents=True, exist_ok=True)
        write_json(run / name / SCORES, scores[name])
        said: dict[str, list[str]] = {}
        for row in scores[name]["rows"]:
            for what in [row["error"]] if row["error"] is not None else row["problems"]:
                said.setdefault(what, []).append(row["id"])
        for what, ids in said.items():
            console.warn(f"{name}, {first_few(ids)}: {what}")
    if all(s["failed"] == len(s["rows"]) for s in scores.values()):
        first = next(iter(scores.values()))["rows"][0]
        raise InputError(f"no item of {', '.join(scores)} could be scored; the first, {first['id']}: {first['error']}")
    return scores


def _advance(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    return lambda done: progress(done, total)


def print_scores(
    scores: Mapping[str, Mapping[str, Any]],
    run: Path,
    asked: Sequence[str],
    label: str,
    *,
    as_json: bool,
    all_figures: bool,
) -> None:
    """The main figures of each benchmark, or `all_figures`, on standard output, then the tables of papers among the
    names that were asked for, with our row; or JSON without rows."""
    from lean3r.eval.figures import sorted_figures
    from lean3r.eval.papers import PAPERS
    from lean3r.eval.runs.folder import SCORES

    if as_json:
        print(json.dumps({name: {k: v for k, v in s.items() if k != "rows"} for name, s in scores.items()}))
        return
    for name, each in scores.items():
        failed = f", {each['failed']} failed" if each["failed"] else ""
        print(f"{name}: {each['title']} ({len(each['rows'])} items{failed})")
        main, variants = sorted_figures(each["figures"])
        shown = [*main, *variants] if all_figures else main
        rows = [[figure, f"{each['figures'][figure]:.4g} {each['units'][figure]}".strip()] for figure in shown]
        print(format_table(rows) if rows else "  no figures: it measures costs, which are in its rows")
        if len(shown) < len(each["figures"]):
            more = len(each["figures"]) - len(shown)
            print(f"  and {more} more, in other conventions: --verbose prints them, {run / name / SCORES} has all")
    for table in (PAPERS.get(name) for name in asked if name in PAPERS):
        head, lines = table.printed(scores, label)
        print(f"\n{table.title} ({table.source})\n{format_table(lines, head)}\n{table.notes}".rstrip())


def print_list(as_json: bool) -> None:
    """The benchmarks and the tables of papers."""
    from lean3r.eval.papers import PAPERS
    from lean3r.eval.protocols import BENCHMARKS

    rows = [
        {"name": name, "title": b.title, "data": b.data, "papers": b.papers, "notes": b.notes}
        for name, b in ((name, BENCHMARKS.get(name)) for name in BENCHMARKS)
    ]
    tables = [
        {"name": name, "title": PAPERS.get(name).title, "benchmarks": PAPERS.get(name).benchmarks} for name in PAPERS
    ]
    if as_json:
        print(json.dumps({"benchmarks": rows, "tables": tables}))
        return
    print(format_table([[r["name"], r["data"], r["title"]] for r in rows], ("benchmark", "data", "what")))
    print()
    print(format_table([[t["name"], t["title"]] for t in tables], ("table", "what")))
