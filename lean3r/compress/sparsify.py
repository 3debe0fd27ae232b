"""Exchange attention mechanisms in a network; what it has learned goes along untouched."""

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
from lean3r.compress.foreign import Adopted, ForeignAttention, adopt
from lean3r.compress.fp8_linear import Quantized, deploy, insert
from lean3r.compress.plan import FROM_MODEL, CompressionPlan, Step, resolve_plan
from lean3r.compress.targets import Site, Target, places_of, sites_of
from lean3r.errors import KernelError, UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.types import Plan

PLAN_KEY, STAGE_KEY = "plan", "stage"  # in the metadata of a checkpoint
PREPARED = "prepared"  # the stage of weights that are rounded only while they run

M = TypeVar("M", bound=nn.Module)
logger = logging.getLogger("lean3r")


@runtime_checkable
class Compressed(Protocol):
    """What compression leaves on any network; our own declare it in models/base.py."""

    plan: Plan | None
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """What became of one attention layer: repr of its mechanism, and the parameters that it had not before."""

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
    """A network as `plan` (a name in PLANS, a JSON file, a dict or a CompressionPlan) would have it.

    The network that is given stays as it is, and the new one shares its parameters: no memory is spent, and training
    one trains both. Parameters that only the new mechanisms have start as these say, in the layer's number type and
    on its device. `adapter` (compress/foreign.py) says where attention is in networks that are not ours.
    Linear layers that the plan quantises are stored as codes, in memory of their own (see quantize.convert).
    UsageError where the plan makes no sense, where it names blocks that the network lacks, and where the network is
    compressed already, unless the plan only quantises what was made sparse. KernelError where implementation="triton"
    is asked for and the kernels have no form for the heads or blocks; what they have against a device or a type of
    numbers, which may still change, is raised by the first run.
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
    """`compress` with a list of what changed, layer by layer; `prepared` leaves linear layers trainable."""
    before = plan_of(model)
    if before is not None:
        if before.quantizes or plan.exchanges:
            raise UsageError(
                f"the network is compressed already, by plan '{before.name}'. Start from the one without it, "
                "or put both steps into one plan."
            )
        whole = before + plan
    else:
        whole = plan
    model = shared_copy(model)
    changes: list[Change | Quantized] = []
    if plan.exchanges:
        sites = sites_of(model) if adapter is None else list(adapter.sites(model))
        places = places_of(sites)
        wanted: dict[str, Step] = {}
        for step in plan.exchanges:
            wanted |= {place.name: step for place in Target.of_attention(step.target).select(places)}
        if adapter is not None:
            adopt(model, list(wanted), adapter)
        changes += [_exchange(model, site, wanted[site.name]) for site in sites if site.name in wanted]
    if plan.quantizes:
        changes += insert(model, plan.quantizes)
        if not prepared:
            deploy(model)
    mark(model, whole, prepared=prepared)
    return model, changes


def mark(model: nn.Module, plan: CompressionPlan, *, prepared: bool = False) -> None:
    """Note on a network, and for the metadata of its checkpoints, the plan and whether it is prepared only."""
    stage = {STAGE_KEY: PREPARED} if prepared else {}
    compressed = cast(Compressed, model)  # every module takes such attributes, whether its class declares them or not
    compressed.plan, compressed.metadata = plan, {PLAN_KEY: plan.to_json(), **stage}


def plan_of(model: nn.Module) -> CompressionPlan | None:
    """The plan that a network was compressed with; None for a dense one."""
    plan = model.plan if isinstance(model, Compressed) else None
    return plan if isinstance(plan, CompressionPlan) else None


def stored_plan(metadata: Mapping[str, str]) -> CompressionPlan | None:
    """The plan in the metadata of a checkpoint; None where there is none, UsageError where it cannot be read."""
    return CompressionPlan.from_json(metadata[PLAN_KEY]) if PLAN_KEY in metadata else None


def shared_copy(model: M) -> M:
    """A copy of a network whose modules are its own and whose parameters and buffers are those of the original."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _exchange(model: nn.Module, site: Site, step: Step) -> Change:
    attention = model.get_submodule(site.name)
    assert isinstance(attention, SelfAttention | Adopted)
    if next(attention.mechanism.parameters(), None) is not None:
        raise UsageError(f"{site.name} has a mechanism with parameters of its own, which would be lost. Leave it out.")
    weight = next(attention.parameters())
    with torch.device("cpu") if weight.is_meta else weight.device:  # what is new has values even where nothing else has
        mechanism = _build(step, site).to(weight.dtype).train(attention.training)
    if step.dense_below:
        attention.short, attention.dense_below = attention.mechanism, step.dense_below
    attention.mechanism = mechanism
    new = {f"{site.name}.mechanism.{name}": tuple(p.shape) for name, p in mechanism.named_parameters()}
    return Change(site, repr(mechanism), step.dense_below, new)


def _build(step: Step, site: Site) -> Mechanism:
    kind = ATTENTION.get(step.mechanism)
    sizes = {"dim": site.dim, "heads": site.heads}
    taken = {name: sizes[name] for name in FROM_MODEL if name in inspect.signature(kind).parameters}
    try:
        mechanism = kind(**taken, **step.settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{step.mechanism} does not take these settings at {site.name}: {error}.") from error
    reason = mechanism.unsupported(site.dim // site.heads)
    if reason and step.settings.get("implementation") == "triton":
        raise KernelError(
            f"{step.mechanism} cannot run by implementation='triton' at {site.name}: {reason}. Take 'auto'."
        )
    return mechanism
