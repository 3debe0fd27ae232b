"""Attention weights of any mechanism, from outside: outputs are linear in values, so gradients are weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected
from lean3r.types import TokenLayout


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a mechanism."""

    mechanism: Mechanism
    projected: Projected
    layout: TokenLayout


@contextmanager
def capturing(mechanisms: Iterable[Mechanism]) -> Iterator[list[Call]]:
    """Collect the calls of these mechanisms inside, in order; calls keep their tensors alive."""
    calls: list[Call] = []

    def note(mechanism: Mechanism, inputs: tuple[Projected, TokenLayout]) -> None:
        calls.append(Call(mechanism, *inputs))

    with ExitStack() as stack:
        for mechanism in mechanisms:
            stack.callback(mechanism.register_forward_pre_hook(note).remove)
        yield calls


def weights(call: Call, queries: Tensor) -> Tensor:
    """Mean weight [B, H, N] that the queries [n] (indices of tokens) give to each token, with fixed choices.

    This is the derivative of outputs by values, averaged over the channels of a head. For dense attention these are the
    softmax weights; for other mechanisms, the weighted sum over their branches, including any mixing of channels. The
    call must not have been made in inference mode.
    """
    p = call.projected
    with torch.enable_grad():
        v = p.v.detach().requires_grad_()
        out = call.mechanism(replace(p, x=p.x.detach(), q=p.q.detach(), k=p.k.detach(), v=v), call.layout)
        (gradient,) = torch.autograd.grad(out[:, :, queries].mean(2).sum(), v)
    return gradient.mean(-1)
