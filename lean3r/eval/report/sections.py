"""The page of a report from top to bottom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lean3r.data.sets.scenes import first_few
from lean3r.eval.figures import sorted_figures
from lean3r.eval.report.compare import Comparison
from lean3r.eval.report.content import Report
from lean3r.eval.report.costs import cost_blocks, pareto_blocks
from lean3r.eval.report.page import NOTHING, Block, Cell, Figure, Gallery, Heading, Picture, Plot, Table, Text, cell
from lean3r.eval.report.papers import paper_blocks
from lean3r.eval.report.plots import bars
from lean3r.eval.report.runs import COSTS, Row, Run, Scores, picture_of

MOST_BARS = 40
WORST = 4
_COLUMNS = 6
_ARROWS = {"higher": "↑", "lower": "↓"}


def blocks(report: Report) -> Iterator[Block]:
    """Verdict, runs, a section for each benchmark, the tables of papers, costs."""
    yield Heading(1, _title(report))
    yield from _verdict(report)
    for place, text in enumerate(report.warnings):
        yield Text(cell("Note: ", report.own(text, "warnings", place), "."))
    if report.runs:
        yield _about(report)
    for name, runs in report.benchmarks.items():
        yield from _benchmark(report, name, runs)
    yield from paper_blocks(report.papers, report.own)
    yield from cost_blocks(report)


def main_figures(scores: Scores) -> list[str]:
    """The figures that are drawn, at most two: the one at the widest angle, and the first of another kind."""
    plain, variants = sorted_figures(scores.directions)
    angles = [figure for figure in plain if figure.startswith("auc")]
    others = [figure for figure in plain if figure not in angles]
    return [*angles[-1:], *others, *variants][:2]


def _title(report: Report) -> str:
    if not report.runs:
        return "Time and memory"
    first, *others = (run.name for run in report.runs)
    compared = ", ".join(others) if len(others) <= 3 else f"{len(others)} runs"
    return f"{compared} against {first}" if others else f"{first}: {', '.join(report.benchmarks)}"


def _verdict(report: Report) -> Iterator[Block]:
    if not report.comparisons:
        return
    reference = report.runs[0].name
    worse = [
        f"{c.run} {c.benchmark} ({first_few([*(['failed items'] if c.failed else []), *c.worse])})"
        for c in report.comparisons
        if c.worse or c.failed
    ]
    if worse:
        yield Text(cell(f"Worse than {reference} beyond the tolerance: {', '.join(worse)}.", mark="worse"))
    else:
        yield Text(cell(f"Nothing is worse than in {reference} beyond the tolerance.", mark="better"))
    unclear = [f"{c.run} {c.benchmark} ({first_few(u)})" for c in report.comparisons if (u := c.named("unclear"))]
    if unclear:
        yield Text(cell(f"Beyond the tolerance, but the items disagree: {', '.join(unclear)}.", mark="unclear"))


def _about(report: Report) -> Table:
    def row(run: Run) -> tuple[Cell, ...]:
        path, about = run.folder / "run.json", run.about
        return (cell(run.name), *(cell(*_values(report, path, about, key)) for key in head[1:]))

    head = ("run", "model", "plan", "dtype", "device", "settings", "hardware", "lean3r")
    return Table("The runs, as their run.json says", head, ("", *head[1:]), [row(run) for run in report.runs])


def _values(report: Report, path: Path, content: Mapping[str, Any], key: str) -> list[str | Figure]:
    """A value of a JSON file, or those of an object, each with its name."""
    known = content.get(key)
    if not isinstance(known, dict):
        return [NOTHING] if known is None else [report.read(known, path, key)]
    parts = list[str | Figure]()
    for name, value in known.items():
        if value not in (None, ""):
            parts += [f"{', ' if parts else ''}{name} ", report.read(value, path, key, name)]
    return parts


def _benchmark(report: Report, name: str, runs: list[Run]) -> Iterator[Block]:
    scores = [run.scores[name] for run in runs]
    first = scores[0]
    yield Heading(2, first.title)
    said: list[str | Figure] = [f"{name}. "]
    for key, before in (("paper", "Papers: "), ("notes", "")):
        if text := getattr(first, key):
            said += [before, report.read(text.rstrip("."), first.path, key), ". "]
    yield Text(cell(*said, *_values(report, first.path, {"protocol": first.protocol}, "protocol")))
    plain, variants = sorted_figures([figure for each in scores for figure in each.directions])
    figures = [*plain, *variants]
    for start in range(0, len(figures), _COLUMNS):
        yield _figures(report, name, runs, figures[start : start + _COLUMNS], folded=start > 0)
    for place, comparison in enumerate(report.comparisons):
        if comparison.benchmark == name:
            shown = [figure for figure in comparison.changes if figure not in variants]
            others = [figure for figure in comparison.changes if figure in variants]
            yield _changes(report, place, comparison, first, shown, folded=False)
            if others:
                yield _changes(report, place, comparison, first, others, folded=True)
    yield from pareto_blocks(report, name, runs, main_figures(first)[:1])
    for figure in main_figures(first):
        yield _bars(name, scores, runs, figure)
    for run in runs:
        yield from _failures(run, run.scores[name])
        yield from _worst(report, name, run, main_figures(first)[:1])
        yield _items(report, name, run)
    yield _costs(report, name, runs)


def _label(scores: Scores, figure: str) -> str:
    unit, arrow = scores.unit(figure), _ARROWS.get(scores.directions.get(figure, "lower"), "")
    return f"{figure}{f' ({unit})' if unit else ''} {arrow}"


def _figures(report: Report, name: str, runs: list[Run], figures: Sequence[str], *, folded: bool) -> Table:
    def value(run: Run, figure: str) -> Cell:
        scores, span = run.scores[name], report.intervals[run.name][name].get(figure)
        if figure not in scores.figures:
            return cell(NOTHING)
        unit = scores.unit(figure)
        main = report.read(scores.figures[figure], scores.path, "figures", figure, unit=unit)
        if span is None:
            return cell(main)
        keys = ("runs", run.name, name, "intervals", figure)
        low, high = (report.own(end, *keys, key, unit=unit) for key, end in (("low", span.low), ("high", span.high)))
        return cell(main, " (", low, " to ", high, ")")

    def row(run: Run) -> tuple[Cell, ...]:
        scores = run.scores[name]
        items = report.own(len(scores.rows), "runs", run.name, name, "items")
        failed = report.own(len(scores.failed), "runs", run.name, name, "failed")
        counts = (cell(items), cell(failed, mark="failed" if scores.failed else ""))
        return (cell(run.name), *counts, *(value(run, figure) for figure in figures))

    caption = f"{figures[0]} to {figures[-1]}" if folded else "Figures, with 95 % intervals by bootstrap over scenes"
    head = ("run", "items", "failed", *(_label(runs[0].scores[name], figure) for figure in figures))
    return Table(caption, head, ("", "items", "failed", *figures), [row(run) for run in runs], folded)


def _changes(
    report: Report, place: int, comparison: Comparison, scores: Scores, figures: Sequence[str], *, folded: bool
) -> Table:
    def row(figure: str) -> tuple[Cell, ...]:
        change, unit = comparison.changes[figure], scores.unit(figure)

        def at(key: str, *, signed: bool = False) -> Cell:
            value = getattr(change, key)
            return cell(report.own(value, "comparisons", place, "changes", figure, key, unit=unit, signed=signed))

        ends = (at(key, signed=True) for key in ("difference", "low", "high"))
        mark = change.verdict if change.verdict not in ("same", "none") else ""
        verdict = {"none": "no numbers", "lost": "lost: no longer a number"}.get(change.verdict, change.verdict)
        return (
            cell(_label(scores, figure)),
            at("before"),
            at("after"),
            *ends,
            at("tolerance"),
            cell(verdict, mark=mark),
        )

    keys = ("before", "after", "difference", "low", "high", "tolerance")
    head = ("figure", comparison.against, comparison.run, "difference", "95 % from", "to", "tolerance", "verdict")
    what = "variants of the figures" if folded else f"on the {comparison.items} items that both have scores of"
    caption = f"{comparison.run} against {comparison.against}, {what}"
    return Table(caption, head, ("", *keys, ""), [row(figure) for figure in figures], folded)


def _bars(name: str, scores: list[Scores], runs: list[Run], figure: str) -> Plot:
    rows = [{row["id"]: row["figures"].get(figure) for row in each.rows} for each in scores]
    ids = list(dict.fromkeys(key for each in rows for key in each))
    caption = f"{figure} of each item; a cross stands for no figure"
    if len(ids) > MOST_BARS:
        ids = sorted(ids, key=lambda key: _badness(rows[-1].get(key), scores[0].directions.get(figure)))[:MOST_BARS]
        caption += f"; the {MOST_BARS} worst of {runs[-1].name}"
    series = {run.name: [each.get(key) for key in ids] for run, each in zip(runs, rows, strict=True)}
    alt = f"Bars: {figure} of {len(ids)} items of {name} for {', '.join(series)}. The table of items has the numbers."
    return Plot(f"{_file(name)}-{figure}", bars(ids, series, _label(scores[0], figure)), alt, f"{caption}.")


def _badness(value: float | None, direction: str | None) -> tuple[bool, float]:
    """What sorts the worst first."""
    return (value is not None, 0.0 if value is None else value if direction == "higher" else -value)


def _items(report: Report, name: str, run: Run) -> Table:
    scores = run.scores[name]
    figures = list(scores.directions)

    def row(place: int, each: Row) -> tuple[Cell, ...]:
        def value(figure: str) -> Cell:
            if figure not in each["figures"]:
                return cell(NOTHING)
            unit, keys = scores.unit(figure), ("rows", place, "figures", figure)
            return cell(report.read(each["figures"][figure], scores.path, *keys, unit=unit))

        return (cell(each["id"]), *(value(figure) for figure in figures))

    head = ("item", *(_label(scores, figure) for figure in figures))
    rows = [row(place, each) for place, each in enumerate(scores.rows)]
    return Table(f"Items of {run.name}, {name}", head, ("", *figures), rows, folded=True)


def _failures(run: Run, scores: Scores) -> Iterator[Table]:
    rows = [(cell(row["id"]), cell(row["error"], mark="failed")) for row in scores.rows if row["error"] is not None]
    if rows:
        yield Table(f"Failed items of {run.name}", ("item", "why"), ("", ""), rows)


def _worst(report: Report, name: str, run: Run, figures: Sequence[str]) -> Iterator[Block]:
    scores = run.scores[name]
    for figure in figures:
        direction = scores.directions.get(figure)
        rows = sorted(enumerate(scores.rows), key=lambda pair: _badness(pair[1]["figures"].get(figure), direction))
        yield Heading(3, f"Worst items of {run.name} by {figure}")
        yield Gallery([_picture(report, name, run, figure, *pair) for pair in rows[:WORST]])


def _picture(report: Report, name: str, run: Run, figure: str, place: int, row: Row) -> Picture:
    scores = run.scores[name]
    if row["error"] is not None:
        said: tuple[str | Figure, ...] = (f"{row['id']}: {row['error']}",)
    else:
        keys, unit = ("rows", place, "figures", figure), scores.unit(figure)
        value = report.read(row["figures"].get(figure), scores.path, *keys, unit=unit)
        said = (f"{row['id']}: {figure} ", value, f" {unit}" if unit else "")
    file = f"{_file(run.name)}-{_file(name)}-{place}"
    return Picture(file, picture_of(scores, row), f"Pictures of {row['id']}", cell(*said))


def _costs(report: Report, name: str, runs: list[Run]) -> Table:
    def row(run: Run) -> tuple[Cell, ...]:
        found = report.costs(run, name)
        values = (report.own(found[key], "runs", run.name, name, "costs", key) for key in COSTS)
        return (cell(run.name), *map(cell, values))

    head = ("run", *(f"{key} ({unit})" for key, unit in COSTS.items()))
    caption = "Costs of an item: medians, and the largest peak of memory. Times depend on what else the machine did"
    return Table(caption, head, ("", *COSTS), [row(run) for run in runs])


def _file(name: str) -> str:
    """A name as that of a file."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
