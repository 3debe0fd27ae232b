"""`lean3r report`: scored runs as a page, against each other, and as a gate."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lean3r import __version__
from lean3r.cli.console import Console
from lean3r.cli.options import Json, Out, Overwrite, Quiet, Verbose, option


@dataclass
class Report:
    """Make a page of scored runs with plots and the worst items, and end with 1 if a run is worse than the first.

    See docs/how-to/report.md.
    """

    out: Annotated[Out, option(help="Folder to write report.html, report.md and report.json into.")]

    runs: Annotated[tyro.conf.Positional[list[Path]], option("RUN [RUN ...]")] = field(default_factory=list)
    """Folders of `lean3r evaluate` or `lean3r score`; all are compared with the first."""

    against: Annotated[Path | None, option("RUN")] = None
    """The run to compare with, instead of the first."""

    tolerance: Annotated[tyro.conf.UseAppendAction[list[str]], option("FIGURE=LOSS")] = field(default_factory=list)
    """Loss that is no regression, such as auc30=0.5 or seconds=20%, perhaps with wildcards; may be repeated."""

    bench: Annotated[tyro.conf.UseAppendAction[list[Path]], option("FILE")] = field(default_factory=list)
    """File of `lean3r bench`, for plots of time and memory against views; may be repeated."""

    overwrite: Overwrite = False
    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False

    def run(self) -> None:
        """Write the report; RegressionError if something got worse."""
        from lean3r.errors import RegressionError, UsageError
        from lean3r.eval.report.bench import read_benches
        from lean3r.eval.report.compare import parse_tolerances
        from lean3r.eval.report.content import make_report
        from lean3r.eval.report.runs import read_runs
        from lean3r.eval.report.writing import write_report
        from lean3r.eval.runs.scores import pool_resamples, scene_of
        from lean3r.export.atomic import atomic_folder
        from lean3r.export.manifest import write_short

        if not self.runs and not self.bench:
            raise UsageError("nothing to report: name folders of lean3r evaluate, or --bench with a file.")
        tolerances = parse_tolerances(self.tolerance)
        first = [] if self.against is None else [self.against]
        others = [run for run in self.runs if self.against is None or run.resolve() != self.against.resolve()]
        inputs = [*first, *others, *self.bench]
        with atomic_folder(self.out, overwrite=self.overwrite, inputs=map(str, inputs)) as folder:
            runs = read_runs([*first, *others])
            report = make_report(runs, pool_resamples, tolerances, read_benches(self.bench), self.out, scene_of)
            write_report(report, folder, __version__)
            write_short(folder)
        console = Console(self.quiet)
        for text in report.warnings:
            console.warn(text)
        print(json.dumps(report.record(__version__)) if self.json else self.out / "report.html")
        if report.worse:
            raise RegressionError(f"worse beyond the tolerance: {' | '.join(report.worse)}. See {self.out}/report.html")
