"""A dense head that sharpens coarse depth along the edges of the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GuidedUpsampler(nn.Module):
    """Depth and confidence at full resolution from patch tokens, a coarse depth and the picture.

    Tokens are spread over the quarter grid, joined with picture features there, and give a residual to the
    coarse log depth, a confidence, and convex weights that carry both to every pixel (each pixel mixes its
    3x3 neighbours on the quarter grid, so that edges stay sharp).
    """

    def __init__(self, dim: int, patch: int, hidden: int = 48):
        super().__init__()
        self.spread = patch // 4
        self.token = nn.Linear(dim, hidden * self.spread**2)
        self.guide1 = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.guide2 = nn.Conv2d(24, hidden, 3, stride=2, padding=1)
        self.fuse1 = nn.Conv2d(2 * hidden + 1, hidden, 3, padding=1)
        self.fuse2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, 2, 3, padding=1)
        self.weights = nn.Conv2d(hidden, 9 * 16, 1)

    def forward(self, tokens: Tensor, log_depth: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [N, P, C], log_depth [N, rows, cols], images [N, 3, H, W] -> log depth and confidence - 1 as
        a logarithm, both [N, H, W]."""
        rows, cols = log_depth.shape[-2:]
        pixels = ((images - 0.5) * 4).contiguous(memory_format=torch.channels_last)
        guide = self.guide2(F.gelu(self.guide1(pixels)))
        spread = self.token(tokens).transpose(1, 2).unflatten(-1, (rows, cols))
        spread = F.pixel_shuffle(spread, self.spread)
        coarse = F.interpolate(log_depth[:, None].float(), scale_factor=self.spread, mode="bilinear")
        x = torch.cat([guide, spread.to(guide.dtype), coarse.to(guide.dtype)], dim=1)
        x = F.gelu(self.fuse1(F.gelu(x)))
        x = F.gelu(x + self.fuse2(x))
        values = self.out(x).float()
        values = torch.cat([coarse + values[:, :1], values[:, 1:]], dim=1)
        full = _convex_upsample(values, self.weights(x).float())
        return full[:, 0], full[:, 1]


def _convex_upsample(values: Tensor, weights: Tensor) -> Tensor:
    """[N, K, h, w] and weights [N, 9 * 16, h, w] -> [N, K, 4h, 4w]: each pixel a convex mix of 3x3 neighbours."""
    count, _, rows, cols = values.shape
    share = weights.view(count, 1, 9, 16, rows, cols).softmax(dim=2)
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    neighbours = torch.stack(
        [padded[:, :, dy : dy + rows, dx : dx + cols] for dy in range(3) for dx in range(3)], dim=2
    )
    mixed = (share * neighbours[:, :, :, None]).sum(dim=2)
    return F.pixel_shuffle(mixed.flatten(1, 2), 4)
