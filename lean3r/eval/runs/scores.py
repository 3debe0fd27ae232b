"""The scores of a benchmark: its figures, their units and directions, from rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lean3r.eval.protocols.base import Benchmark, Row
from lean3r.eval.protocols.resolving import resolve

_ANGLES = ("auc", "allpairs", "rra", "rta")
_HIGHER = (*_ANGLES, "delta", "nc", "fscore", "precision", "recall")
_SHARES = (*_ANGLES, "delta", "abs_rel", "fscore", "precision", "recall", "focal", "lost", "depth_missing")


def pool(benchmark: str, rows: Sequence[Row]) -> dict[str, float]:
    """The figures of a benchmark by name from some of its rows, in scores.json's form; {} if every row failed."""
    found = pool_resamples(benchmark, rows, np.ones((1, len(rows)), np.int64))
    return {name: float(values[0]) for name, values in found.items()}


def pool_resamples(benchmark: str, rows: Sequence[Row], counts: np.ndarray) -> dict[str, np.ndarray]:
    """The same for R resamples of N rows, [R] by name, from how often each has each row: `counts` [R, N], integers."""
    return resolve(benchmark).pool(rows, counts)


def scene_of(benchmark: str, item: str) -> str:
    """The scene of an item of a benchmark, by its id."""
    found = resolve(benchmark).scene_of
    return item if found is None else found(item)


def directions(figures: Sequence[str]) -> dict[str, str]:
    """Name of a figure -> "higher" or "lower", which is better."""
    return {name: "higher" if name.startswith(_HIGHER) else "lower" for name in figures}


def units(benchmark: Benchmark, figures: Sequence[str]) -> dict[str, str]:
    """Name of a figure -> its unit; "" for a length in the unit of the truth, and for shares from 0 to 1."""
    per_cent = "" if benchmark.papers.startswith("Lite3R") else "%"
    return {name: "degrees" if "_deg" in name else per_cent if name.startswith(_SHARES) else "" for name in figures}
