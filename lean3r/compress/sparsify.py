"""Exchange the attention mechanisms of a network; its trained parameters stay untouched."""

from __future__ import annotations

import copy
import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import nn

from lean3r.attention import ATTENTION
from lean3r.attention.base import Mechanism
from lean3r.compress.foreign import Adopted, ForeignAttention, adopt, map_sites, refuse_nested_tensors
from lean3r.compress.fp8_linear import Quantized, deploy, insert
from lean3r.compress.linears import sites_of
from lean3r.compress.plan import FROM_MODEL, CompressionPlan, Step, resolve_plan
from lean3r.compress.targets import TRUNK, Site, Target, places_of
from lean3r.errors import KernelError, UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.layers.block import Block
from lean3r.layers.removed import Removed
from lean3r.types import Plan

PLAN_KEY, STAGE_KEY = "plan", "stage"  # in the metadata of a checkpoint
PREPARED = "prepared"  # the stage in which weights are rounded only while they run

M = TypeVar("M", bound=nn.Module)
logger = logging.getLogger("lean3r")


@runtime_checkable
class Compressed(Protocol):
    """Attributes that compression sets on any network; models/base.py declares them for ours."""

    plan: Plan | None
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """The result for one attention layer: repr of its mechanism, and its new parameters."""

    site: Site
    mechanism: str
    dense_below: int
    new_parameters: Mapping[str, tuple[int, ...]]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "layer": self.site.name,
            "role": self.site.role,
            "mechanism": self.mechanism,
            "dense_below": self.dense_below,
            "new_parameters": {name: list(shape) for name, shape in self.new_parameters.items()},
        }


def compress(
    model: M, plan: str | Path | Mapping[str, object] | CompressionPlan, *, adapter: ForeignAttention | None = None
) -> M:
    """Return a network compressed by `plan`: a name in PLANS, a JSON file, a dict or a CompressionPlan.

    `model` is unchanged, and the new network shares its parameters: this takes no memory, and training one trains both.
    Mechanisms initialise the parameters that only they have, in the dtype and on the device of the layer. `adapter`
    (compress/foreign.py) says where attention is in third-party networks. Linear layers that the plan quantises are
    stored as codes, in their own memory (see quantize.convert).

    UsageError if the plan is invalid, if it selects blocks that the network lacks, and if the network is compressed
    already, unless the plan only quantises a sparse network. KernelError if the plan has implementation="triton" and
    the kernels do not support the heads or blocks; an unsupported device or dtype, which may still change, is reported
    by the first run.
    """
    compressed, changes = apply(model, resolve_plan(plan), adapter)
    counts = Counter(change.scheme for change in changes if isinstance(change, Quantized))
    for scheme, count in counts.items():
        logger.info("%s: %d linear layers", scheme, count)
    for change in changes:
        if isinstance(change, Quantized):
            continue
        logger.info("%s: %s", change.site.name, change.mechanism)
        if change.new_parameters:
            logger.info("new: %s", ", ".join(f"{name} {list(s)}" for name, s in change.new_parameters.items()))
    return compressed


def apply(
    model: M, plan: CompressionPlan, adapter: ForeignAttention | None = None, *, prepared: bool = False
) -> tuple[M, list[Change | Quantized]]:
    """`compress`, with a list of the changes, layer by layer; `prepared` keeps linear layers trainable."""
    before = plan_of(model)
    if before is not None:
        if before.quantizes or plan.exchanges or plan.removals:
            raise UsageError(
                f"the network is compressed already, by plan '{before.name}'. Start from the network without it, "
                "or put all steps into one plan."
            )
        whole = before + plan
    else:
        whole = plan
    if plan.quantizes and hasattr(model, "peft_config"):
        raise UsageError(
            "the network has low-rank adapters, which would be rounded too: merge them first "
            "(lean3r.train.lora.merge_lora), then quantise."
        )
    model = copy_sharing_parameters(model)
    refuse_nested_tensors(model)
    changes: list[Change | Quantized] = []
    if adapter is not None:
        map_sites(model, adapter)
    if plan.exchanges:
        sites = sites_of(model)
        if adapter is None and not any(isinstance(module, SelfAttention) for module in model.modules()):
            raise UsageError(
                f"the network has nothing for '{plan.exchanges[0].target}': {type(model).__name__} has no attention "
                "layer of lean3r. For a third-party network, pass adapter=..., which says where its attention is "
                "(docs/how-to/third-party.md)."
            )
        places = places_of(sites)
        step_of: dict[str, Step] = {}
        for step in plan.exchanges:
            step_of |= {place.name: step for place in Target.of_attention(step.target).select(places)}
        if adapter is not None:
            adopt(model, list(step_of), adapter)
        changes += [_exchange(model, site, step_of[site.name]) for site in sites if site.name in step_of]
    if plan.removals:
        sites = sites_of(model)
        places = places_of(sites)
        gone = {place.name for step in plan.removals for place in Target.of_attention(step.remove).select(places)}
        changes = [change for change in changes if not (isinstance(change, Change) and change.site.name in gone)]
        changes += [_remove(model, site) for site in sites if site.name in gone]
    if plan.quantizes:
        changes += insert(model, plan.quantizes)
        if not prepared:
            deploy(model)
    mark(model, whole, prepared=prepared)
    return model, changes


