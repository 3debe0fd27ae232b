"""Intervals of figures, and what got better or worse from one run to another.

Intervals are the middle 95 % of a bootstrap over scenes: RESAMPLES times as many scenes are drawn with replacement,
each with all of its items, and the figure is pooled from these as the benchmark pools it. Mostly an item is a scene;
several pairs or sequences of one scene are not independent, so they are drawn together. Two runs are compared on the
items that both have, with the same draws, so what is common to a scene cancels.

A figure is "worse" if the loss is beyond the tolerance and the items agree that it is one: the interval's better end
is no gain, or one of less than ROUNDING of the tolerance. The first half lets differences of no importance pass, the
second the noise of a few scenes, of which some win and some lose; one scene that breaks among others that stay the
same is found. Losses beyond the tolerance on which the items disagree are "unclear".
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lean3r.errors import InputError, UsageError
from lean3r.eval.figures import sorted_figures
from lean3r.eval.report.runs import COSTS, Row, Run, Scores

RESAMPLES = 1000
ROUNDING = 0.1
PERCENT_TOLERANCE = 0.5  # points, of figures in per cent
RELATIVE_TOLERANCE = 0.02  # of the reference's value, of other figures

Pool = Callable[[str, Sequence[Any], np.ndarray], Mapping[str, np.ndarray]]
"""Figures [R] by name of a benchmark: its name, N rows, and how often each of R resamples has them, [R, N]."""
SceneOf = Callable[[str, str], str]
"""The scene of an item of a benchmark, by the names of both."""


def of_its_own(_: str, item: str) -> str:
    """Every item is a scene."""
    return item


@dataclass(frozen=True)
class Tolerance:
    """A loss that is let pass: in the unit of the figure, or as a share of the reference's value."""

    value: float
    is_relative: bool = False

    def of(self, before: float) -> float:
        """The tolerance in the figure's unit."""
        return self.value * abs(before) if self.is_relative else self.value


def parse_tolerances(texts: Sequence[str]) -> dict[str, Tolerance]:
    """Tolerances by name or pattern of figures, from `auc30=0.5` or `*auc*=2%`; UsageError for anything else."""
    found = dict[str, Tolerance]()
    for text in texts:
        figure, _, value = text.partition("=")
        try:
            limit = float(value.removesuffix("%"))
        except ValueError:
            limit = math.nan
        if not figure or not 0 <= limit < math.inf:
            raise UsageError(f"--tolerance {text}: expected FIGURE=NUMBER or FIGURE=PERCENT%, such as auc30=0.5.")
        found[figure] = Tolerance(limit / 100, True) if value.endswith("%") else Tolerance(limit)
    return found


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of a figure over resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """A figure before and after on the same items. `low` and `high` are the interval of the difference; `verdict` is
    "better", "same", "unclear", "worse", "lost" (no longer a number, of some item or of all) or "none" (no
    numbers to compare)."""

    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    tolerance: float | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """One benchmark of a run against that of another: `items` scored in both, ids that failed in this run only, or are
    in one run only, and the changes by figure."""

    benchmark: str
    run: str
    against: str
    items: int
    failed: list[str]
    only_before: list[str]
    only_after: list[str]
    changes: dict[str, Change]
    by_item: dict[str, dict[str, float]] = field(repr=False)

    def named(self, *verdicts: str) -> list[str]:
        """Figures with one of these verdicts."""
        return [figure for figure, change in self.changes.items() if change.verdict in verdicts]

    @property
    def worse(self) -> list[str]:
        """Figures that got worse beyond their tolerance."""
        return self.named("worse", "lost")


def costs(rows: Sequence[Row], names: Iterable[str] = COSTS) -> dict[str, float]:
    """The median of each cost over items that have it, and the largest peak of memory; NaN if none has."""
    found = dict[str, float]()
    for name in names:
        values = [row[name] for row in rows if row[name] is not None]
        summary = np.max if name == "peak_memory_mb" else np.median
        found[name] = float(summary(values)) if values else math.nan
    return found


def intervals(scores: Scores, pool: Pool, scene_of: SceneOf = of_its_own) -> dict[str, Interval | None]:
    """The interval of every figure of a run, over its scenes; None if it has fewer than two, or too few numbers."""
    rows = [row for row in scores.rows if row["error"] is None]
    draws = _draws([scene_of(scores.name, row["id"]) for row in rows])
    values = pool(scores.name, rows, draws) if rows else {}
    absent = np.full(len(draws), np.nan)
    return {figure: _interval(values.get(figure, absent)) for figure in scores.directions}


def _draws(scenes: Sequence[str]) -> np.ndarray:
    """How often each item is in each of RESAMPLES resamples of whole scenes, [R, items], from the scene of each item;
    R is 0 if there are fewer than two scenes."""
    number = {scene: place for place, scene in enumerate(dict.fromkeys(scenes))}
    count = len(number)
    if count < 2:
        return np.zeros((0, len(scenes)), np.int64)
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    times = np.stack([np.bincount(draw, minlength=count) for draw in draws])
    return times[:, [number[scene] for scene in scenes]]


def _interval(values: np.ndarray) -> Interval | None:
    known = values[np.isfinite(values)]
    if len(known) < RESAMPLES / 2:
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return Interval(float(low), float(high))


