"""From the rows of a benchmark to its figures, as the papers average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from lean3r.eval.pose_errors import auc_trapezoid
from lean3r.eval.protocols.base import Curve, Over, Pool, Row, add_curves, auc, share_below

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


def mean_figures(rows: Sequence[Row], weights: Sequence[float] | None = None) -> dict[str, float]:
    """Mean of each figure over the rows where it is a number; NaN if there is none."""
    names = dict.fromkeys(name for row in rows for name in row["figures"])
    share = np.ones(len(rows)) if weights is None else np.array(weights, np.float64)
    means = dict[str, float]()
    for name in names:
        values = np.array([_number(row["figures"].get(name)) for row in rows])
        known = np.isfinite(values) & (share > 0)
        means[name] = float((values * share)[known].sum() / share[known].sum()) if known.any() else float("nan")
    return means


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _pool(rows: Sequence[Row], over: Over, weighted: bool) -> dict[str, float]:
    rows = [row for row in rows if row.get("error") is None]
    figures = mean_figures(rows, [row["weight"] for row in rows] if weighted else None)
    if over == "scenes" or not rows:
        return figures
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"] if over == "groups" else "", []).append(row)
    pooled = [
        curve_figures(
            {name: add_curves(row["curves"][name] for row in group if name in row["curves"]) for name in names}
        )
        for group in groups.values()
        for names in [dict.fromkeys(name for row in group for name in row["curves"])]
    ]
    names = dict.fromkeys(name for each in pooled for name in each)
    figures |= {name: float(np.mean([each[name] for each in pooled if name in each])) for name in names}
    for name in dict.fromkeys(name for row in rows for name in row.get("errors", {})):
        errors = np.array([value for row in rows for value in row["errors"].get(name, [])])
        figures |= {f"auc{t}_exact": 100 * auc_trapezoid(errors, t) for t in EXACT_AT}
    return figures


def pooling(over: Over = "scenes", *, weighted: bool = False) -> Pool:
    """How a protocol averages. Figures of items: plainly, or `weighted` by their valid pixels. AUC and recall: over all
    "pairs" of views (Pi3), over the pairs of each group and then over groups (VGGT's categories), or over "scenes"
    (Depth Anything 3). Failed items are left out; scores.json counts them."""
    return partial(_pool, over=over, weighted=weighted)