def mark(model: nn.Module, plan: CompressionPlan, *, prepared: bool = False) -> None:
    """Record the plan, and whether the network is only prepared, on a network and in the metadata for checkpoints."""
    stage = {STAGE_KEY: PREPARED} if prepared else {}
    compressed = cast(Compressed, model)  # any module can have these attributes
    compressed.plan, compressed.metadata = plan, {PLAN_KEY: plan.to_json(), **stage}


def plan_of(model: nn.Module) -> CompressionPlan | None:
    """The plan by which a network was compressed; None if it was not."""
    plan = model.plan if isinstance(model, Compressed) else None
    return plan if isinstance(plan, CompressionPlan) else None


def stored_plan(metadata: Mapping[str, str]) -> CompressionPlan | None:
    """The plan in the metadata of a checkpoint; None if there is none, UsageError if it cannot be read."""
    return CompressionPlan.from_json(metadata[PLAN_KEY]) if PLAN_KEY in metadata else None


def copy_sharing_parameters(model: M) -> M:
    """A copy of a network with new modules that share the parameters and buffers of the original."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _exchange(model: nn.Module, site: Site, step: Step) -> Change:
    attention = model.get_submodule(site.name)
    assert isinstance(attention, SelfAttention | Adopted)
    if isinstance(attention, SelfAttention) and attention.fixed:
        raise UsageError(f"the mechanism of {site.name} cannot be exchanged: {attention.fixed}. Choose another target.")
    if next(attention.mechanism.parameters(), None) is not None:
        raise UsageError(
            f"{site.name} has a mechanism with its own parameters, which would be lost: choose a target without it."
        )
    weight = next(attention.parameters())
    with torch.device("cpu") if weight.is_meta else weight.device:  # new parameters have values even on a meta network
        mechanism = _build(step, site).to(weight.dtype).train(attention.training)
    if step.dense_below:
        attention.short, attention.dense_below = attention.mechanism, step.dense_below
    attention.mechanism = mechanism
    new = {f"{site.name}.mechanism.{name}": tuple(p.shape) for name, p in mechanism.named_parameters()}
    return Change(site, repr(mechanism), step.dense_below, new)


def _remove(model: nn.Module, site: Site) -> Change:
    path = site.name.rpartition(".")[0]
    block = model.get_submodule(path)
    if site.role not in TRUNK or type(block) is not Block:
        raise UsageError(f"{path} cannot be removed; expected frame or global blocks of a trunk that runs each once.")
    weight = next(block.parameters())
    with weight.device:
        gap = Removed(site.dim).to(weight.dtype).train(block.training)
    model.set_submodule(path, gap)
    new = {f"{path}.{name}": tuple(p.shape) for name, p in gap.named_parameters()}
    return Change(site, "removed", 0, new)


def _build(step: Step, site: Site) -> Mechanism:
    kind = ATTENTION.get(step.mechanism)
    sizes = {"dim": site.dim, "heads": site.heads}
    dimensions = {name: sizes[name] for name in FROM_MODEL if name in inspect.signature(kind).parameters}
    try:
        mechanism = kind(**dimensions, **step.settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{step.mechanism} does not accept these settings at {site.name}: {error}.") from error
    reason = mechanism.unsupported(site.dim // site.heads)
    if reason and step.settings.get("implementation") == "triton":
        raise KernelError(
            f"{step.mechanism} cannot run with implementation='triton' at {site.name}: {reason}. Use 'auto'."
        )
    return mechanism
