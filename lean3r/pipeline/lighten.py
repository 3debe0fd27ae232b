"""How a model holds its weights, chosen before they are read so that a run fits into a budget of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lean3r.compress import PLANS, compress
from lean3r.compress.sparsify import plan_of
from lean3r.images import network_size
from lean3r.models.base import Backbone
from lean3r.models.execution import hold, weight_bytes
from lean3r.pipeline.budget import Budget, Measure
from lean3r.pipeline.memory import Predictor, Setting, used_bytes

EIGHT_BITS = "fp8-weight"  # the plan that halves weights once more
ASPECT = (4, 3)  # of pictures that nobody has seen yet


@dataclass(frozen=True)
class Lightened:
    """A model without memory, the number type of its products, and what was changed, in words."""

    model: Backbone
    dtype: torch.dtype
    changes: tuple[str, ...] = ()
    is_exact: bool = True


def lighten(
    model: Backbone, budget: Budget, device: torch.device, dtype: torch.dtype, fixed: Sequence[Measure]
) -> Lightened:
    """The mildest form of the weights with which `budget.views` pictures, one at a time where that helps, fit.

    `model` is on the meta device. Where no form is enough, the lightest that is allowed: pictures have to become
    smaller or fewer then.
    """
    side = budget.resolution or model.resolution
    width, height = network_size(*ASPECT, side, model.patch)
    found = Lightened(model, dtype)
    for found in _forms(model, budget, dtype, fixed):
        held = weight_bytes(found.model)
        base = held if device.type == "cuda" else used_bytes(device) + held
        predictor = Predictor(found.model, device, lambda base=base: base, writes=budget.writes)
        if predictor.peak(Setting(budget.views, height, width, 1, found.dtype)) <= budget.size:
            break
    return found


def _forms(model: Backbone, budget: Budget, dtype: torch.dtype, fixed: Sequence[Measure]) -> Iterator[Lightened]:
    found = Lightened(model, dtype)
    yield found
    if dtype == torch.float32 and budget.allows("dtype") and "dtype" not in fixed:
        dtype = torch.bfloat16
        found = Lightened(hold(model, dtype), dtype, ("bfloat16 products and weights",), is_exact=False)
        yield found
    elif dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        found = Lightened(hold(model, dtype), dtype, (f"weights held in {name}",))
        yield found
    if budget.allows("plan") and "plan" not in fixed and plan_of(model) is None and EIGHT_BITS in PLANS:
        smaller = compress(found.model, EIGHT_BITS)
        yield Lightened(smaller, dtype, (*found.changes, f"weights in 8 bits (plan {EIGHT_BITS})"), is_exact=False)
