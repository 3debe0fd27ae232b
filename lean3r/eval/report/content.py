"""All that a report is made of, and report.json, which holds what the report computes itself."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lean3r.data.sets.scenes import first_few
from lean3r.eval.report.bench import QUANTITIES, Bench, Fit, fit
from lean3r.eval.report.compare import (
    Change,
    Comparison,
    Interval,
    Pool,
    SceneOf,
    Tolerance,
    compare,
    costs,
    intervals,
    of_its_own,
)
from lean3r.eval.report.page import Figure, pointer, show
from lean3r.eval.report.papers import paper_tables
from lean3r.eval.report.runs import FORMAT, Run

REPORT = "report.json"
_NAMED = 3  # figures in a message


@dataclass(frozen=True)
class Report:
    """Runs, the reference first; intervals by run, benchmark and figure; `folder` is where the report will be."""

    runs: list[Run]
    intervals: dict[str, dict[str, dict[str, Interval | None]]]
    comparisons: list[Comparison]
    benches: list[Bench]
    folder: Path

    @property
    def benchmarks(self) -> dict[str, list[Run]]:
        """Benchmark -> the runs that have it."""
        names = dict.fromkeys(name for run in self.runs for name in run.scores)
        return {name: [run for run in self.runs if name in run.scores] for name in names}

    @property
    def worse(self) -> list[str]:
        """What got worse, a text for each comparison in which something did."""
        return [f"{c.run}, {c.benchmark}: {self._losses(c)}" for c in self.comparisons if c.worse or c.failed]

    @property
    def warnings(self) -> list[str]:
        """What limits the report: benchmarks without scores, failed items, items that only one run has."""
        found = [
            f"{run.name}: {name} has no scores yet (lean3r score {run.folder})"
            for run in self.runs
            for name in run.unscored
        ]
        for run in self.runs:
            for name, scores in run.scores.items():
                if failed := scores.failed:
                    found.append(
                        f"{run.name}, {name}: {len(failed)} of {len(scores.rows)} items failed ({first_few(failed)})"
                    )
        for each in self.comparisons:
            for who, ids in ((each.against, each.only_before), (each.run, each.only_after)):
                if ids:
                    found.append(
                        f"{each.benchmark}: {len(ids)} items are in {who} only and are not compared ({first_few(ids)})"
                    )
        for name, runs in self.benchmarks.items():
            if len(runs) < len(self.runs):
                found.append(f"{name} is in {', '.join(run.name for run in runs)} only")
        return found

    @property
    def papers(self) -> dict[str, dict[str, Any]]:
        """The tables of papers to which a benchmark of the runs belongs; see `paper_tables`."""
        return paper_tables(self.runs)

    @property
    def fits(self) -> list[Fit]:
        """How the costs of each program grow with the number of views, where several were measured."""
        return [
            found
            for bench in self.benches
            for line in bench.lines
            for quantity in QUANTITIES
            if (found := fit(bench, line, quantity, self.place(bench.path)))
        ]

    def place(self, path: Path) -> str:
        """A file as the report names it: relative to its folder."""
        try:
            return Path(os.path.relpath(path.resolve(), self.folder.resolve())).as_posix()
        except ValueError:  # another drive
            return path.resolve().as_posix()

    def own(self, value: object, *keys: str | int, unit: str = "", signed: bool = False) -> Figure:
        """A figure of report.json at these keys."""
        return Figure(value, f"{REPORT}#{pointer(*keys)}", unit, signed)

    def read(self, value: object, path: Path, *keys: str | int, unit: str = "") -> Figure:
        """A figure of another JSON file at these keys."""
        return Figure(value, f"{self.place(path)}#{pointer(*keys)}", unit)

    def record(self, version: str) -> dict[str, Any]:
        """The content of report.json, made by this version of lean3r."""
        sources = [run.folder / "run.json" for run in self.runs]
        sources += [scores.path for run in self.runs for scores in run.scores.values()]
        sources += [bench.path for bench in self.benches]
        return {
            "format": FORMAT,
            "lean3r": version,
            "sources": {
                self.place(path): f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sources
            },
            "runs": {run.name: {name: self._summary(run, name) for name in run.scores} for run in self.runs},
            "comparisons": [dataclasses.asdict(each) for each in self.comparisons],
            "papers": self.papers,
            "costs": [dataclasses.asdict(each) for each in self.fits],
            "warnings": self.warnings,
            "worse": self.worse,
        }

    def costs(self, run: Run, benchmark: str) -> dict[str, float | None]:
        """What an item of a benchmark costs, None if the run does not say."""
        found = costs(run.scores[benchmark].rows)
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    def _summary(self, run: Run, benchmark: str) -> dict[str, Any]:
        scores = run.scores[benchmark]
        spans = self.intervals[run.name][benchmark]
        return {
            "items": len(scores.rows),
            "failed": len(scores.failed),
            "costs": self.costs(run, benchmark),
            "intervals": {figure: span and dataclasses.asdict(span) for figure, span in spans.items()},
        }

    def _losses(self, comparison: Comparison) -> str:
        (run,) = (run for run in self.runs if run.name == comparison.run)
        units = run.scores[comparison.benchmark]
        names = comparison.worse
        parts = [_loss(figure, comparison.changes[figure], units.unit(figure)) for figure in names[:_NAMED]]
        if len(names) > _NAMED:
            parts.append(f"{len(names) - _NAMED} more figures")
        if comparison.failed:
            parts.append(f"failed, but not before: {first_few(comparison.failed)}")
        return "; ".join(parts)


def make_report(
    runs: Sequence[Run],
    pool: Pool,
    tolerances: Mapping[str, Tolerance],
    benches: Sequence[Bench],
    folder: Path,
    scene_of: SceneOf = of_its_own,
) -> Report:
    """Compute intervals, and compare all runs with the first. Raises what `compare` raises."""
    spans = {run.name: {name: intervals(scores, pool, scene_of) for name, scores in run.scores.items()} for run in runs}
    comparisons = compare(runs, runs[0], pool, tolerances, scene_of) if runs else []
    return Report(list(runs), spans, comparisons, list(benches), folder)


def _loss(figure: str, change: Change, unit: str) -> str:
    before, after = show(change.before, unit), show(change.after, unit)
    if change.verdict == "lost":
        return f"{figure} is no longer a number everywhere"
    span = f", 95 % {show(change.low, unit, True)} to {show(change.high, unit, True)}" if change.low is not None else ""
    difference, tolerance = show(change.difference, unit, True), show(change.tolerance, unit)
    return f"{figure} {before} -> {after} ({difference}{span}, tolerance {tolerance})"
