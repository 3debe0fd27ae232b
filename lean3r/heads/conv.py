"""A dense head of convolutions that doubles the resolution of the patch grid step by step (as in Pi3X)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.heads.dense import aspect_of
from lean3r.tracing import is_traced


def plane_coordinates(like: Tensor, aspect: float | Tensor) -> Tensor:
    """Coordinates [N, 2, h, w] (x, y) of cell centres; half the picture's diagonal is 1, aspect is width / height."""
    rows, cols = like.shape[-2:]
    diagonal = (aspect * aspect + 1) ** 0.5
    x, y = (_centres(count, span / diagonal, like.device) for span, count in ((aspect, cols), (1.0, rows)))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return grid.to(like.dtype).expand(like.shape[0], 2, rows, cols)


def _centres(count: int, span: float | Tensor, device: torch.device) -> Tensor:
    if is_traced():  # torch.linspace would fix the number
        return ((2 * torch.arange(count, device=device) + 1) / torch.full((), count, dtype=torch.float32) - 1) * span
    return torch.linspace(-1, 1, count, device=device) * (span * (count - 1) / count)


def _conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, padding_mode="replicate")


class ResidualConv(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))))), with a hidden layer twice as wide."""

    def __init__(self, channels: int, group: int = 32):
        super().__init__()
        hidden = 2 * channels
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            _conv3(channels, hidden),
            nn.GroupNorm(hidden // group, hidden),
            nn.ReLU(),
            _conv3(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]."""
        return x + self.layers(x)


class ConvPixels(nn.Module):
    """Patch tokens -> maps at picture size: per width one upsampling by 2 and two residual units, then the outputs.

    Plane coordinates are appended to the channels before each upsampling and before the outputs. `outputs` are the
    numbers of channels of the outputs.
    """

    def __init__(self, dim: int, widths: Sequence[int], outputs: Sequence[int], last: int = 32):
        super().__init__()
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(nn.ConvTranspose2d(a + 2, b, 2, stride=2), _conv3(b, b)),
                ResidualConv(b),
                ResidualConv(b),
            )
            for a, b in zip((dim, *widths), widths, strict=False)
        )
        self.output_block = nn.ModuleList(
            nn.Sequential(_conv3(widths[-1] + 2, last), nn.ReLU(), nn.Conv2d(last, channels, 1)) for channels in outputs
        )

    def forward(self, patches: Tensor, rows: int, cols: int, size: tuple[int, int]) -> Tensor:
        """[N, rows * cols, C] -> all outputs concatenated [N, channels, H, W]; `size` is (H, W)."""
        aspect = aspect_of(size[1], size[0])
        x = patches.transpose(1, 2).unflatten(-1, (rows, cols))
        for block in self.upsample_blocks:
            x = block(torch.cat([x, plane_coordinates(x, aspect)], dim=1))
        x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        x = torch.cat([x, plane_coordinates(x, aspect)], dim=1)
        return torch.cat([block(x) for block in self.output_block], dim=1)
