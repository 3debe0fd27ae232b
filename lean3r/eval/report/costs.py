"""What accuracy costs: a figure against time, and time and memory against the number of views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lean3r.eval.report.bench import QUANTITIES, seconds_of
from lean3r.eval.report.content import Report
from lean3r.eval.report.page import Block, Cell, Figure, Heading, Plot, Table, Text, cell
from lean3r.eval.report.plots import log_log, pareto, pareto_front
from lean3r.eval.report.runs import Run

_COLUMNS = {"seconds": "s", "cpu_seconds": "s", "peak_mb": "MB", "activation_mb": "MB"}


def pareto_blocks(report: Report, name: str, runs: list[Run], figures: Sequence[str]) -> Iterator[Block]:
    """Figure against time of several runs. Times are those of `lean3r bench` if a file has all runs' models and plans
    at the benchmark's number of views, else the median of the network's seconds during the evaluation."""
    for figure in figures:
        measured = {run.name: _measured(report, name, run) for run in runs}
        if None in measured.values():
            measured = {run.name: _network_seconds(report, name, run) for run in runs}
            where = "the network during the evaluation"
        else:
            where = "lean3r bench"
        rows = list[tuple[Cell, ...]]()
        points = dict[str, tuple[float, float]]()
        for run in runs:
            scores, seconds = run.scores[name], measured[run.name]
            value = scores.figures.get(figure)
            if seconds is None or not isinstance(seconds.value, float) or seconds.value <= 0 or value is None:
                continue
            points[run.name] = (seconds.value, value)
            rows.append(
                (
                    cell(run.name),
                    cell(seconds),
                    cell(report.read(value, scores.path, "figures", figure, unit=scores.unit(figure))),
                )
            )
        if len(points) < 2:
            return
        first = runs[0].scores[name]
        unit, is_higher_better = first.unit(figure), first.directions[figure] == "higher"
        front = pareto_front(points, is_higher_better)
        axis = f"{figure} ({unit})" if unit else figure
        alt = f"{figure} against seconds for {', '.join(points)}. On the front: {', '.join(front)}."
        svg = pareto(points, "seconds per item", axis, is_higher_better)
        better = "higher and further left" if is_higher_better else "lower and further left"
        yield Plot(f"{name}-{figure}-time", svg, alt, f"{figure} against the time of {where}: {better} is better.")
        yield Table("The points of the plot", ("run", "seconds (s)", axis), ("", "", figure), rows, folded=True)


def _measured(report: Report, name: str, run: Run) -> Figure | None:
    views = run.scores[name].protocol.get("views")
    for bench in report.benches:
        row = seconds_of(bench, run.about.get("model"), run.about.get("plan"), views)
        if row is not None:
            return report.read(bench.value(row, "seconds"), bench.path, "rows", row, "seconds", "median")
    return None


def _network_seconds(report: Report, name: str, run: Run) -> Figure:
    keys = ("runs", run.name, name, "costs", "network_seconds")
    return report.own(report.costs(run, name)["network_seconds"], *keys)


def cost_blocks(report: Report) -> Iterator[Block]:
    """For each file of `lean3r bench`: plots of time and memory, exponents, and the measured rows."""
    for number, bench in enumerate(report.benches):
        place = report.place(bench.path)
        yield Heading(2, f"Time and memory against views: {place}")
        fits = [(n, fit) for n, fit in enumerate(report.fits) if fit.file == place]
        for quantity, unit in QUANTITIES.items():
            series = {
                line: [(views, value) for views, row in points if (value := bench.value(row, quantity))]
                for line, points in bench.lines.items()
            }
            series = {line: points for line, points in series.items() if points}
            if not series:
                continue
            lines = {fit.line: (fit.scale, fit.exponent) for _, fit in fits if fit.quantity == quantity}
            grows = ", ".join(f"{line} as views to the power of {power:.2f}" for line, (_, power) in lines.items())
            svg = log_log(series, lines, f"{quantity} ({unit})")
            alt = f"{quantity} against the number of views, both logarithmic{': ' if grows else ''}{grows}."
            yield Plot(f"bench-{number}-{quantity}", svg, alt, _CAPTIONS[quantity])
        if fits:
            yield _exponents(report, [(n, fit.line, fit.quantity) for n, fit in fits])
        else:
            yield Text(cell("Each program was measured at one number of views, so nothing is fitted."))
        yield _rows(report, number)


_CAPTIONS = {
    "seconds": "Median wall seconds of a run. Broken lines are the fitted power laws.",
    "cpu_seconds": "Median seconds of all cores, which other work on the machine changes less.",
    "activation_mb": "Memory that a run takes beyond what was in use before. Broken lines are the fitted power laws.",
}


def _exponents(report: Report, fits: Sequence[tuple[int, str, str]]) -> Table:
    rows = [
        (
            cell(line),
            cell(quantity),
            cell(report.own(report.fits[n].exponent, "costs", n, "exponent")),
            cell(report.own(report.fits[n].end_exponent, "costs", n, "end_exponent")),
        )
        for n, line, quantity in fits
    ]
    head = ("program", "quantity", "exponent", "exponent of the upper half")
    return Table("Growth with the number of views, as a power of it", head, ("", "", "exponent", "end_exponent"), rows)


def _rows(report: Report, number: int) -> Table:
    bench = report.benches[number]

    def value(row: int, quantity: str) -> Cell:
        keys = ("rows", row, quantity)
        if isinstance(bench.rows[row].get(quantity), dict):
            keys += ("median",)
        return cell(report.read(bench.value(row, quantity), bench.path, *keys))

    rows = [
        (
            cell(line),
            cell(report.read(views, bench.path, "rows", row, "views")),
            *(value(row, quantity) for quantity in _COLUMNS),
        )
        for line, points in bench.lines.items()
        for views, row in points
    ]
    head = ("program", "views", *(f"{name} ({unit})" for name, unit in _COLUMNS.items()))
    failed = sum(row.get("error") is not None for row in bench.rows)
    caption = "Measured: medians" + (f"; {failed} rows have no figures, the file says why" if failed else "")
    return Table(caption, head, ("", "views", *_COLUMNS), rows, folded=True)
