"""Attention-output distillation (Lite3R): match the outputs of the student's attention layers to the teacher's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lean3r.layers.attention import SelfAttention
from lean3r.layers.removed import Removed
from lean3r.layers.vit import VisionTransformer

LAYERS = (SelfAttention, Removed)


@dataclass(frozen=True)
class AttentionLoss:
    """`loss` is the mean of `per_layer`, the mean squared differences of the layer pairs numbered in `layers`."""

    loss: Tensor
    per_layer: tuple[Tensor, ...]
    layers: tuple[int, ...]


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> AttentionLoss:
    """Mean over layers of MSE(student, teacher), for outputs of any shape, in the order of execution.

    Outputs are paired in order, up to the shorter list; pairs of different shapes are left out. Without a pair the loss
    is 0. Gradients flow to the student only; the teacher is cast to the student's dtype.
    """
    pairs = [(i, s, t) for i, (s, t) in enumerate(zip(student, teacher, strict=False)) if s.shape == t.shape]
    each = tuple((s - t.detach().to(s.dtype)).square().mean() for _, s, t in pairs)
    zero = student[0].new_zeros(()) if student else torch.zeros(())
    loss = torch.stack(each).mean() if each else zero
    return AttentionLoss(loss, each, tuple(i for i, _, _ in pairs))


def gamma(step: int, total: int, *, highest: float = 0.1, lowest: float = 0.01) -> float:
    """Weight of the loss at a step: a half cosine from `highest` down to `lowest`; `highest` if total <= 0."""
    if total <= 0:
        return highest
    done = min(max(step / total, 0.0), 1.0)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * done)) / 2


@contextmanager
def attention_outputs(
    model: nn.Module, is_attention: Callable[[nn.Module], bool] = lambda module: isinstance(module, LAYERS)
) -> Iterator[list[Tensor]]:
    """Collect the outputs [..., N, C] of all attention layers, after projection, in order of execution.

    An encoder that gets its views in chunks counts once; a head that iterates counts each time; a removed block counts
    as a layer with an output of its own shape, [0], so that the layers behind it keep their partners. Clear the list
    between steps. `is_attention` selects the layers of third-party networks.
    """
    outputs: list[Tensor] = []
    places: dict[nn.Module, int] = {}
    encoders = {m for part in model.modules() if isinstance(part, VisionTransformer) for m in part.modules()}

    def note(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if not outputs:
            places.clear()
        mixed = output[0] if isinstance(output, tuple) else output
        if isinstance(module, Removed):
            mixed = mixed.new_empty(0)
        if module in places:
            outputs[places[module]] = torch.cat([outputs[places[module]], mixed])
            return
        if module in encoders:
            places[module] = len(outputs)
        outputs.append(mixed)

    hooks = [module.register_forward_hook(note) for module in model.modules() if is_attention(module)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
