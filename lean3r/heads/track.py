"""The point tracker of VGGT: positions of query points of the first view in every view.

Letters: B scenes, S views, N tracks, C feature channels, D input width of the transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.errors import UsageError
from lean3r.layers.mlp import Mlp

STRIDE = 2  # feature maps have half the picture's size
FLOW_SCALE = 518.0
FLOW_FREQUENCY = 1000.0
TRACKS_AT_ONCE = 512  # sampled together: a bound on memory that does not change the result


@dataclass(frozen=True)
class Tracks:
    """positions [B, S, N, 2] in pixels (x, y) after each iteration; visibility and confidence [B, S, N] in 0..1."""

    positions: list[Tensor]
    visibility: Tensor
    confidence: Tensor


class Tracker(nn.Module):
    """Refine the position of each track in each view from the feature correlations around it."""

    def __init__(
        self,
        features: int = 128,
        *,
        levels: int = 7,
        radius: int = 4,
        hidden: int = 384,
        depth: int = 6,
        heads: int = 8,
        iterations: int = 4,
    ):
        super().__init__()
        self.levels, self.radius, self.iterations = levels, radius, iterations
        self.flow_channels = features // 2
        width = 2 * self.flow_channels + 4 + 2 * features
        self.corr_mlp = Mlp(levels * (2 * radius + 1) ** 2, hidden, features)
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, width))
        self.updateformer = UpdateTransformer(width, hidden, features + 2, depth, heads)
        self.fmap_norm = nn.LayerNorm(features)
        self.ffeat_norm = nn.GroupNorm(1, features)
        self.ffeat_updater = nn.Sequential(nn.Linear(features, features), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(features, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(features, 1))

    def forward(self, maps: Tensor, queries: Tensor) -> Tracks:
        """maps [B, S, C, h, w] at half size; queries [B, N, 2] in pixels (x, y) of the first view.

        Raises UsageError if the maps are too small for the correlation pyramid.
        """
        views, _, rows, cols = maps.shape[1:]
        least = 2 ** (self.levels - 1)
        if min(rows, cols) < least:
            raise UsageError(
                f"cannot track in pictures of {STRIDE * cols}x{STRIDE * rows} pixels: expected at least "
                f"{STRIDE * least} on both sides. Choose a larger resolution."
            )
        maps = self.fmap_norm(maps.movedim(2, -1)).movedim(-1, 2)
        pyramid = _pyramid(maps, self.levels)
        start = queries / STRIDE
        coords = start[:, None].expand(-1, views, -1, -1)
        feats = sample(maps[:, 0], start, "border")[:, None].expand(-1, views, -1, -1)
        position = sample(_position_table(self.query_ref_token.shape[-1], rows, cols, maps), start, "border")
        role = torch.cat([self.query_ref_token[:, :1], self.query_ref_token[:, 1:].expand(-1, views - 1, -1)], dim=1)
        fixed = position[:, None] + role[:, :, None]
        positions = []
        for _ in range(self.iterations):
            flow = coords - coords[:, :1]
            near = self.corr_mlp(self._correlation(pyramid, feats, coords))
            scaled = flow / FLOW_SCALE
            x = torch.cat([_waves(flow, self.flow_channels), scaled, scaled, near, feats], dim=-1) + fixed
            delta = self.updateformer(x)
            change = self.ffeat_norm(delta[..., 2:].flatten(0, 2)).unflatten(0, delta.shape[:3])
            feats = feats + self.ffeat_updater(change)
            coords = coords + delta[..., :2]
            coords = torch.cat([start[:, None], coords[:, 1:]], dim=1)
            positions.append(coords * STRIDE)
        visibility = self.vis_predictor(feats)[..., 0].sigmoid()
        return Tracks(positions, visibility, self.conf_predictor(feats)[..., 0].sigmoid())

    def _correlation(self, pyramid: Sequence[Tensor], feats: Tensor, coords: Tensor) -> Tensor:
        """Correlation of each track's feature with the maps around it: [B, S, N, levels * window]."""
        offset = torch.arange(-self.radius, self.radius + 1, dtype=coords.dtype, device=coords.device)
        window = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1).flatten(0, 1)
        flat_feats, flat_coords = feats.flatten(0, 1) * feats.shape[-1] ** -0.5, coords.flatten(0, 1)
        parts = []
        for some_feats, some_coords in zip(
            flat_feats.split(TRACKS_AT_ONCE, dim=1), flat_coords.split(TRACKS_AT_ONCE, dim=1), strict=True
        ):
            levels = []
            for level, maps in enumerate(pyramid):
                where = some_coords[:, :, None] / 2**level + window
                near = sample(maps, where.flatten(1, 2), "zeros").unflatten(1, where.shape[1:3])
                levels.append((near @ some_feats[..., None])[..., 0])
            parts.append(torch.cat(levels, dim=-1))
        return torch.cat(parts, dim=1).unflatten(0, coords.shape[:2])


