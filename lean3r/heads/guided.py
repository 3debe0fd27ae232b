"""A dense head that upsamples coarse depth along the edges of the picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Surfaces(NamedTuple):
    """Two surfaces that each pixel may belong to: a mixture of two Laplace distributions of log depth.

    Each field is [..., H, W]: first and second log depth, the logarithms of their widths, and the log odds of the
    first. The likelier surface, unlike a mean, keeps depth edges steep even if their location is uncertain.
    Source: Tosi et al. 2021, "SMD-Nets" (section 3).
    """

    first: Tensor
    second: Tensor
    log_width_first: Tensor
    log_width_second: Tensor
    log_odds: Tensor

    @property
    def log_depth(self) -> Tensor:
        """Log depth of the likelier surface, [..., H, W]. (The one with the higher peak, as in the source, is steeper
        but less accurate on average.)"""
        return torch.where(self.log_odds > 0, self.first, self.second)

    @property
    def error(self) -> Tensor:
        """Expected absolute error of `log_depth` if the mixture is correct, [..., H, W]."""
        takes_first = self.log_odds > 0
        widths = self.log_width_first.exp(), self.log_width_second.exp()
        own, other = torch.where(takes_first, *widths), torch.where(takes_first, *widths[::-1])
        gap = (self.first - self.second).abs()
        right = self.log_odds.abs().sigmoid()
        return right * own + (1 - right) * (gap + other * (-gap / other).exp())


LOG_WIDTHS = (-3.5, 1.0)  # bounds, so that no single pixel dominates the gradient
_START = (-0.2, 0.2, -1.5, -1.5, 0.0)  # equal surfaces would stay equal


class GuidedUpsampler(nn.Module):
    """Depth and confidence at full resolution from patch tokens, a coarse depth and the picture.

    Tokens are upsampled to 1/8 of the picture's resolution, then to 1/4, and combined with features of the picture
    at both. At 1/4 resolution they give residuals of both surfaces from the coarse log depth, the other fields of
    `Surfaces`, and convex weights that upsample all of it to full resolution (each pixel mixes 3x3 neighbours). `patch`
    is a multiple of 8 pixels.
    """

    def __init__(self, dim: int, patch: int, middle: int = 96, hidden: int = 48):
        super().__init__()
        self.patch = patch
        self.token = nn.Linear(dim, middle * (patch // 8) ** 2)
        self.picture2 = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.picture4 = nn.Conv2d(24, hidden, 3, stride=2, padding=1)
        self.picture8 = nn.Conv2d(hidden, middle, 3, stride=2, padding=1)
        self.blocks8 = nn.ModuleList(Residual(middle) for _ in range(2))
        self.widen = nn.Conv2d(middle, hidden * 4, 1)
        self.join4 = nn.Conv2d(hidden + 1, hidden, 3, padding=1)
        self.block4 = Residual(hidden)
        self.out = nn.Conv2d(hidden, len(Surfaces._fields), 3, padding=1)
        self.weights = nn.Conv2d(hidden, 9 * 16, 1)
        nn.init.normal_(self.out.weight, std=1e-2)
        with torch.no_grad():
            assert self.out.bias is not None
            self.out.bias.copy_(torch.tensor(_START))

    def forward(self, tokens: Tensor, log_depth: Tensor, images: Tensor) -> Surfaces:
        """tokens [N, P, C], log_depth [N, rows, cols], images [N, 3, H, W] -> surfaces [N, H, W]."""
        rows, cols = log_depth.shape[-2:]
        pixels = ((images - 0.5) * 4).contiguous(memory_format=torch.channels_last)
        picture4 = self.picture4(F.gelu(self.picture2(pixels)))
        spread = self.token(tokens).transpose(1, 2).unflatten(-1, (rows, cols))
        x = F.pixel_shuffle(spread, self.patch // 8) + self.picture8(F.gelu(picture4))
        for block in self.blocks8:
            x = block(x)
        coarse = F.interpolate(log_depth[:, None].float(), scale_factor=self.patch // 4, mode="bilinear")
        x = F.gelu(F.pixel_shuffle(self.widen(F.gelu(x)), 2) + picture4)
        x = F.gelu(self.block4(self.join4(torch.cat([x, coarse.to(x.dtype)], dim=1))))
        values = self.out(x).float()
        values = torch.cat([coarse + values[:, :2], values[:, 2:]], dim=1)
        first, second, width_first, width_second, log_odds = _convex_upsample(values, self.weights(x).float()).unbind(1)
        return Surfaces(first, second, width_first.clamp(*LOG_WIDTHS), width_second.clamp(*LOG_WIDTHS), log_odds)


class Residual(nn.Module):
    """Two 3x3 convolutions on a branch: x + conv(gelu(conv(gelu(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]."""
        return x + self.conv2(F.gelu(self.conv1(F.gelu(x))))


def _convex_upsample(values: Tensor, weights: Tensor) -> Tensor:
    """[N, K, h, w] and weights [N, 9 * 16, h, w] -> [N, K, 4h, 4w]: each pixel a convex mix of 3x3 neighbours."""
    count, _, rows, cols = values.shape
    share = weights.view(count, 9, 16, rows, cols).softmax(dim=1)
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")[:, :, None]
    mixed = torch.zeros((), dtype=values.dtype, device=values.device)
    for place in range(9):  # one after the other: all products at once would be written to memory and read again
        down, right = divmod(place, 3)
        neighbour = padded[..., down : down + rows, right : right + cols]
        mixed = torch.addcmul(mixed, share[:, None, place], neighbour)
    return F.pixel_shuffle(mixed.flatten(1, 2), 4)