def compare(
    runs: Sequence[Run],
    against: Run,
    pool: Pool,
    tolerances: Mapping[str, Tolerance],
    scene_of: SceneOf = of_its_own,
) -> list[Comparison]:
    """Compare runs with one of them, benchmark by benchmark.

    Raises InputError if a run has no benchmark, or a benchmark no scored item, in common with the reference, UsageError
    if a tolerance names a figure that nobody has.
    """
    figures = {name for run in runs for scores in run.scores.values() for name in scores.directions} | set(COSTS)
    if unknown := [pattern for pattern in tolerances if not fnmatch.filter(figures, pattern)]:
        raise UsageError(f"--tolerance names {', '.join(unknown)}; the figures are {', '.join(sorted(figures))}.")
    found = list[Comparison]()
    for run in runs:
        if run is against:
            continue
        common = [name for name in against.scores if name in run.scores]
        if not common:
            theirs, ours = ", ".join(run.scores), ", ".join(against.scores)
            raise InputError(f"{run.name} has scores of {theirs}, {against.name} of {ours}: nothing to compare.")
        found += [_compare(name, run, against, pool, tolerances, scene_of) for name in common]
    return found


def _compare(
    name: str, run: Run, against: Run, pool: Pool, tolerances: Mapping[str, Tolerance], scene_of: SceneOf
) -> Comparison:
    old = {row["id"]: row for row in against.scores[name].rows}
    new = {row["id"]: row for row in run.scores[name].rows}
    common = [key for key in old if key in new]
    if not common:
        raise InputError(
            f"{name}: {run.name} and {against.name} have no item in common. Evaluate both on the same data."
        )
    scored = [key for key in common if old[key]["error"] is None and new[key]["error"] is None]
    failed = [key for key in common if old[key]["error"] is None and new[key]["error"] is not None]
    if not scored and not failed:
        raise InputError(f"{name}: no item has a score in {against.name}, so nothing can be compared with it.")
    asked = [cost for cost in COSTS if cost in tolerances]
    plain, variants = sorted_figures(against.scores[name].directions)
    directions = against.scores[name].directions | dict.fromkeys(asked, "lower")
    before, after = _masked([old[k] for k in scored], [new[k] for k in scored])
    pairs = list(zip(before, after, strict=True))
    lost = {f for f in directions for k in scored if _has(old[k], f) and not _has(new[k], f)}

    def pooled(rows: Sequence[Row], counts: np.ndarray) -> dict[str, np.ndarray]:
        drawn = [costs([row for row, n in zip(rows, count, strict=True) for _ in range(n)], asked) for count in counts]
        return {**pool(name, rows, counts), **{cost: np.array([each[cost] for each in drawn]) for cost in asked}}

    every = np.concatenate([np.ones((1, len(scored)), np.int64), _draws([scene_of(name, key) for key in scored])])
    first, second = (pooled(rows, every) if rows else {} for rows in (before, after))
    absent = np.full(len(every), np.nan)
    changes = dict[str, Change]()
    for figure in (*plain, *asked, *variants):
        tolerance = _tolerance(figure, against.scores[name].unit(figure), tolerances)
        old_values, new_values = (found.get(figure, absent) for found in (first, second))
        span = _interval(new_values[1:] - old_values[1:])
        ends = float(old_values[0]), float(new_values[0])
        changes[figure] = _change(*ends, span, directions[figure], tolerance, figure in lost)
    return Comparison(
        benchmark=name,
        run=run.name,
        against=against.name,
        items=len(scored),
        failed=failed,
        only_before=[key for key in old if key not in new],
        only_after=[key for key in new if key not in old],
        changes=changes,
        by_item={a["id"]: _differences(a["figures"], b["figures"]) for a, b in pairs},
    )


def _differences(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> dict[str, float]:
    return {n: a - b for n, b in before.items() if b is not None and (a := after[n]) is not None}


def _has(row: Row, figure: str) -> bool:
    return (row["figures"].get(figure) if figure not in COSTS else row[figure]) is not None


def _masked(before: list[Row], after: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows with the figures that are numbers in both; the others are None in both."""
    kept = (list[Row](), list[Row]())
    for pair in zip(before, after, strict=True):
        old, new = (row["figures"] for row in pair)
        names = {name: old[name] is not None and new.get(name) is not None for name in old}
        for rows, row in zip(kept, pair, strict=True):
            rows.append(row | {"figures": {n: row["figures"][n] if both else None for n, both in names.items()}})
    return kept


def _tolerance(figure: str, unit: str, tolerances: Mapping[str, Tolerance]) -> Tolerance:
    """That of the last pattern which the figure matches, else the usual one. Costs are compared only if they are named:
    they depend on the load of the machine."""
    usual = Tolerance(PERCENT_TOLERANCE) if unit == "%" else Tolerance(RELATIVE_TOLERANCE, True)
    return next((t for pattern, t in reversed(list(tolerances.items())) if fnmatch.fnmatchcase(figure, pattern)), usual)


def _change(
    old: float, new: float, span: Interval | None, direction: str, tolerance: Tolerance, is_lost: bool
) -> Change:
    before, after = (v if math.isfinite(v) else None for v in (old, new))
    limit = None if before is None else tolerance.of(before)
    low, high = (span.low, span.high) if span else (None, None)
    if before is None or after is None or limit is None:
        return Change(before, after, None, low, high, limit, "lost" if is_lost else "none")
    difference = after - before
    verdict = "lost" if is_lost else _verdict(difference, span, direction, limit)
    return Change(before, after, difference, low, high, limit, verdict)


def _verdict(difference: float, span: Interval | None, direction: str, limit: float) -> str:
    """See the head of this file; without an interval, one item decides."""
    sign = 1 if direction == "higher" else -1
    gain = sign * difference
    least, most = sorted((sign * span.low, sign * span.high)) if span else (gain, gain)
    if gain < -limit:
        return "worse" if most <= ROUNDING * limit else "unclear"
    if gain > limit:
        return "better" if least >= -ROUNDING * limit else "unclear"
    return "same"
