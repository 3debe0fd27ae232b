"""Plots of a report as SVG whose text stays text, and whose lines follow a light or dark page."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of middle brightness, to be seen on white and on black.
COLOURS = ("#3b7dd8", "#d9652b", "#2a9d6f", "#b45bb8", "#b8892b", "#6b7f95", "#c9556a", "#3f9fb0")
MARKERS = "osD^vPX*"
_INK = "#0a0b0c"  # becomes the colour of the page's text
_STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#d7dce2}}</style>"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lean3r",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own; every text names the whole list
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
    "grid.alpha": 0.18,
    "legend.frameon": False,
}


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float | None]], axis: str) -> str:
    """Horizontal bars: a group for each label, in it a bar for each series; a missing value is a cross."""
    plot = _Drawing(7.2, 0.9 + len(labels) * (0.1 + 0.11 * len(series)))
    axes, high = plot.axes, 0.8 / len(series)
    known = [value for values in series.values() for value in values if value is not None]
    for place, (name, values) in enumerate(series.items()):
        at = np.arange(len(labels)) + (place - (len(series) - 1) / 2) * high
        widths = [0.0 if value is None else value for value in values]
        colour = COLOURS[place % len(COLOURS)]
        hatch = "//" * (place // len(COLOURS)) or None  # colours return from the ninth on
        axes.barh(at, widths, high * 0.88, label=name, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        missing = [y for y, value in zip(at, values, strict=True) if value is None]
        axes.plot([0.01 * max(known, default=1)] * len(missing), missing, "x", color=colour, markersize=5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel(axis)
    axes.grid(axis="x")
    return plot.svg(legend=len(series) > 1)


def log_log(
    series: Mapping[str, Sequence[tuple[float, float]]],
    lines: Mapping[str, tuple[float, float]],
    axis: str,
    lines_from: float = 0,
) -> str:
    """Points (views, cost) on logarithmic axes, with power laws (scale, exponent) as broken lines that begin at
    `lines_from` views."""
    plot = _Drawing(7.2, 4.2 + 0.11 * len(series))
    axes = plot.axes
    for place, (name, points) in enumerate(series.items()):
        (colour, marker), line = _look(place), lines.get(name)
        x, y = np.array(points, np.float64).reshape(-1, 2).T
        label = f"{name}: views^{line[1]:.2f}" if line else name
        axes.plot(x, y, marker, color=colour, label=label, markersize=6)
        if line:
            along = x[x >= lines_from]
            axes.plot(along, line[0] * along ** line[1], "--", color=colour, linewidth=1.1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    views = sorted({x for points in series.values() for x, _ in points})
    axes.set_xticks(views, [f"{each:g}" for each in views])
    axes.minorticks_off()
    costs = [y for points in series.values() for _, y in points]
    ticks = _log_ticks(min(costs) / 1.3, max(costs) * 1.3)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("views")
    axes.set_ylabel(axis)
    axes.grid()
    return plot.svg(legend=True)


def pareto(points: Mapping[str, tuple[float, float]], time_axis: str, axis: str, is_higher_better: bool) -> str:
    """A figure against time, with the front: points than which none is both faster and better."""
    plot = _Drawing(7.2, 4.4)
    axes = plot.axes
    for place, (name, (seconds, value)) in enumerate(points.items()):
        colour, marker = _look(place)
        axes.plot([seconds], [value], marker, color=colour, markersize=8, label=name, zorder=3)
    front = [points[name] for name in pareto_front(points, is_higher_better)]
    axes.step(*zip(*front, strict=True), where="post", color=_INK, linewidth=0.9, linestyle="--", label="front")
    axes.set_xscale("log")
    seconds = [x for x, _ in points.values()]
    start, end = min(seconds) / 1.6, max(seconds) * 1.6
    axes.set_xlim(start, end)
    ticks = _log_ticks(start, end)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.minorticks_off()
    axes.margins(y=0.12)
    axes.set_xlabel(time_axis)
    axes.set_ylabel(axis)
    axes.grid()
    return plot.svg(legend=True)


def _look(place: int) -> tuple[str, str]:
    """Colour and marker of a series: each pair once in 64."""
    turn = place // len(COLOURS)
    return COLOURS[place % len(COLOURS)], MARKERS[(place + turn) % len(MARKERS)]


def _log_ticks(start: float, end: float) -> list[float]:
    """1, 2, 5 of each decade in a range; of a long one, 1 of each decade, and of a short one more."""
    decades = range(math.floor(math.log10(start)), math.ceil(math.log10(end)))
    many = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if end < 5 * start else (1, 2, 5)
    steps = many if len(decades) < 5 else (1,)
    return [tick for decade in decades for step in steps if start <= (tick := step * 10.0**decade) <= end]


def pareto_front(points: Mapping[str, tuple[float, float]], is_higher_better: bool) -> list[str]:
    """Names of the points than which none is at least as fast and good and in one of both better, fastest first."""
    sign = -1 if is_higher_better else 1
    front, best = list[str](), float("inf")
    for name in sorted(points, key=lambda n: (points[n][0], sign * points[n][1])):
        if sign * points[name][1] < best:
            front.append(name)
            best = sign * points[name][1]
    return front


class _Drawing:
    """An empty figure with one pair of axes, in inches."""

    def __init__(self, width: float, height: float):
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingExtraError.of("drawing plots", "eval")
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(_SETTINGS):
            self.figure: Figure = Figure(figsize=(width, height), layout="constrained")
            self.axes: Axes = self.figure.add_subplot()

    def svg(self, legend: bool) -> str:
        """The figure as SVG, its legend above."""
        from matplotlib import rc_context

        options: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}, "transparent": True}
        with rc_context(_SETTINGS), io.StringIO() as file:
            if legend:
                self.figure.legend(loc="outside upper left", ncols=2, fontsize=9)
            self.figure.savefig(file, format="svg", **options)
            text = file.getvalue()
        text = text[text.index("<svg") :].replace(_INK, "currentColor")
        text = re.sub(r"\n\s+", "\n", text)
        text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)
        return text.replace(">", f">{_STYLE}", 1)
