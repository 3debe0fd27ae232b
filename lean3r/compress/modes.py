"""Other settings for the sparse-linear attention of a trained network, whose parameters suit all of its modes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from lean3r.attention.sla import SLA
from lean3r.compress.plan import AnyStep, CompressionPlan, Step, check_known, settings_of
from lean3r.compress.sparsify import PREPARED, STAGE_KEY, copy_sharing_parameters, mark, plan_of
from lean3r.errors import UsageError

M = TypeVar("M", bound=nn.Module)


def with_sla(model: M, **settings: object) -> M:
    """The network with these settings of every `SLA` (such as mode, keep, block), and with them in its plan.

    It shares the parameters of `model`, which is unchanged: a student may be trained by token and run by block.
    Special tokens that are dense in blocks are alike in modes and fillings that do not know it, unless `special` is
    given. UsageError for an unknown or impossible setting, and if the network has no such attention.
    """
    plan = plan_of(model)
    if plan is None or not any(step.mechanism == "sla" for step in plan.exchanges):
        raise UsageError("the network has no sparse-linear attention; compress it by a plan with sla, such as lite3r.")
    check_known("setting", settings, settings_of("sla"), "of sla")

    def changed(step: AnyStep) -> AnyStep:
        if isinstance(step, Step) and step.mechanism == "sla":
            return replace(step, settings=_merged(step.settings, settings))
        return step

    prepared = dict(getattr(model, "metadata", {})).get(STAGE_KEY) == PREPARED
    model = copy_sharing_parameters(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SLA):
                setattr(module, name, _changed(child, settings))
    mark(model, CompressionPlan(tuple(map(changed, plan.steps)), plan.name), prepared=prepared)
    return model


def _changed(old: SLA, settings: dict[str, object]) -> SLA:
    own = {name: getattr(old, name) for name in settings_of("sla") if hasattr(old, name)}
    new = SLA(old.proj_lin.in_features, 1, **_merged(own, settings))  # type: ignore[arg-type]
    new.proj_lin, new.lam = old.proj_lin, old.lam
    return new.train(old.training)


def _merged(before: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, object]:
    whole = {**before, **settings}
    blocks = whole.get("mode", "block") == "block" and whole.get("filling", "masked") == "masked"
    if whole.get("special") == "dense" and not blocks and "special" not in settings:
        whole["special"] = "alike"
    return whole
