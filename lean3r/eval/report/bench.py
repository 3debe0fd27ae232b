"""Files of `lean3r bench`: how time and memory grow with the number of views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lean3r.errors import InputError
from lean3r.eval.report.runs import number, read_json

Point = tuple[int, int]  # number of views, row of the file
QUANTITIES = {"seconds": "s", "cpu_seconds": "s", "activation_mb": "MB"}
"""What is fitted, with units: medians of wall seconds and of seconds of all cores, memory beyond what was in use."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A file of `lean3r bench`: its rows, and by name the rows of each program and size, by their number of views."""

    path: Path
    rows: list[dict[str, Any]]
    lines: dict[str, list[Point]]

    def value(self, row: int, quantity: str) -> float | None:
        """A quantity of a row: the median where it was measured several times."""
        found = self.rows[row].get(quantity)
        return number(found.get("median") if isinstance(found, dict) else found)


@dataclass(frozen=True)
class Fit:
    """The power of the number of views with which a quantity grows: a line through the logarithms of all points, and
    `end_exponent` of those in the upper half, where what does not grow matters less; `scale` is the value at one view
    on the first line."""

    file: str
    line: str
    quantity: str
    exponent: float
    end_exponent: float | None
    scale: float


def read_benches(paths: Sequence[Path]) -> list[Bench]:
    """Read files of `lean3r bench`; InputError if one is none, or if no row has figures."""
    return [_read_bench(path) for path in paths]


def _read_bench(path: Path) -> Bench:
    content = read_json(path, "lean3r bench --overwrite")
    try:
        rows = list(content["rows"])
        good = [n for n, row in enumerate(rows) if row["error"] is None]
        names = _names([rows[n] for n in good])
        lines: dict[str, list[Point]] = {}
        for n, name in zip(good, names, strict=True):
            lines.setdefault(name, []).append((int(rows[n]["views"]), n))
        bench = Bench(path, rows, {name: sorted(points) for name, points in lines.items()})
        for n in good:
            for quantity in (*QUANTITIES, "peak_mb"):
                bench.value(n, quantity)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a file of lean3r bench ({type(error).__name__}: {error}).") from error
    if not lines:
        raise InputError(f"{path} has no row with figures: every program failed. Its rows say why.")
    return bench


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What rows are called: program and plan, and of model, size, device and number type what differs among them."""
    parts = [
        (
            str(row["model"]),
            str(row["plan"] if row["program"] == "lean3r" else row["program"]),
            f"{row['height']}x{row['width']}",
            str(row["device"]),
            str(row["dtype"]),
            "whole" if row.get("asked", {}).get("whole") else "",
        )
        for row in rows
    ]
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    differ[:2] = True, True
    return [" ".join(part for part, shown in zip(each, differ, strict=True) if shown and part) for each in parts]


def fit(bench: Bench, line: str, quantity: str, file: str) -> Fit | None:
    """How a quantity of one program grows; None with fewer than two numbers of views."""
    known = [(views, bench.value(row, quantity)) for views, row in bench.lines[line]]
    points = [(views, value) for views, value in known if value is not None and value > 0]
    x, y = np.log(np.array(points, np.float64).reshape(-1, 2)).T
    if len(np.unique(x)) < 2:
        return None
    exponent, offset = np.polyfit(x, y, 1)
    end = x >= np.median(x)
    end_exponent = float(np.polyfit(x[end], y[end], 1)[0]) if len(np.unique(x[end])) > 1 else None
    return Fit(file, line, quantity, float(exponent), end_exponent, float(np.exp(offset)))


def seconds_of(bench: Bench, model: object, plan: object, views: object) -> int | None:
    """The row of our program for this model, plan and number of views; None if it was not measured."""
    for n in (n for points in bench.lines.values() for _, n in points):
        row = bench.rows[n]
        if (row["program"], row["model"], row["plan"], row["views"]) == ("lean3r", model, plan or "dense", views):
            return n
    return None
