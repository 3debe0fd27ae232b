"""`lean3r score`: score predictions of any program, without running it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from lean3r.cli.console import Console
from lean3r.cli.evaluate import print_scores, score_run
from lean3r.cli.options import Json, Quiet, Verbose, option
from lean3r.errors import InputError, UsageError


@dataclass
class Score:
    """Score the predictions in a folder: those of `lean3r evaluate`, or files of any other program.

    See docs/how-to/score.md.
    """

    run_folder: Annotated[tyro.conf.Positional[Path], option("RUN")]
    """Folder of predictions: RUN/BENCHMARK/ITEM/..."""

    benchmark: Annotated[tyro.conf.UseAppendAction[list[str]], option("NAME")] = field(default_factory=list)
    """Benchmark to score; may be repeated. By default those in RUN/run.json."""

    root: Annotated[
        tyro.conf.UseAppendAction[list[str]],
        option("[SET=]DIR", help="Folder of the data; by default that of the run."),
    ] = field(default_factory=list)

    views_from: Annotated[Path | None, option("FILE.json")] = None
    """Lists of views that were predicted, as for `lean3r evaluate`."""

    limit: Annotated[int | None, option("N")] = None
    """Score the first N scenes of each benchmark only."""

    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Score, write scores.json, print the figures, or JSON."""
        from lean3r.eval.papers import benchmarks_of
        from lean3r.eval.protocols.resolving import resolve
        from lean3r.eval.runs import folder
        from lean3r.eval.runs.data import items_of, read_chosen, roots_of
        from lean3r.eval.runs.scoring import listing

        run = self.run_folder
        if not run.is_dir():
            raise InputError(f"no such folder: {run}; expected the folder of a run (`lean3r evaluate -o`)")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; expected at least 1.")
        config = folder.read_json(run / folder.RUN, "a run") if (run / folder.RUN).exists() else {}
        recorded: dict[str, Any] = config.get("benchmarks", {})
        names = benchmarks_of(self.benchmark) or list(recorded)
        if not names:
            raise UsageError(f"{run} has no {folder.RUN}, so the benchmark must be named: --benchmark NAME --root DIR.")
        benchmarks = {name: resolve(name) for name in names}
        known = [f"{r['data']}={r['root']}" for name, r in recorded.items() if name in names and r.get("root")]
        roots = roots_of([*known, *self.root], [benchmark.data for benchmark in benchmarks.values()])
        items = {}
        for name in names:
            stated = recorded.get(name, {}).get("items")
            chosen = read_chosen(self.views_from) if self.views_from else None
            most = min(filter(None, (self.limit, stated and len(stated))), default=None)
            items[name] = items_of(name, roots, chosen, most)
            if stated is not None and listing(items[name]) != stated[: len(items[name])]:
                raise InputError(
                    f"the data of {name} are not those of the run: it has {len(stated)} items, and "
                    f"{roots.get(benchmarks[name].data)} gives others. Give its --root and --views-from."
                )
        console = Console(self.quiet)
        with folder.locked(run):
            scores = score_run(console, run, items)
        label = config.get("model", run.name)
        print_scores(scores, run, self.benchmark, label, as_json=self.json, all_figures=self.verbose)
