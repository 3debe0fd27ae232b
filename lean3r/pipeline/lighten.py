"""The number type of a model's weights, chosen before they are read so that a run fits into a memory budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lean3r.compress import PLANS, compress
from lean3r.inputs.views import network_size
from lean3r.models.base import Backbone
from lean3r.models.execution import hold, weight_bytes
from lean3r.pipeline.budget import Budget, Measure
from lean3r.pipeline.memory import Predictor, Setting, used_bytes

EIGHT_BITS = "fp8-weight"  # the plan that halves weights once more
WORTH = 0.97  # a form that changes results and does not fit either must lower the peak by this factor
ASPECT = (4, 3)  # assumed: the pictures are not read yet


@dataclass(frozen=True)
class Lightened:
    """A model without memory, the number type of its matrix products, and the changes in words."""

    model: Backbone
    dtype: torch.dtype
    changes: tuple[str, ...] = ()
    is_exact: bool = True


def lighten(
    model: Backbone, budget: Budget, device: torch.device, dtype: torch.dtype, fixed: Sequence[Measure]
) -> Lightened:
    """The mildest form of the weights with which `budget.views` pictures fit, if necessary one at a time.

    `model` is on the meta device and does not change. If no form fits, the lightest allowed one that is worth its
    rounding; then pictures have to become smaller or fewer.
    """
    side = budget.resolution or model.resolution
    width, height = network_size(*ASPECT, side, model.patch)
    best, lowest = Lightened(model, dtype), math.inf
    for form in _forms(model, budget, dtype, fixed):
        held = weight_bytes(form.model)

        def base(held: int = held) -> int:
            return held + (0 if device.type == "cuda" else used_bytes(device))

        predictor = Predictor(form.model, device, base, writes=budget.writes)
        peak = predictor.peak(Setting(budget.views, height, width, 1, form.dtype))
        if form.is_exact or peak <= budget.size or peak < WORTH * lowest:
            best, lowest = form, peak
        if peak <= budget.size:
            break
    return best


def _forms(model: Backbone, budget: Budget, dtype: torch.dtype, fixed: Sequence[Measure]) -> Iterator[Lightened]:
    """The allowed forms of a model, mildest first."""
    form = Lightened(model, dtype)
    yield form
    if dtype == torch.float32 and budget.allows("dtype") and "dtype" not in fixed:
        dtype = torch.bfloat16
        form = Lightened(hold(copy.deepcopy(model), dtype), dtype, ("bfloat16 products and weights",), is_exact=False)
        yield form
    if budget.allows("plan") and "plan" not in fixed and model.plan is None and EIGHT_BITS in PLANS:
        smaller = compress(form.model, EIGHT_BITS)
        yield Lightened(smaller, dtype, (*form.changes, f"weights in 8 bits (plan {EIGHT_BITS})"), is_exact=False)
