"""Removal of whole blocks of the trunk: which ones, and the matrix that each leaves, fitted on pictures.

Source: "Does the VGGT family need all its layers?" (arXiv 2609.36842).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lean3r.compress.calibrate import Outputs, error_of
from lean3r.compress.linears import sites_of
from lean3r.compress.plan import CompressionPlan, RemoveStep, resolve_plan
from lean3r.compress.sparsify import compress, copy_sharing_parameters
from lean3r.compress.targets import TRUNK
from lean3r.errors import UsageError
from lean3r.layers.removed import Removed
from lean3r.types import TokenLayout

RIDGE = 1e-6  # of the mean square of a channel's inputs, over all tokens together
TRIED = 16  # sets of blocks whose removal is measured
TOKENS = 1024  # of each kind, by which the states between blocks are compared

M = TypeVar("M", bound=nn.Module)
Ranges = tuple[tuple[int, int], ...]  # (first, end) of blocks in a row


@dataclass(frozen=True)
class Removal:
    """A plan that removes blocks, and the `error` of the outputs without them, before any repair: squared, in units of
    the outputs' variance."""

    plan: CompressionPlan
    error: float


def choose_blocks(model: M, run: Callable[[M], Outputs], count: int) -> list[Removal]:
    """Sets of `count` blocks of the trunk to remove, the best first: one range, or two with blocks between them.

    The change of a range is 1 - CKA of what enters and what leaves it, that of two ranges the sum. It is compared on
    all tokens, and on the mean of special tokens and patches. The TRIED sets with the least change are measured: `run`
    gives the outputs of a network for the pictures, once for the whole network and once for each set. UsageError if the
    trunk has no more than `count` blocks, or runs them several times.
    """
    names = [site.name.rpartition(".")[0] for site in sites_of(model) if site.role in TRUNK]
    if not 0 < count < len(names):
        raise UsageError(
            f"cannot remove {count} of {len(names)} blocks of the trunk; expected a smaller number from 1."
        )
    plans = {ranges: _without(ranges) for ranges in _sets(len(names), count)}
    compress(model, next(iter(plans.values())))
    whole, likeness = _compare(model, names, run)
    change: dict[Ranges, float] = {}
    for table in (likeness[0], (likeness[1] + likeness[2]) / 2):
        for ranges in plans:
            lost = sum(1 - float(table[first, end - 1]) for first, end in ranges)
            change[ranges] = min(lost, change.get(ranges, lost))
    found = []
    for ranges in sorted(change, key=change.__getitem__)[:TRIED]:
        with torch.no_grad():
            outputs = run(compress(model, plans[ranges]))
        error = sum(error_of(ours, theirs) for ours, theirs in zip(outputs, whole, strict=True))
        found.append(Removal(plans[ranges], error))
    return sorted(found, key=lambda removal: removal.error)


def _sets(length: int, count: int) -> Iterator[Ranges]:
    """Every way to take `count` of `length` blocks as one range, or as two that do not touch."""
    for first in range(length - count + 1):
        yield ((first, first + count),)
    for part in range(1, count):
        for first in range(length):
            for second in range(first + part + 1, length - (count - part) + 1):
                yield (first, first + part), (second, second + count - part)


def _without(ranges: Ranges) -> CompressionPlan:
    """The plan that removes blocks of the trunk."""
    texts = [f"{first}-{end - 1}" if end - first > 1 else f"{first}" for first, end in ranges]
    count = sum(end - first for first, end in ranges)
    return CompressionPlan((RemoveStep(f"all blocks {','.join(texts)}"),), f"without-{count}")


def _compare(model: M, names: Sequence[str], run: Callable[[M], Outputs]) -> tuple[Outputs, Tensor]:
    """The outputs, and the linear CKA [3, L, L] of what enters a block and what leaves a block: of all tokens, of
    special ones and of patches."""
    entering: list[list[Tensor]] = []
    leaving: list[list[Tensor]] = []

    def grams(x: Tensor, layout: TokenLayout) -> list[Tensor]:
        special = torch.arange(x.shape[1], device=x.device) % layout.tokens < layout.special
        kinds = (x, x[:, special] if layout.special else x, x[:, ~special])
        return [_gram(kind.flatten(0, 1)) for kind in kinds]

    hooks = []
    for block in map(model.get_submodule, names):
        hooks += [
            block.register_forward_pre_hook(lambda _block, args: entering.append(grams(*args[:2]))),
            block.register_forward_hook(lambda _block, args, output: leaving.append(grams(output, args[1]))),
        ]
    try:
        with torch.no_grad():
            outputs = run(model)
    finally:
        for hook in hooks:
            hook.remove()
    before, after = (
        [nn.functional.normalize(torch.stack(kind).flatten(1), dim=1) for kind in zip(*states, strict=True)]
        for states in (entering, leaving)
    )
    return outputs, torch.stack([x @ y.T for x, y in zip(before, after, strict=True)])


