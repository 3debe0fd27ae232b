"""How time grows with the number of views: the slope of a line through the logarithms of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
FIXED = ("model", "plan", "program", "height", "width", "device", "dtype")


def exponents(rows: Sequence[Row]) -> dict[str, Row]:
    """For every program and size with two lengths or more: exponents of wall and CPU seconds and of each part."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["error"] is None:
            lines.setdefault(label(row), []).append(row)
    found = {}
    for name, line in lines.items():
        if len({row["views"] for row in line}) > 1:
            parts = dict.fromkeys(part for row in line for part in row["parts"])
            found[name] = {
                **{key: line[0][key] for key in FIXED},
                "views": sorted(row["views"] for row in line),
                "seconds": slope(line, lambda row: row["seconds"]["median"]),
                "cpu_seconds": slope(line, lambda row: row["cpu_seconds"]["median"]),
                "parts": {part: slope(line, lambda row, part=part: row["parts"].get(part, 0.0)) for part in parts},
            }
    return found


def label(row: Row) -> str:
    """All of a row that does not depend on the number of views, in words."""
    whole = ", whole" if row["asked"]["whole"] else ""
    what = row["plan"] if row["program"] == "lean3r" else row["program"]
    size = row["asked"]["size"] if row["asked"]["whole"] else f"{row['height']}x{row['width']}"
    return f"{row['model']} {what}, {size}, {row['device']}, {row['dtype']}{whole}"


def slope(rows: Sequence[Row], value: Callable[[Row], float]) -> float | None:
    """Least squares of log value against log views; None with fewer than two lengths of a value above 0."""
    points = [(math.log(row["views"]), math.log(value(row))) for row in rows if value(row) > 0]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True)) if points else (0.0, 0.0)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return round(sum((x - mean_x) * (y - mean_y) for x, y in points) / spread, 3) if spread > 0 else None
