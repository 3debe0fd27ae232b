"""From the rows of a benchmark to its figures, as the papers average.

Figures are made for many resamples at once, from how often each of them has each row: all but exact areas under curves
are means of what the rows have, weighted by pixels or pairs of views, since the curve of several rows is their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from lean3r.eval.pose_errors import auc_trapezoid
from lean3r.eval.protocols.base import Curve, Over, Pool, Row, auc, share_below

AUC_AT = (3, 5, 15, 30)
RECALL_AT = (5, 15, 30)
EXACT_AT = (5, 10, 20)


def curve_figures(curves: dict[str, Curve]) -> dict[str, float]:
    """Figures of curves by name: "pose_deg" and "pose_deg_pi3" give auc30 and auc30_pi3, "rotation_deg" rra5, ..."""
    figures = dict[str, float]()
    for name, curve in curves.items():
        kind, _, form = name.partition("_deg")
        if kind in ("rotation", "translation"):
            short = {"rotation": "rra", "translation": "rta"}[kind]
            figures |= {f"{short}{t}{form}": share_below(curve, t) for t in RECALL_AT}
        else:
            every = "allpairs_" if kind == "allpairs" else ""
            figures |= {f"{every}auc{t}{form}": auc(curve, t) for t in AUC_AT}
    return figures


def _pool(rows: Sequence[Row], counts: np.ndarray, over: Over, weighted: bool) -> dict[str, np.ndarray]:
    good = [place for place, row in enumerate(rows) if row.get("error") is None]
    rows, counts = [rows[place] for place in good], counts[:, good]
    shares = np.array([row["weight"] if weighted else 1.0 for row in rows])
    figures = {
        name: _mean(np.array([_number(row["figures"].get(name)) for row in rows]), shares, counts)
        for name in dict.fromkeys(name for row in rows for name in row["figures"])
    }
    if over == "scenes":
        return figures
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row["group"] if over == "groups" else "", []).append(place)
    for name in dict.fromkeys(name for row in rows for name in row["curves"]):
        figures |= _curve_means([row["curves"].get(name) for row in rows], name, counts, list(groups.values()))
    for name in dict.fromkeys(name for row in rows for name in row.get("errors", {})):
        figures |= _exact_areas([row["errors"].get(name, []) for row in rows], counts)
    return figures


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _mean(values: np.ndarray, shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weighted means [R] of values [N] that are numbers, by how often each resample has them, [R, N]; NaN of none."""
    known = np.isfinite(values) & (shares > 0)
    total = counts[:, known] @ shares[known]
    sums = counts[:, known] @ (values * shares)[known]
    return np.divide(sums, total, out=np.full(len(counts), np.nan), where=total > 0)


def _curve_means(
    curves: Sequence[Curve | None], name: str, counts: np.ndarray, groups: Sequence[list[int]]
) -> dict[str, np.ndarray]:
    """Figures of a curve's sum over each group of rows, and then their mean over the groups that have it."""
    each = [{} if curve is None else curve_figures({name: curve}) for curve in curves]
    pairs = np.array([0.0 if curve is None else curve["pairs"] for curve in curves])
    has = np.array([curve is not None for curve in curves])
    there = np.stack([counts[:, group] @ has[group] > 0 for group in groups])
    means = dict[str, np.ndarray]()
    for figure in dict.fromkeys(figure for figures in each for figure in figures):
        values = np.array([figures.get(figure, np.nan) for figures in each])
        parts = np.stack([_mean(values[group], pairs[group], counts[:, group]) for group in groups])
        sums, total = np.where(there, parts, 0).sum(0), there.sum(0)
        means[figure] = np.divide(sums, total, out=np.full(len(counts), np.nan), where=total > 0)
    return means


def _exact_areas(errors: Sequence[list[float]], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Areas under the recall curve of all errors of the rows together, which no mean of rows gives."""
    row_of = np.repeat(np.arange(len(errors)), [len(each) for each in errors])
    values = np.array([value for each in errors for value in each], np.float64)
    drawn = [np.repeat(values, count[row_of]) for count in counts]
    return {f"auc{t}_exact": np.array([100 * auc_trapezoid(each, t) for each in drawn]) for t in EXACT_AT}


def pooling(over: Over = "scenes", *, weighted: bool = False) -> Pool:
    """How a protocol averages. Figures of items: plainly, or `weighted` by their valid pixels. AUC and recall: over all
    "pairs" of views (Pi3), over the pairs of each group and then over groups (VGGT's categories), or over "scenes"
    (Depth Anything 3). Failed items are left out; scores.json counts them. Without any other, there are no figures."""
    return partial(_pool, over=over, weighted=weighted)