def _gram(x: Tensor) -> Tensor:
    """Inner products [n, n] of centred rows; n at most TOKENS of them, evenly spaced."""
    x = x[:: -(-len(x) // TOKENS)].double()
    x = x - x.mean(0)
    return x @ x.T


def remove(model: M, plan: str | Path | Mapping[str, object] | CompressionPlan, run: Callable[[M], object]) -> M:
    """`compress` by a plan that removes blocks, with their matrices fitted; `run` runs a network on the pictures.

    From the first gap to the last, each matrix is fitted by ridge regression: from what reaches the gap once those
    before it are repaired, to what the block gave in the network with no block removed. It runs once for each block,
    and may give the network any number of scenes, one after the other. UsageError as compress, and if the plan removes
    no block.
    """
    plan = resolve_plan(plan)
    if not plan.removals:
        raise UsageError(f"plan {plan.name} removes no block; expected a step such as {{'remove': 'global blocks 1'}}.")
    removed = compress(model, plan)
    gaps = {name: gap for name, gap in removed.named_modules() if isinstance(gap, Removed)}
    whole = copy_sharing_parameters(removed)
    for name in gaps:
        whole.set_submodule(name, copy_sharing_parameters(model.get_submodule(name)))
    with torch.no_grad():
        goals = {name: [output for _, output in calls] for name, calls in _last_calls(whole, list(gaps), run).items()}
        for name, gap in gaps.items():
            inputs = [args for args, _ in _last_calls(removed, [name], run)[name]]
            _fit(gap, [(*args, goal) for args, goal in zip(inputs, goals.pop(name), strict=True)])
    return removed


def _last_calls(network: nn.Module, names: Sequence[str], run: Callable[..., object]) -> dict[str, list[Any]]:
    """(arguments, output) of the last call of each of these modules in every call of the network by `run`: looped
    trunks call them several times."""
    found: dict[str, dict[int, Any]] = {name: {} for name in names}
    count = 0

    def begin(*_: object) -> None:
        nonlocal count
        count += 1

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, args, output: found[name].__setitem__(count, (args, output))

    hooks = [network.register_forward_pre_hook(begin)]
    hooks += [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        run(network)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: list(calls.values()) for name, calls in found.items()}


def _fit(gap: Removed, calls: Sequence[tuple[Tensor, TokenLayout, Tensor | None, Tensor]]) -> None:
    """Set the matrices of a gap by its inputs, with their layout and mask, and the outputs of the block, both
    [B, N, C], of every call.

    There are few special tokens, so their matrix is drawn to that of all tokens, as strongly as one token counts.
    """
    rows_of: list[tuple[Tensor, Tensor, Tensor]] = []
    for x, layout, key_mask, goal in calls:
        special = torch.arange(x.shape[1], device=x.device) % layout.tokens < layout.special
        known = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if key_mask is None else key_mask
        rows_of.append((x.double()[known], (goal - x).double()[known], special.expand(known.shape)[known]))
    x, change, special = (torch.cat(each) for each in zip(*rows_of, strict=True))
    everything = _solve(x, change, RIDGE * x.square().mean())
    for weight, rows in ((gap.special, special), (gap.patch, ~special)):
        if rows.any():
            left = change[rows] - x[rows] @ everything
            matrix = everything + _solve(x[rows], left, x[rows].square().sum(1).mean())
            weight.copy_(matrix.T)


def _solve(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """W [C, C] with the least |x W - y|² + ridge |W|², for rows x and y [n, C]."""
    squares = x.T @ x + ridge.clamp_min(1e-12) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(squares, x.T @ y)
