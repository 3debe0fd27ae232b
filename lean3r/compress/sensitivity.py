"""Which layers suffer most from quantisation, by their weights and by the error of their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lean3r.compress.fp8_linear import Rounded, selected
from lean3r.compress.linears import linears_of
from lean3r.compress.plan import CompressionPlan, QuantizeStep
from lean3r.compress.quantize import prepare
from lean3r.compress.targets import Part
from lean3r.errors import UsageError

FLOOR_DB = 18.0  # a linear layer with FP8 weights and activations exceeds it, unless a few inputs dwarf the others


@dataclass(frozen=True)
class Sensitivity:
    """One layer that a plan quantises: Lite3R's score of its weight (higher is worse), and the signal-to-noise ratio of
    its output in decibels when only this layer is quantised; None if the run did not reach it."""

    layer: str
    part: Part
    scheme: str
    parameters: int
    score: float
    snr_db: float | None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        snr = None if self.snr_db is None else round(self.snr_db, 2)
        return {
            "layer": self.layer,
            "role": self.part,
            "scheme": self.scheme,
            "parameters": self.parameters,
            "lite3r_score": round(self.score, 4),
            "snr_db": snr,
        }


def score(weight: Tensor) -> float:
    """Lite3R's sensitivity of a weight: 0.4 max|W| / 10 + 0.3 (share beyond 3 sigma) + 0.3 kurtosis / 10.

    Sigma and kurtosis (the plain fourth moment, 3 for a normal distribution) are about the mean. Source: Lite3R.
    """
    values = weight.detach().double().flatten()
    off = values - values.mean()
    variance = off.square().mean()
    kurtosis = float(off.pow(4).mean() / variance.square()) if variance > 0 else 0.0
    outliers = float((off.abs() > 3 * variance.sqrt()).double().mean())
    return 0.4 * float(values.abs().max()) / 10 + 0.3 * outliers + 0.3 * kurtosis / 10


def scan(model: nn.Module, plan: CompressionPlan, run: Callable[[nn.Module], object]) -> list[Sensitivity]:
    """The loss of precision in each layer that `plan` quantises, measured during `run(model)`; the model is unchanged.

    Every layer sees the inputs of the unquantised network. UsageError if the plan quantises nothing.
    """
    if not plan.quantizes:
        raise UsageError(f"plan {plan} quantises nothing, so that there is nothing to scan. Use fp8, or --scheme.")
    prepared = prepare(model, CompressionPlan(plan.quantizes, plan.name))
    layers = {name: module for name, module in prepared.named_modules() if isinstance(module, Rounded)}
    power: dict[str, list[float]] = {}
    hooks = [model.get_submodule(name).register_forward_hook(_listen(name, layers[name], power)) for name in layers]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    parts: dict[str, Part] = {site.name: site.part for site in linears_of(model)}
    return [
        Sensitivity(name, parts[name], m.scheme_name, m.weight.numel(), score(m.weight), _decibels(power.get(name)))
        for name, m in layers.items()
    ]


def leave_out(model: nn.Module, plan: CompressionPlan, layers: Collection[str]) -> CompressionPlan:
    """The plan for `model`, with these layers excluded from quantisation too; steps that would have no layer go.

    UsageError if no step remains.
    """
    if not layers:
        return plan
    names, places = tuple(f"named {layer}" for layer in layers), linears_of(model)
    steps = []
    for step in plan.steps:
        if isinstance(step, QuantizeStep):
            step = replace(step, leave_out=step.leave_out + names)
            if not selected(step, places):
                continue
        steps.append(step)
    if not steps:
        raise UsageError(f"plan {plan.name} quantises nothing but layers below the floor; lower it (--floor-db).")
    return CompressionPlan(tuple(steps), f"{plan.name}-scanned")


def propose_leave_out(layers: Collection[Sensitivity], floor_db: float = FLOOR_DB) -> list[str]:
    """The layers whose signal-to-noise ratio is below `floor_db`, the worst first."""
    low = [row for row in layers if row.snr_db is not None and row.snr_db < floor_db]
    return [row.layer for row in sorted(low, key=lambda row: row.snr_db or -math.inf)]


def _listen(name: str, rounded: nn.Module, power: dict[str, list[float]]) -> Callable[..., None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        error = (rounded(*inputs) - output).float()
        sums = power.setdefault(name, [0.0, 0.0])
        sums[0] += float(output.float().square().sum())
        sums[1] += float(error.square().sum())

    return hook


def _decibels(power: list[float] | None) -> float | None:
    """10 log10 of signal over noise; 99 without noise, None without signal."""
    if power is None or power[0] == 0:
        return None
    return 99.0 if power[1] == 0 else min(99.0, 10 * math.log10(power[0] / power[1]))
