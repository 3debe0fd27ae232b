"""The dense prediction transformer head (DPT): maps at picture size from four sets of patch tokens.

The tokens give four maps of 4, 2, 1 and 1/2 times the patch grid, which are fused from coarse to fine into one
map of 8 times the patch grid. Source: Ranftl et al. 2021, in the forms of VGGT and Depth Anything 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.tables import table
from lean3r.tracing import is_traced

UV_WEIGHT = 0.1

KEYS = (
    ("norm.", "pyramid.norm."),
    ("projects.", "pyramid.projects."),
    ("resize_layers.", "pyramid.resizes."),
    *((f"scratch.layer{k}_rn.", f"pyramid.laterals.{k - 1}.") for k in (1, 2, 3, 4)),
    *(
        (f"scratch.refinenet{k}{aux}.{official}.", f"fusion{aux}.{k - 1}.{ours}.")
        for k in (1, 2, 3, 4)
        for aux in ("", "_aux")
        for official, ours in (("resConfUnit1", "unit1"), ("resConfUnit2", "unit2"), ("out_conv", "project"))
    ),
    ("scratch.output_conv1.", "narrow."),
    ("scratch.output_conv2.", "outputs.0."),
    ("scratch.sky_output_conv2.", "outputs.1."),
    ("scratch.output_conv1_aux.", "narrow_aux."),
    ("scratch.output_conv2_aux.", "outputs_aux."),
    ("images_merger.", "guide."),
)
"""(official prefix, our prefix) of every part of a DPT head, relative to the prefix of the head."""


def uv_tables(
    rows: int,
    cols: int,
    channels: int,
    aspect: float | Tensor,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Position term of a map, as two tables: x [channels / 2, cols] and y [channels / 2, rows].

    Coordinates cover a picture of diagonal 2 and the given aspect ratio (width / height); each is encoded by
    sines, then cosines, of falling frequency. The first half of the channels encodes x, the second y.
    """
    quarter = channels // 4
    if isinstance(aspect, Tensor):
        return _traced_tables(rows, cols, quarter, aspect)
    diagonal, where = math.hypot(aspect, 1.0), device or torch.device("cpu")
    spans = (aspect / diagonal, cols), (1 / diagonal, rows)
    over_x, over_y = (table(_waves, (quarter, span, count), where, dtype) for span, count in spans)
    return over_x, over_y


def _waves(quarter: int, span: float, count: int) -> Tensor:
    omega = 100.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    edge = span * (count - 1) / count
    angle = omega[:, None] * torch.linspace(-edge, edge, count, dtype=torch.float64)
    return torch.cat([angle.sin(), angle.cos()]).float()


def _traced_tables(rows: int, cols: int, quarter: int, aspect: Tensor) -> tuple[Tensor, Tensor]:
    """`uv_tables` of sizes that are symbols."""
    diagonal = (aspect * aspect + 1).sqrt()
    omega = (100.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)).float()

    def waves(span: Tensor, count: int) -> Tensor:
        angle = omega[:, None] * (span * ((2 * torch.arange(count, dtype=torch.float32) + 1) / count - 1))
        return torch.cat([angle.sin(), angle.cos()])

    return waves(aspect / diagonal, cols), waves(1 / diagonal, rows)


def aspect_of(width: int, height: int) -> float | Tensor:
    """width / height; of a traced model as a tensor, because ONNX divides whole numbers otherwise."""
    if is_traced():
        return torch.full((), width, dtype=torch.float32) / torch.full((), height, dtype=torch.float32)
    return width / height


def add_uv(x: Tensor, aspect: float | Tensor) -> Tensor:
    """Add the weighted position term to x [N, C, rows, cols], in place, without allocating the term at full size."""
    channels, rows, cols = x.shape[1:]
    tables = uv_tables(rows, cols, channels, aspect, x.device, x.dtype)
    over_x, over_y = (UV_WEIGHT * t.to(x) for t in tables)
    half = channels // 2
    x[:, :half] += over_x[:, None, :]
    x[:, half:] += over_y[:, :, None]
    return x


