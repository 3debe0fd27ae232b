"""Depth Anything 3, the single-view models: depth and sky of each picture on its own.

The metric model's depth times focal length in pixels / 300 is in metres. Accepts the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lean3r.geometry.camera import intrinsics_from_focal
from lean3r.geometry.pose import identity_pose
from lean3r.heads import dense
from lean3r.heads.dense import DptHead, frame_bytes
from lean3r.heads.sky import CANONICAL_FOCAL_PX, fill_sky, is_sky
from lean3r.layers.embed import imagenet
from lean3r.layers.vit import VisionTransformer
from lean3r.models.base import Backbone, block_bytes, check_views, full_precision, in_chunks
from lean3r.models.keymap import KeyMap
from lean3r.tracing import is_traced
from lean3r.types import Prediction, TokenLayout, Tokens, Views

DEFAULT_FOCAL = 1.2  # times the longer side, if the file states no focal length


@dataclass(frozen=True)
class Da3MonoConfig:
    """Sizes of a single-view model; `keep` are the blocks that the head reads."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    keep: tuple[int, int, int, int] = (4, 11, 17, 23)
    features: int = 256
    channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    grid: int = 37


class Da3Mono(Backbone):
    """Depth and sky of each view by itself, no poses.

    Poses are the identity; intrinsics come from the file or are guessed.
    """

    name = "da3mono-large"
    licence = "Apache-2.0"
    patch = 14
    resolution = 504
    ACCEPTS: ClassVar = frozenset({"intrinsics"})
    TELLTALE: ClassVar = ("model.head.projects.0.weight", (256, 1024, 1, 1))

    SIZES: ClassVar = {"da3mono-large": Da3MonoConfig(), "da3metric-large": Da3MonoConfig()}
    SMALLEST: ClassVar = Da3MonoConfig(
        width=32, depth=4, heads=2, keep=(0, 1, 2, 3), features=16, channels=(8, 8, 8, 8), grid=4
    )

    def __init__(self, config: Da3MonoConfig | None = None):
        super().__init__()
        config = config or self.SIZES[self.name]
        self.config = config
        self.encoder = VisionTransformer(
            config.width, config.depth, config.heads, grid=config.grid, registers=0, resize="offset", norm_eps=1e-5
        )
        self.head = DptHead(
            config.width, (1, 1), features=config.features, channels=config.channels, norm=False, uv=False
        )
        self.KEY_MAP = key_map().under("model.", "")

    def encode(self, views: Views) -> Tokens:
        """See Backbone.encode. Layers: "block{i}" after the last norm [B, S, T, C], class token first."""
        check_views(views, self.patch)
        images = views.images
        count, _, height, width = images.shape[1:]
        layout = TokenLayout(count, 1, height // self.patch, width // self.patch, share=views.share)

        def look(some: Tensor) -> tuple[Tensor, ...]:
            kept = self.encoder.layers(imagenet(some), self.config.keep)
            return tuple(self.encoder.norm(kept[block]) for block in self.config.keep)

        size = self.frames_at_once(block_bytes(layout.tokens, self.config.width))
        levels = in_chunks(look, size, images.flatten(0, 1))
        names = [f"block{block}" for block in self.config.keep]
        return Tokens(
            {name: t.unflatten(0, images.shape[:2]) for name, t in zip(names, levels, strict=True)}, layout, views
        )

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Backbone.decode. conf is 1 in the sky and 2 elsewhere."""
        images = tokens.views.images
        poses = identity_pose(*images.shape[:2], device=images.device)
        intrinsics, _ = focal_lengths(tokens.views)
        if not dense:
            return Prediction(poses, intrinsics, None, None)
        depth, sky = self.raw_maps(tokens)
        mask = is_sky(sky)
        return Prediction(poses, intrinsics, fill_sky(depth, mask, tokens.views.share), 2.0 - mask.to(depth.dtype))

    def outputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """All outputs of the official network, under their official names."""
        depth, sky = self.raw_maps(tokens)
        return {"depth": fill_sky(depth, is_sky(sky)), "sky": sky}

    def raw_maps(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Depth before the sky is filled, and the sky score (at least 0), both [B, S, H, W]."""
        images, layout = tokens.views.images, tokens.layout

        def read(*levels: Tensor) -> tuple[Tensor, Tensor]:
            cut = [t[:, 1:].float() for t in levels]
            depth, sky = self.head(cut, layout.rows, layout.cols, *images.shape[-2:])
            return depth[:, 0].exp(), sky[:, 0].relu()

        with full_precision(images):
            size = self.frames_at_once(frame_bytes(self.head, *images.shape[-2:]))
            layers = [tokens.layers[f"block{block}"].flatten(0, 1) for block in self.config.keep]
            depth, sky = in_chunks(read, size, *layers)
        return depth.unflatten(0, images.shape[:2]), sky.unflatten(0, images.shape[:2])


class Da3Metric(Da3Mono):
    """Depth in metres and sky of each view by itself, given the focal length; no poses.

    `is_metric` is True only if the focal length of every view is known or stated by its file.
    """

    name = "da3metric-large"

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Da3Mono.decode; depth is scaled by the focal length, even a guessed one."""
        relative = super().decode(tokens, dense=dense)
        if relative.depth is None:
            return relative
        depth = relative.depth * metres_per_unit(relative.intrinsics)
        _, known = focal_lengths(tokens.views)
        return Prediction(relative.cam_from_world, relative.intrinsics, depth, relative.conf, is_metric=known)


def metres_per_unit(intrinsics: Tensor) -> Tensor:
    """Factor [..., 1, 1] from the metric network's depth to metres, for intrinsics [..., 3, 3]."""
    return intrinsics[..., [0, 1], [0, 1]].mean(-1)[..., None, None] / CANONICAL_FOCAL_PX


def focal_lengths(views: Views) -> tuple[Tensor, bool]:
    """Intrinsics [B, S, 3, 3]: known, else from the files' focal lengths, else guessed; and whether none is guessed."""
    batch, count, _, height, width = views.images.shape
    if is_traced():
        longer = torch.full((batch, count, 2), torch.sym_max(height, width), dtype=torch.float64)
        return intrinsics_from_focal((DEFAULT_FOCAL * longer).float(), height, width), False
    stated = [s.focal_px / s.original_from_network[0] if s.focal_px else None for s in views.sources]
    stated = stated or [None] * count
    guess = DEFAULT_FOCAL * max(height, width)
    focal = torch.tensor([value or guess for value in stated], device=views.images.device)
    intrinsics = intrinsics_from_focal(focal[:, None].expand(batch, count, 2), height, width)
    sure = torch.tensor([value is not None for value in stated], device=focal.device).expand(batch, count)
    known = views.known
    if known is not None and known.intrinsics is not None:
        has = torch.ones_like(sure) if known.has_intrinsics is None else known.has_intrinsics
        intrinsics = torch.where(has[..., None, None], known.intrinsics.to(intrinsics.dtype), intrinsics)
        sure = sure | has
    return intrinsics, bool(sure.all())


def key_map() -> KeyMap:
    """Names in the official network <-> ours; checkpoints put "model." before them."""
    return KeyMap((("backbone.pretrained.", "encoder."),)) + KeyMap(dense.KEYS).under("head.", "head.")
