"""The contract of a backbone: encode views into tokens, decode tokens into a typed prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lean3r.types import Prediction, Tokens, Views


class Backbone(nn.Module):
    """Base of all backbones.

    `patch` is the side of a patch in network pixels (picture sides are multiples of it); `resolution` the
    default side of the square with the network picture's area; `licence` that of the published weights.
    """

    name: str
    patch: int
    resolution: int
    licence: str

    def encode(self, views: Views) -> Tokens:
        """Views [B, S, 3, H, W] -> the tokens that the heads read."""
        raise TypeError(f"{type(self).__name__} defines no encode")

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """Tokens -> cameras, and depth with confidence when `dense`."""
        raise TypeError(f"{type(self).__name__} defines no decode")

    def forward(self, views: Views) -> Prediction:
        """decode(encode(views))."""
        return self.decode(self.encode(views))

    @property
    def parameter_count(self) -> int:
        """Number of distinct parameters."""
        return sum(p.numel() for p in self.parameters())


def in_chunks(call: Callable[..., Sequence[Tensor]], size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply `call` to slices of `size` along the first axis and join the results; bounds peak memory."""
    parts = [call(*piece) for piece in zip(*(t.split(size) for t in tensors), strict=True)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