def resize_map(x: Tensor, rows: int, cols: int) -> Tensor:
    """Resize bilinearly with aligned corners: [N, C, *, *] -> [N, C, rows, cols]."""
    return F.interpolate(x, (rows, cols), mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two convolutions with a skip connection, which adds relu(x) if `rectify` (VGGT), otherwise x (DA3)."""

    def __init__(self, features: int, rectify: bool):
        super().__init__()
        self.rectify = rectify
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, F, h, w] -> [N, F, h, w]."""
        rectified = F.relu(x)
        return self.conv2(F.relu(self.conv1(rectified))) + (rectified if self.rectify else x)


class FusionBlock(nn.Module):
    """Add a coarser map to a lateral one and resize the sum to a finer grid."""

    def __init__(self, features: int, rectify: bool, lateral: bool):
        super().__init__()
        if lateral:
            self.unit1 = ResidualUnit(features, rectify)
        self.unit2 = ResidualUnit(features, rectify)
        self.project = nn.Conv2d(features, features, 1)

    def forward(self, lateral: Tensor, coarser: Tensor | None, rows: int, cols: int) -> Tensor:
        """lateral [N, F, h, w], coarser of the same shape or None -> [N, F, rows, cols]."""
        x = lateral if coarser is None else coarser + self.unit1(lateral)
        # A 1x1 convolution and a resize whose weights sum to 1 commute; this order takes a quarter of the time.
        return resize_map(self.project(self.unit2(x)), rows, cols)


class Fusion(nn.ModuleList):
    """Four fusion blocks, stored from fine to coarse, run from coarse to fine."""

    def __init__(self, features: int, rectify: bool):
        super().__init__(FusionBlock(features, rectify, lateral=level < 3) for level in range(4))

    def forward(self, laterals: Sequence[Tensor]) -> Tensor:
        """Four maps [N, F, h_k, w_k], finest first -> [N, F, 2 h_0, 2 w_0]."""
        x = None
        for level in (3, 2, 1, 0):
            fine = laterals[max(level - 1, 0)]
            scale = 1 if level else 2
            x = self[level](laterals[level], x, scale * fine.shape[-2], scale * fine.shape[-1])
        return x


class Pyramid(nn.Module):
    """Four token sets at patch resolution -> four maps of F channels, finest first."""

    def __init__(self, dim: int, channels: Sequence[int], features: int, *, norm: bool, uv: bool):
        super().__init__()
        self.uv = uv
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.laterals = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1, bias=False) for c in channels)

    def forward(self, tokens: Sequence[Tensor], rows: int, cols: int, aspect: float | Tensor) -> list[Tensor]:
        """Four token tensors [N, rows * cols, dim]; aspect is the picture's width / height."""
        maps = []
        for values, project, resize, lateral in zip(tokens, self.projects, self.resizes, self.laterals, strict=True):
            x = project(self.norm(values).transpose(1, 2).unflatten(2, (rows, cols)))
            maps.append(lateral(resize(add_uv(x, aspect) if self.uv else x)))
        return maps


def output_layer(features: int, outputs: int) -> nn.Sequential:
    """The last two convolutions; the input has features / 2 channels."""
    return nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, outputs, 1))


