"""Which mechanism and density each global layer gets, measured on pictures: layers differ in what they can lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
UNITS = 1000  # into which a density of 1 is divided when layers are chosen

M = TypeVar("M", bound=nn.Module)
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Candidate:
    """A mechanism for one global layer, or None to leave it dense. `density` is the measured share of pairs attended
    to; `error` that of the outputs when only this layer changes, squared, in units of the outputs' variance."""

    layer: int
    mechanism: str | None
    settings: Mapping[str, object] = field(default_factory=dict)
    density: float = 1.0
    error: float = 0.0

    @property
    def step(self) -> Step | None:
        """The step of a plan that makes this change; None for a dense layer."""
        return None if self.mechanism is None else Step(f"global blocks {self.layer}", self.mechanism, self.settings)


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
    model: M, run: Callable[[M], Outputs], budget: float
) -> tuple[CompressionPlan, list[Candidate], list[Candidate]]:
    """(plan, the choice for each global layer, all that was measured) with the least error at a mean density <= budget.

    `run` gives the outputs of a model for the calibration pictures; it is called once for each layer and candidate. The
    errors of layers are added up, so the plan is as good as that holds. UsageError if no plan keeps to the budget.
    """
    if not 0 < budget < 1:
        raise UsageError(f"budget is {budget}; expected a mean density of global attention above 0 and below 1.")
    count = sum(site.role == "global" for site in sites_of(model))
    dense = _run(model, run)[0]
    measured: list[Candidate] = []
    for layer in range(count):
        measured.append(Candidate(layer, None))
        for mechanism, settings in candidates():
            step = Step(f"global blocks {layer}", mechanism, settings)
            outputs, density = _run(compress(model, CompressionPlan((step,))), run)
            error = sum(_error(ours, theirs) for ours, theirs in zip(outputs, dense, strict=True))
            measured.append(Candidate(layer, mechanism, settings, density, error))
    chosen = choose(measured, budget)
    steps = tuple(candidate.step for candidate in chosen if candidate.step is not None)
    return CompressionPlan(steps, f"calibrated-{budget:g}"), chosen, measured


def choose(measured: Sequence[Candidate], budget: float) -> list[Candidate]:
    """One candidate for each layer, with the least sum of errors at a mean density of at most `budget`.

    Exact, but for densities that are rounded up to 1 / UNITS. UsageError if the budget is too small.
    """
    layers = sorted({candidate.layer for candidate in measured})
    limit = math.floor(budget * UNITS * len(layers))
    best: dict[int, tuple[float, list[Candidate]]] = {0: (0.0, [])}  # spent -> error, choice
    for layer in layers:
        following: dict[int, tuple[float, list[Candidate]]] = {}
        for candidate in (c for c in measured if c.layer == layer):
            price = math.ceil(candidate.density * UNITS - 1e-6)
            for spent, (error, choice) in best.items():
                total, now = spent + price, error + candidate.error
                if total <= limit and (total not in following or now < following[total][0]):
                    following[total] = (now, [*choice, candidate])
        best = following
    if not best:
        least = sum(min(c.density for c in measured if c.layer == layer) for layer in layers) / len(layers)
        raise UsageError(f"no plan has a mean density of at most {budget:g}; the sparsest has {least:.3g}.")
    return min(best.values(), key=lambda found: found[0])[1]


def _run(model: M, run: Callable[[M], Outputs]) -> tuple[Outputs, float]:
    """The outputs of a model and the mean density that its mechanisms report, 1 if none does."""
    with recording() as log, torch.no_grad():
        outputs = run(model)
    found = [record.density for record in log if record.density is not None]
    return outputs, sum(found) / len(found) if found else 1.0


def _error(ours: Tensor, theirs: Tensor) -> float:
    error = (ours - theirs).double().square().mean() / theirs.double().var().clamp_min(1e-12)
    return float(error) if error.isfinite() else math.inf
