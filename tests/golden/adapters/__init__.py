"""How each family of backbones is built, run and compared for the golden cases; one module a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lean3r.models.base import Backbone

MODULES = {"VGGT": "vggt", "DA3": "da3", "Pi3": "pi3", "Pi3X": "pi3"}
"""Name of the official class in a case's JSON -> module here that holds `family(name)`."""


@dataclass(frozen=True)
class Family:
    """What the harness needs.

    build(constructor arguments of the JSON) -> model, called on the meta device;
    run(model, inputs by name without "in.", case) -> arrays under their golden names ("out.depth", ...);
    taps(model, case) -> modules whose raw output is a golden array, by its name;
    arrange(name, tapped output, case, model) -> the output as the golden array has it;
    compare: array name -> change of variable before comparing; limits: array name -> relative RMS allowed.
    """

    build: Callable[[Mapping[str, Any]], Backbone]
    run: Callable[[Backbone, Mapping[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]
    taps: Callable[[Backbone, Mapping[str, Any]], dict[str, nn.Module]] = lambda model, case: {}
    arrange: Callable[[str, Tensor, Mapping[str, Any], Backbone], Tensor] = lambda name, value, case, model: value
    compare: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)


def signed_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def log_less_one(x: Tensor) -> Tensor:
    """log(x - 1), for confidences 1 + exp(...); exactly 1 is allowed."""
    return (x.double() - 1).clamp_min(1e-9).log()
