"""Patch tokens from pixels, and learned tokens that are added to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.tables import table

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet(images: Tensor) -> Tensor:
    """Normalise RGB in [0, 1], [..., 3, H, W], by ImageNet's mean and standard deviation."""
    mean, std = _mean_and_std(images)
    return (images - mean) / std


def before_imagenet(values: Tensor) -> Tensor:
    """The images [..., 3, H, W] of which `imagenet` makes these values, for networks that must get them unchanged."""
    mean, std = _mean_and_std(values)
    return values * std + mean


def _mean_and_std(like: Tensor) -> Tensor:
    return table(_statistics, (like.dtype == torch.float64,), like.device, like.dtype)


def _statistics(exact: bool) -> Tensor:
    kind = torch.float64 if exact else torch.float32
    return torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=kind)[:, :, None, None]


class ConvStem(nn.Module):
    """Patch tokens from 3x3 convolutions of stride 2; the patch size is 2 ** len(widths) pixels."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)):
        super().__init__()
        channels = (3, *widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, widths, strict=False)
        )
        self.norm = nn.LayerNorm(widths[-1])

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1] -> [N, rows * cols, C], row-major."""
        x = ((images - 0.5) * 4).contiguous(memory_format=torch.channels_last)
        for index, conv in enumerate(self.convs):
            x = conv(x if index == 0 else F.gelu(x))
        return self.norm(x.flatten(2).transpose(1, 2))


class SpecialTokens(nn.Module):
    """Learned tokens before the patches of every view, the same for all views (no reference view)."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.values = nn.Parameter(torch.randn(count, dim) * 0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, S, P, C] -> [B, S, count + P, C]."""
        tokens = self.values.expand(*patches.shape[:2], *self.values.shape).to(patches.dtype)
        return torch.cat([tokens, patches], dim=2)
