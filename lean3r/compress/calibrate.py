"""Which mechanism and density each global layer, or head, gets, measured on pictures: not all can lose as much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from lean3r.attention.base import recording
from lean3r.compress.linears import sites_of
from lean3r.compress.plan import CompressionPlan, Step
from lean3r.compress.sparsify import compress
from lean3r.errors import UsageError

DENSITIES = (0.025, 0.05, 0.1, 0.2, 0.4)  # of the candidates; what they really are is measured
GRIDS = ((6, 6), (4, 5), (3, 3), (2, 2), (1, 2))  # of kv_prune: one key in rows x columns stays
FOR_HEADS: list[tuple[str, dict[str, object]]] = [  # more for single heads, as in SAF3R
    ("frame_subset", {"keep": [0]}),  # all views look at the first
    *(("mean_query", {"keep": density}) for density in DENSITIES),
    *(("matches", {"per_view": count}) for count in (1, 4)),
]
UNITS = 1000  # into which a density of 1 is divided when layers are chosen

M = TypeVar("M", bound=nn.Module)
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Candidate:
    """A mechanism for one global layer, or for one `head` of it, or None to leave it dense. `density` is the measured
    share of pairs attended to; `error` that of the outputs when only this changes, squared, in units of the outputs'
    variance."""

    layer: int
    mechanism: str | None
    settings: Mapping[str, object] = field(default_factory=dict)
    density: float = 1.0
    error: float = 0.0
    head: int | None = None

    @property
    def step(self) -> Step | None:
        """The step of a plan that makes this change; None for a dense layer or head."""
        if self.mechanism is None:
            return None
        target = f"global blocks {self.layer}"
        if self.head is None:
            return Step(target, self.mechanism, self.settings)
        return Step(target, "per_head", {"groups": [([self.head], self.mechanism, self.settings)]})


def candidates() -> list[tuple[str, dict[str, object]]]:
    """Mechanisms that need no training, over DENSITIES."""
    blocks = {"query_block": 16, "key_block": 16, "window": 4}
    prune = {"frames": 1, "moving": True, "first_frame": False, "query_merge": 1}
    found: list[tuple[str, dict[str, object]]] = [("frame_local", {})]
    for density, grid in zip(DENSITIES, GRIDS, strict=True):
        found += [
            ("block_sparse", {"sparsity": round(1 - density, 3), **blocks}),
            ("merge", {"ratio": round(1 - math.sqrt(density), 3), "protect": 0.0}),
            ("kv_prune", {"grid": grid, **prune}),
        ]
    return found


def calibrate(
    model: M, run: Callable[[M], Outputs], budget: float, *, by_head: bool = False
) -> tuple[CompressionPlan, list[Candidate], list[Candidate]]:
    """(plan, the choice for each global layer, all that was measured) with the least error at a mean density <= budget.

    `by_head` chooses for each head of each global layer. `run` gives the outputs of a model for the calibration
    pictures; it is called once for each layer, or head, and candidate. The errors are added up, so the plan is as good
    as that holds. UsageError if no plan keeps to the budget.
    """
    if not 0 < budget < 1:
        raise UsageError(f"budget is {budget}; expected a mean density of global attention above 0 and below 1.")
    kinds = candidates() + (FOR_HEADS if by_head else [])
    sites = [site for site in sites_of(model) if site.role == "global"]
    dense = _run(model, run)[0]
    measured: list[Candidate] = []
    for layer, site in enumerate(sites):
        for head in range(site.heads) if by_head else (None,):
            measured.append(Candidate(layer, None, head=head))
            for mechanism, settings in kinds:
                candidate = Candidate(layer, mechanism, settings, head=head)
                assert candidate.step is not None
                outputs, density = _run(compress(model, CompressionPlan((candidate.step,))), run)
                error = sum(error_of(ours, theirs) for ours, theirs in zip(outputs, dense, strict=True))
                measured.append(replace(candidate, density=density, error=error))
    chosen = choose(measured, budget)
    return CompressionPlan(steps_of(chosen), f"calibrated-{budget:g}"), chosen, measured


def steps_of(chosen: Sequence[Candidate]) -> tuple[Step, ...]:
    """The steps of what changes; heads of a layer with the same mechanism and settings are one group."""
    whole = [candidate.step for candidate in chosen if candidate.step is not None and candidate.head is None]
    groups: dict[int, dict[str, tuple[list[int], str, Mapping[str, object]]]] = {}
    for candidate in chosen:
        if candidate.mechanism is not None and candidate.head is not None:
            kind, of_layer = (candidate.mechanism, candidate.settings), groups.setdefault(candidate.layer, {})
            of_layer.setdefault(repr(kind), ([], *kind))[0].append(candidate.head)
    return (*whole, *(Step(f"global blocks {n}", "per_head", {"groups": [*g.values()]}) for n, g in groups.items()))


def choose(measured: Sequence[Candidate], budget: float) -> list[Candidate]:
    """One candidate for each layer, or head, with the least sum of errors at a mean density of at most `budget`.

    Exact, but for densities that are rounded up to 1 / UNITS. UsageError if the budget is too small.
    """
    places: dict[tuple[int, int | None], list[Candidate]] = {}
    for candidate in measured:
        places.setdefault((candidate.layer, candidate.head), []).append(candidate)
    limit = math.floor(budget * UNITS * len(places))
    best: dict[int, tuple[float, list[Candidate]]] = {0: (0.0, [])}  # spent -> error, choice
    for tried in places.values():
        following: dict[int, tuple[float, list[Candidate]]] = {}
        for candidate in tried:
            price = math.ceil(candidate.density * UNITS - 1e-6)
            for spent, (error, choice) in best.items():
                total, now = spent + price, error + candidate.error
                if total <= limit and (total not in following or now < following[total][0]):
                    following[total] = (now, [*choice, candidate])
        best = following
    if not best:
        least = sum(min(c.density for c in tried) for tried in places.values()) / len(places)
        raise UsageError(f"no plan has a mean density of at most {budget:g}; the sparsest has {least:.3g}.")
    return min(best.values(), key=lambda found: found[0])[1]


def _run(model: M, run: Callable[[M], Outputs]) -> tuple[Outputs, float]:
    """The outputs of a model and the mean density that its mechanisms report, 1 if none does."""
    with recording() as log, torch.no_grad():
        outputs = run(model)
    found = [record.density for record in log if record.density is not None]
    return outputs, sum(found) / len(found) if found else 1.0


def error_of(ours: Tensor, theirs: Tensor) -> float:
    """Mean squared difference of an output, in units of its variance; infinite if it is not finite."""
    error = (ours - theirs).double().square().mean() / theirs.double().var().clamp_min(1e-12)
    return float(error) if error.isfinite() else math.inf