class DptHead(nn.Module):
    """DPT with one output layer for each number of channels in `outputs`; no activation after the last convolution.

    `guide` adds features of the normalised picture before the last layers (the Gaussian head of DA3).
    """

    def __init__(
        self,
        dim: int,
        outputs: Sequence[int],
        *,
        features: int = 256,
        channels: Sequence[int] = (256, 512, 1024, 1024),
        norm: bool = True,
        uv: bool = True,
        rectify: bool = False,
        guide: bool = False,
    ):
        super().__init__()
        self.uv = uv
        self.features = features
        self.pyramid = Pyramid(dim, channels, features, norm=norm, uv=uv)
        self.fusion = Fusion(features, rectify)
        self.narrow = nn.Conv2d(features, features // 2, 3, padding=1)
        self.outputs = nn.ModuleList(output_layer(features, count) for count in outputs)
        self.guide = _guide(features) if guide else None

    def forward(
        self, tokens: Sequence[Tensor], rows: int, cols: int, height: int, width: int, image: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Four token tensors [N, rows * cols, dim] -> one map [N, outputs, height, width] for each output layer.

        Only a guided head reads image [N, 3, height, width], normalised.
        """
        aspect = aspect_of(width, height)
        x = resize_map(self.narrow(self.fusion(self.pyramid(tokens, rows, cols, aspect))), height, width)
        if self.guide is not None:
            x += self.guide(image)
        if self.uv:
            x = add_uv(x, aspect)
        return tuple(layer(x) for layer in self.outputs)


class DptFeatures(nn.Module):
    """DPT without position terms and output layers: F channels at half the picture's size."""

    def __init__(self, dim: int, *, features: int, channels: Sequence[int], rectify: bool):
        super().__init__()
        self.features = features
        self.pyramid = Pyramid(dim, channels, features, norm=True, uv=False)
        self.fusion = Fusion(features, rectify)
        self.narrow = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, tokens: Sequence[Tensor], rows: int, cols: int, height: int, width: int) -> Tensor:
        """Four token tensors [N, rows * cols, dim] -> [N, F, height / 2, width / 2]."""
        x = self.narrow(self.fusion(self.pyramid(tokens, rows, cols, aspect_of(width, height))))
        return resize_map(x, height // 2, width // 2)


class DualDptHead(DptHead):
    """DPT with a second fusion chain for rays, at 8 times the patch grid (Depth Anything 3).

    Checkpoints hold four ray layers that share one LayerNorm; only the last, the finest, is used.
    """

    RAY_NUMBERS = 7

    def __init__(self, dim: int, outputs: Sequence[int], *, features: int = 256, **options):
        super().__init__(dim, outputs, features=features, **options)
        half = features // 2
        self.fusion_aux = Fusion(features, rectify=False)
        self.narrow_aux = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(*pair, 3, padding=1) for pair in ((features, half), (half, features)) * 2),
                nn.Conv2d(features, half, 3, padding=1),
            )
            for _ in range(4)
        )
        norm = nn.LayerNorm(32)
        self.outputs_aux = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(half, 32, 3, padding=1),
                ChannelsLast(),
                norm,
                ChannelsFirst(),
                nn.ReLU(),
                nn.Conv2d(32, self.RAY_NUMBERS, 1),
            )
            for _ in range(4)
        )

    def rays(self, tokens: Sequence[Tensor], rows: int, cols: int, aspect: float | Tensor) -> Tensor:
        """Four token tensors [N, rows * cols, dim] -> direction, origin, confidence [N, 7, 8 rows, 8 cols]."""
        x = self.narrow_aux[-1](self.fusion_aux(self.pyramid(tokens, rows, cols, aspect)))
        return self.outputs_aux[-1](add_uv(x, aspect) if self.uv else x)


class ChannelsLast(nn.Module):
    """[N, C, h, w] -> [N, h, w, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """Permute the axes, without a copy."""
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """[N, h, w, C] -> [N, C, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        """Permute the axes, without a copy."""
        return x.permute(0, 3, 1, 2)


def _guide(features: int) -> nn.Sequential:
    eighth, quarter, half = features // 8, features // 4, features // 2
    return nn.Sequential(
        nn.Conv2d(3, eighth, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(eighth, quarter, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(quarter, half, 3, padding=1),
    )


def frame_bytes(head: DptHead | DptFeatures, height: int, width: int) -> int:
    """Approximate float32 memory in bytes of one frame's maps while a head runs, workspace of convolutions included."""
    grid = 64 * (height // 14) * (width // 14)
    return 8 * torch.sym_max(height * width * (head.features + 64), 4 * grid * head.features)  # pyright: ignore[reportReturnType]