class UpdateTransformer(nn.Module):
    """Attention over the views of each track, and between the tracks of each view through virtual tracks."""

    VIRTUAL = 64

    def __init__(self, width: int, hidden: int, outputs: int, depth: int, heads: int):
        super().__init__()
        self.input_norm = nn.LayerNorm(width)
        self.input_transform = nn.Linear(width, hidden)
        self.output_norm = nn.LayerNorm(hidden)
        self.flow_head = nn.Linear(hidden, outputs)
        self.virtual_tracks = nn.Parameter(torch.zeros(1, self.VIRTUAL, 1, hidden))
        self.time_blocks = nn.ModuleList(MixBlock(hidden, heads) for _ in range(depth))
        self.space_virtual_blocks = nn.ModuleList(MixBlock(hidden, heads) for _ in range(depth))
        self.space_virtual2point_blocks = nn.ModuleList(MixBlock(hidden, heads, context=True) for _ in range(depth))
        self.space_point2virtual_blocks = nn.ModuleList(MixBlock(hidden, heads, context=True) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, N, D] -> [B, S, N, outputs]."""
        batch, views, tracks, _ = x.shape
        start = self.input_transform(self.input_norm(x))
        virtual = self.virtual_tracks.transpose(1, 2).expand(batch, views, -1, -1)
        x = torch.cat([start, virtual], dim=2)
        for time, virtual_self, to_virtual, to_points in zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_virtual2point_blocks,
            self.space_point2virtual_blocks,
            strict=True,
        ):
            x = time(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, -1)).transpose(1, 2)
            points, virtual = x.flatten(0, 1).split([tracks, self.VIRTUAL], dim=1)
            virtual = virtual_self(to_virtual(virtual, points))
            points = to_points(points, virtual)
            x = torch.cat([points, virtual], dim=1).unflatten(0, (batch, views))
        return self.flow_head(self.output_norm(x[:, :, :tracks] + start))


class MixBlock(nn.Module):
    """Attention, then MLP; the residual starts at the normalised input: x = norm1(x); x += attn; x += mlp."""

    def __init__(self, dim: int, heads: int, *, context: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if context else None
        self.norm2 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [L, N, C] attends to context [L, M, C] (None: to itself) -> [L, N, C]."""
        x = self.norm1(x)
        seen = x if context is None or self.norm_context is None else self.norm_context(context)
        x = x + self.attn(x, seen, seen, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def sample(maps: Tensor, points: Tensor, padding: str) -> Tensor:
    """Interpolate maps [L, C, h, w] (or [1, C, h, w]) bilinearly at points [L, M, 2] -> [L, M, C]. Points are x, y in
    map pixels, 0 at the centre of the top-left pixel; `padding` beyond the edge is "border" or "zeros"."""
    rows, cols = maps.shape[-2:]
    scale = torch.tensor([2 / max(cols - 1, 1), 2 / max(rows - 1, 1)], dtype=points.dtype, device=points.device)
    grid = (points * scale - 1)[:, :, None]
    maps = maps.expand(len(grid), -1, -1, -1)
    values = F.grid_sample(maps, grid, mode="bilinear", padding_mode=padding, align_corners=True)
    return values[..., 0].transpose(1, 2)


def _pyramid(maps: Tensor, levels: int) -> list[Tensor]:
    scales = [maps.flatten(0, 1)]
    for _ in range(levels - 1):
        scales.append(F.avg_pool2d(scales[-1], 2))
    return scales


def _waves(flow: Tensor, channels: int) -> Tensor:
    """[..., 2] -> [..., 2 * channels]: for x, then y, sines at even and cosines at odd indices."""
    factor = torch.arange(0, channels, 2, dtype=flow.dtype, device=flow.device) * (FLOW_FREQUENCY / channels)
    angle = flow[..., None] * factor
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def _position_table(channels: int, rows: int, cols: int, like: Tensor) -> Tensor:
    """Sines and cosines of the column (first half of the channels) and the row: [1, channels, rows, cols]."""
    quarter = channels // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def table(count: int) -> Tensor:
        angle = omega[:, None] * torch.arange(count, dtype=torch.float64)
        return torch.cat([angle.sin(), angle.cos()]).to(like)

    over_x, over_y = table(cols)[:, None, :], table(rows)[:, :, None]
    return torch.cat([over_x.expand(-1, rows, -1), over_y.expand(-1, -1, cols)])[None]
