"""From training to deployment: `prepare` puts rounded linear layers in, `convert` stores them as codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lean3r.compress.foreign import ForeignAttention
from lean3r.compress.fp8_linear import Coded, FakeQuantLinear, Rounded, deploy
from lean3r.compress.plan import CompressionPlan, resolve_plan
from lean3r.compress.sparsify import apply, copy_sharing_parameters, mark, plan_of
from lean3r.errors import UsageError

FLOOR = 1e-8  # of the magnitude of a feature, so that smoothing factors are finite

M = TypeVar("M", bound=nn.Module)


def prepare(
    model: M, plan: str | Path | Mapping[str, object] | CompressionPlan, *, adapter: ForeignAttention | None = None
) -> M:
    """A network compressed by `plan` whose linear layers are rounded while they run, but stay trainable.

    It shares the parameters of `model`, under the same names; gradients pass straight through the rounding. Mechanisms
    of the plan are exchanged too. A network that is sparse already may get a plan that only quantises. UsageError as in
    `compress`, and if the plan quantises nothing.
    """
    resolved = resolve_plan(plan)
    if not resolved.quantizes:
        raise UsageError(
            f"plan {resolved} quantises nothing; expected a step with quantize. For attention alone, use compress."
        )
    return apply(model, resolved, adapter, prepared=True)[0]


def convert(model: M) -> M:
    """The deployable form of a prepared network: the same numbers, stored as codes and scales.

    The operands of every product equal those of the prepared network bit for bit. Other parameters are shared with it.
    UsageError if the network is not prepared, or if a weight contains NaN or infinities.
    """
    if not any(isinstance(module, Rounded) for module in model.modules()):
        done = any(isinstance(module, Coded) for module in model.modules())
        raise UsageError(
            "the network is converted already; there is nothing more to do."
            if done
            else "the network is not prepared: call prepare(model, plan) first, or compress(model, plan) for both."
        )
    plan = plan_of(model)
    model = copy_sharing_parameters(model)
    deploy(model)
    if plan is not None:
        mark(model, plan)
    return model


def smoothing_factors(inputs: Tensor, weight: Tensor) -> Tensor:
    """Factors [K] that balance features: sqrt(max |inputs| / max |weight|), for inputs [..., K], weight [N, K]."""
    highest = inputs.abs().reshape(-1, inputs.shape[-1]).amax(0)
    return _factors(highest, weight)


def calibrate(model: nn.Module, run: Callable[[nn.Module], object]) -> None:
    """Set the smoothing factors of a prepared network, in place, from the inputs of its layers during `run(model)`.

    UsageError if no layer has such factors (`smooth` is a setting of w4a16 and w4a8), or if `run` reaches none.
    """
    layers = [m for m in model.modules() if isinstance(m, FakeQuantLinear) and m.smooth is not None]
    if not layers:
        raise UsageError("no layer has smoothing factors; prepare with w4a16 or w4a8 and the setting smooth.")
    highest: dict[FakeQuantLinear, Tensor] = {}

    def note(layer: FakeQuantLinear, inputs: tuple[Tensor, ...]) -> None:
        top = inputs[0].detach().abs().reshape(-1, layer.in_features).amax(0)
        highest[layer] = torch.maximum(highest[layer], top) if layer in highest else top

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    if not highest:
        raise UsageError("run(model) reached no layer with smoothing factors; it must call the network.")
    with torch.no_grad():
        for layer, top in highest.items():
            assert layer.smooth is not None
            layer.smooth.copy_(_factors(top, layer.weight))


def _factors(highest: Tensor, weight: Tensor) -> Tensor:
    return highest.clamp(min=FLOOR).sqrt() / weight.detach().abs().amax(0).clamp(min=FLOOR).sqrt()
