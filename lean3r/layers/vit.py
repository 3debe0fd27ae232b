"""The DINOv2 vision transformer: patches, class and register tokens, a resizable position embedding, blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.layers.block import Block
from lean3r.layers.trunk import order_by_window, window_of
from lean3r.tracing import is_traced
from lean3r.types import TokenLayout

OFFSET = 0.1  # patches added to the size when the embedding is resized by scale factors, as in Depth Anything 3


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel size: one token per patch."""

    def __init__(self, dim: int, patch: int = 14, channels: int = 3):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, rows * cols, C], row-major; H and W are multiples of the patch."""
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Per-view encoder. Tokens: class, registers, patches; blocks without q/k norm and rotation.

    `grid` is the side of the learned position embedding in patches. `resize` is how it is resized: "antialias" to a
    size, with antialiasing (VGGT, Pi3); "offset" by scale factors for OFFSET patches more than needed, without
    antialiasing (Depth Anything 3). `eps` is for the norms of the blocks, `norm_eps` for the last norm. `mask_token`
    is a parameter of some checkpoints that no forward pass reads.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        patch: int = 14,
        grid: int = 37,
        channels: int = 3,
        registers: int = 4,
        mask_token: bool = False,
        resize: Literal["antialias", "offset"] = "antialias",
        mlp: Literal["gelu", "swiglu"] = "gelu",
        eps: float = 1e-6,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.patch = patch
        self.grid = grid
        self.special = 1 + registers
        self.resize = resize
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid * grid, dim) * 0.02)
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, dim))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.patch_embed = PatchEmbed(dim, patch, channels)
        self.blocks = nn.ModuleList(
            Block(dim, heads, qk_norm=False, rope=False, layer_scale=1.0, eps=eps, mlp=mlp) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """[N, channels, H, W], normalised -> patch tokens after the last norm [N, rows * cols, C]."""
        last = len(self.blocks) - 1
        return self.norm(self.layers(images, (last,))[last][:, self.special :])

    def layers(self, images: Tensor, keep: Sequence[int]) -> dict[int, Tensor]:
        """[N, channels, H, W] -> {index: output of that block [N, special + rows * cols, C]}, no norm applied;
        index -1 stands for the tokens before the first block."""
        rows, cols = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        layout = TokenLayout(1, self.special, rows, cols)
        blocks = self.blocks[: max(keep) + 1]
        x, back = self.embed(images), None
        outputs = {-1: x} if -1 in keep else {}
        window = window_of(blocks, [layout.tokens] * len(blocks))
        if window is not None:
            x, layout, back = order_by_window(x, layout, window)
        for index, block in enumerate(blocks):
            x = block(x, layout)
            if index in keep:
                outputs[index] = x if back is None else x.index_select(1, back)
        return outputs

    def embed(self, images: Tensor) -> Tensor:
        """[N, channels, H, W] -> tokens before the first block [N, special + rows * cols, C]."""
        rows, cols = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        # Under autocast the convolution gives half precision; adding the embedding restores the parameters' dtype.
        x = self.patch_embed(images) + self.positions(rows, cols)
        first = self.cls_token + self.pos_embed[:, :1]
        if self.special > 1:
            first = torch.cat([first, self.register_tokens], dim=1)
        return torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)

    def positions(self, rows: int, cols: int) -> Tensor:
        """Position embedding of the patches, resized: [1, rows * cols, C]."""
        table = self.pos_embed[:, 1:]
        if is_traced():
            return self._traced_positions(table, rows, cols)
        if rows == cols == self.grid:
            return table
        table = table.float().unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if self.resize == "antialias":
            table = F.interpolate(table, (rows, cols), mode="bicubic", antialias=True)
        else:
            factors = ((rows + OFFSET) / self.grid, (cols + OFFSET) / self.grid)
            table = F.interpolate(table, scale_factor=factors, mode="bicubic")
        return table.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)

    def _traced_positions(self, table: Tensor, rows: int, cols: int) -> Tensor:
        """`positions` by products with one matrix for each side, for sizes that are symbols."""
        offset = None if self.resize == "antialias" else OFFSET
        places = torch.arange(self.grid, device=table.device)
        fits = [torch.full((), count, device=table.device) == self.grid for count in (rows, cols)]
        down, across = (
            torch.where(
                fits[0] & fits[1],
                (torch.arange(count, device=table.device)[:, None] == places).float(),
                bicubic(count, self.grid, offset, table.device),
            )
            for count in (rows, cols)
        )
        grid = table[0].float().unflatten(0, (self.grid, self.grid))
        resized = torch.einsum("rg,ghc->rhc", down, grid)
        return torch.einsum("kh,rhc->rkc", across, resized).flatten(0, 1)[None].to(self.pos_embed.dtype)


def bicubic(count: int, grid: int, offset: float | None, device: torch.device) -> Tensor:
    """Weights [count, grid] that resize `grid` values to `count` as F.interpolate does in mode "bicubic": with
    antialiasing, or, with an offset, by the factor (count + offset) / grid."""
    total = torch.full((), count, dtype=torch.float32, device=device)
    step = grid / (total + (offset or 0.0))
    places = (torch.arange(count, dtype=torch.float32, device=device) + 0.5) * step - 0.5
    values = torch.arange(grid, dtype=torch.float32, device=device)
    if offset is None:
        wide = step.clamp_min(1.0)
        weights = _cubic((values - places[:, None]) / wide, -0.5)
        return weights / weights.sum(1, keepdim=True)
    # Values beyond the border are those at the border.
    around = torch.arange(-2, grid + 2, dtype=torch.float32, device=device)
    weights = _cubic(around - places[:, None], -0.75)
    first, last = weights[:, :3].sum(1, keepdim=True), weights[:, -3:].sum(1, keepdim=True)
    return torch.cat([first, weights[:, 3:-3], last], 1)


def _cubic(distance: Tensor, a: float) -> Tensor:
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
