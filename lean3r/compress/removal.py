"""Removal of whole blocks of the trunk: each leaves a matrix, fitted on pictures to what the block did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lean3r.compress.plan import CompressionPlan, resolve_plan
from lean3r.compress.sparsify import compress, copy_sharing_parameters
from lean3r.errors import UsageError
from lean3r.layers.removed import Removed
from lean3r.types import TokenLayout

RIDGE = 1e-6  # of the mean square of a channel's inputs, over all tokens together

M = TypeVar("M", bound=nn.Module)


def remove(model: M, plan: str | Path | Mapping[str, object] | CompressionPlan, run: Callable[[M], object]) -> M:
    """`compress` by a plan that removes blocks, with their matrices fitted; `run` runs a network on the pictures.

    From the first gap to the last, each matrix is fitted by ridge regression: from what reaches the gap once those
    before it are repaired, to what the block gave in the network with no block removed. It runs once for each block.
    UsageError as compress, and if the plan removes no block.
    """
    plan = resolve_plan(plan)
    if not plan.removals:
        raise UsageError(f"plan {plan.name} removes no block; expected a step such as {{'remove': 'global blocks 1'}}.")
    removed = compress(model, plan)
    gaps = {name: gap for name, gap in removed.named_modules() if isinstance(gap, Removed)}
    whole = copy_sharing_parameters(removed)
    for name in gaps:
        whole.set_submodule(name, copy_sharing_parameters(model.get_submodule(name)))
    goals: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _block, _args, output: goals.__setitem__(name, output)

    hooks = [whole.get_submodule(name).register_forward_hook(keep(name)) for name in gaps]
    with torch.no_grad():
        run(whole)
        for hook in hooks:
            hook.remove()
        for name, gap in gaps.items():
            calls: list[tuple[Tensor, TokenLayout, Tensor | None]] = []

            def keep_call(_gap: nn.Module, args: Any, calls: list[Any] = calls) -> None:
                calls.append(args)

            hook = gap.register_forward_pre_hook(keep_call)
            run(removed)
            hook.remove()
            _fit(gap, *calls[-1], goals.pop(name))
    return removed


def _fit(gap: Removed, x: Tensor, layout: TokenLayout, key_mask: Tensor | None, goal: Tensor) -> None:
    """Set the matrices of a gap by its inputs and the outputs of the block, both [B, N, C].

    There are few special tokens, so their matrix is drawn to that of all tokens, as strongly as one token counts.
    """
    special = torch.arange(x.shape[1], device=x.device) % layout.tokens < layout.special
    known = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if key_mask is None else key_mask
    x, change = x.double(), (goal - x).double()
    everything = _solve(x[known], change[known], RIDGE * x[known].square().mean())
    for weight, kind in ((gap.special, special), (gap.patch, ~special)):
        rows = known & kind
        if rows.any():
            left = change[rows] - x[rows] @ everything
            matrix = everything + _solve(x[rows], left, x[rows].square().sum(1).mean())
            weight.copy_(matrix.T)


def _solve(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """W [C, C] with the least |x W - y|² + ridge |W|², for rows x and y [n, C]."""
    squares = x.T @ x + ridge.clamp_min(1e-12) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(squares, x.T @ y)
