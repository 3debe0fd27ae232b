"""Which blocks a task affects most: gradient norms of an unchanged network over a few batches.

Source: Aletheia (arXiv 2604.15351), which adds adapters to the half of the layers with the largest gradients. Whether
this is better than a random choice depends on the task (benchmarks/adapters.py), so use the scores as a guide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import Tensor, nn

from lean3r.compress.linears import blocks_of, linears_of, sites_of
from lean3r.compress.targets import Mapped
from lean3r.data.base import SceneBatch
from lean3r.errors import LeanError, UsageError
from lean3r.layers.block import Block
from lean3r.layers.looped import LoopedTrunk
from lean3r.train.losses.geometry import camera_depth_loss
from lean3r.types import Views

BATCHES = 5
GROUP = 8
B = TypeVar("B")


@dataclass(frozen=True)
class Unit:
    """A candidate for adapters: a block, or one linear layer of a looped block.

    `index` is its position in the network; `target` names its linear layers for add_lora or a plan.
    """

    index: int
    role: str
    target: str
    path: str


@dataclass(frozen=True)
class Score:
    """How strongly a task affects a unit: `score` is the sum of gradient norms over batches and tensors;
    `parameters` is the number of parameters of the unit."""

    unit: Unit
    score: float
    parameters: int

    def as_dict(self) -> dict[str, str | int | float]:
        """JSON-ready."""
        return {
            "index": self.unit.index,
            "role": self.unit.role,
            "target": self.unit.target,
            "score": self.score,
            "parameters": self.parameters,
        }


class Report(TypedDict):
    """The output of `lean3r probe --json` for the units of a network."""

    units: list[dict[str, str | int | float]]
    targets: list[str]
    lowest_index: int
    share_of_parameters: float


def units_of(model: nn.Module) -> list[Unit]:
    """The blocks of encoder and trunk, in order; for looped blocks, their linear layers instead.

    UsageError if the network has no such blocks.
    """
    looped = [
        f"{path}.blocks.{index}.".lstrip(".")
        for path, trunk in model.named_modules()
        if isinstance(trunk, LoopedTrunk)
        for index in range(trunk.looped_from, len(trunk.blocks))
    ]
    blocks = blocks_of(model, [site.name for site in sites_of(model)]).values() if isinstance(model, Mapped) else ()
    units: dict[str, Unit] = {}
    for site in linears_of(model):
        if site.number is None or site.part not in ("encoder", "frame", "global"):
            continue
        if any(site.name.startswith(path) for path in looped):
            path, target = site.name, f"named {site.name}"
        elif isinstance(model, Mapped):
            path = next(block for block in blocks if f"{site.name}.".startswith(f"{block}."))
            target = f"named {path}.*"
        else:
            path, target = _block(model, site.name), f"{site.part} blocks {site.number}"
        units.setdefault(path, Unit(len(units), site.part, target, path))
    if not units:
        raise UsageError(
            "the network has no encoder or trunk blocks with gradients to compare; quantised layers have no gradients. "
            "Use a lean3r model that is not quantised."
        )
    return list(units.values())


def gradient_scores(
    model: nn.Module,
    batches: Sequence[B],
    loss: Callable[[nn.Module, B], Tensor],
    *,
    units: Sequence[Unit] | None = None,
    group: int = GROUP,
) -> list[Score]:
    """Score of every unit (`units_of` by default): sum over batches and tensors of the 2-norm of the loss's gradient.

    Gradients are computed for `group` units at a time, which bounds memory and does not change scores.
    `loss(model, batch)` returns a scalar and must be deterministic. The network is in training mode during the call and
    restored afterwards. UsageError without batches or if all gradients are zero, LeanError if one is not finite.
    """
    if not batches:
        raise UsageError("got no batches to compute gradients on, expected a few, such as 5.")
    if group < 1:
        raise UsageError(f"got groups of {group} blocks, expected at least 1.")
    units = units_of(model) if units is None else units
    owned = [list(model.get_submodule(unit.path).parameters()) for unit in units]
    totals = [0.0] * len(units)
    before, training = {p: p.requires_grad for p in model.parameters()}, model.training
    model.train()
    try:
        for first in range(0, len(units), group):
            some = range(first, min(first + group, len(units)))
            model.requires_grad_(False)
            for index in some:
                for parameter in owned[index]:
                    parameter.requires_grad_(True)
            for number, batch in enumerate(batches):
                for index, norm in zip(some, _norms(model, batch, loss, [owned[i] for i in some]), strict=True):
                    if not math.isfinite(norm):
                        raise LeanError(
                            f"batch {number}: the gradient at {units[index].path} is not finite; check the data."
                        )
                    totals[index] += norm
    finally:
        for parameter, needs in before.items():
            parameter.requires_grad_(needs)
        model.train(training)
    if not any(totals):
        raise UsageError(
            "all gradients are zero: the loss does not depend on any block. Use another loss or other data."
        )
    counts = [sum(p.numel() for p in parameters) for parameters in owned]
    return [Score(*row) for row in zip(units, totals, counts, strict=True)]


def prediction_loss(model: nn.Module, batch: SceneBatch) -> Tensor:
    """A loss for any backbone: predicted cameras and depth against the ground truth of the batch."""
    prediction = model(Views(batch.images, batch.mask))
    return camera_depth_loss(prediction, batch, batch.depth > 0)[0]


def strongest(scores: Sequence[Score], share: float = 0.5, *, by_role: bool = True) -> list[Unit]:
    """The units with the highest scores, max(1, floor(share x number)) of each role or of all, in network order."""
    if not 0 < share <= 1:
        raise UsageError(f"share of blocks is {share!r}, expected a number above 0 and at most 1.")
    roles = sorted({score.unit.role for score in scores}) if by_role else [None]
    chosen: list[Unit] = []
    for role in roles:
        pool = [score for score in scores if role in (None, score.unit.role)]
        pool.sort(key=lambda score: -score.score)
        chosen += [score.unit for score in pool[: max(1, math.floor(share * len(pool)))]]
    return sorted(chosen, key=lambda unit: unit.index)


def report(scores: Sequence[Score], share: float = 0.5) -> Report:
    """A JSON-ready report: all units with their scores, the units that `strongest` selects, and their lowest index
    (the backward pass must reach this unit)."""
    chosen = strongest(scores, share)
    taken = {unit.index for unit in chosen}
    chosen_parameters = sum(score.parameters for score in scores if score.unit.index in taken)
    return Report(
        units=[score.as_dict() | {"chosen": score.unit.index in taken} for score in scores],
        targets=[unit.target for unit in chosen],
        lowest_index=min(taken),
        share_of_parameters=chosen_parameters / sum(score.parameters for score in scores),
    )


def _norms(
    model: nn.Module, batch: B, loss: Callable[[nn.Module, B], Tensor], owned: Sequence[Sequence[nn.Parameter]]
) -> list[float]:
    flat = [parameter for parameters in owned for parameter in parameters]
    with torch.enable_grad():
        value = loss(model, batch)
        if not value.requires_grad:
            return [0.0] * len(owned)
        gradients = iter(torch.autograd.grad(value, flat, allow_unused=True))
    return [
        sum(float(torch.linalg.vector_norm(g.double())) for g in (next(gradients) for _ in parameters) if g is not None)
        for parameters in owned
    ]


def _block(model: nn.Module, layer: str) -> str:
    """The path of the transformer block around a linear layer."""
    path = layer
    while not isinstance(model.get_submodule(path), Block):
        path = path.rpartition(".")[0]
    return path
