"""VGGT: alternating frame and global attention; the first view is the origin of the world.

Source: Wang et al. 2025, "VGGT: Visual Geometry Grounded Transformer". Accepts the official checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from lean3r.errors import UsageError
from lean3r.geometry.pose_encoding import decode_intrinsics, decode_pose
from lean3r.heads import dense, iterative
from lean3r.heads.dense import DptFeatures, DptHead, frame_bytes
from lean3r.heads.iterative import IterativeCamera
from lean3r.heads.track import Tracker, Tracks
from lean3r.layers.block import BlockOptions
from lean3r.layers.embed import imagenet
from lean3r.layers.trunk import Role, Trunk
from lean3r.layers.vit import VisionTransformer
from lean3r.models.base import Backbone, block_bytes, check_views, full_precision, in_chunks, patch_mask
from lean3r.models.keymap import KeyMap, number_blocks
from lean3r.types import Prediction, TokenLayout, Tokens, Views

REGISTERS = 4


@dataclass(frozen=True)
class VggtConfig:
    """Sizes of VGGT. `keep` are the (frame, global) pairs that the dense heads read, the last pair included.

    Without `point_head` and `track_head`, as in Lite3R's files, there are cameras and depth only.
    `encoder_heads` None: as many as `heads`.
    """

    width: int = 1024
    heads: int = 16
    encoder_depth: int = 24
    grid: int = 37
    pairs: int = 24
    keep: tuple[int, int, int, int] = (4, 11, 17, 23)
    features: int = 256
    channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    track_features: int = 128
    track_levels: int = 7
    track_radius: int = 4
    track_hidden: int = 384
    point_head: bool = True
    track_head: bool = True
    encoder_heads: int | None = None
    camera_depth: int = 4


class Vggt(Backbone):
    """Cameras, depth, points and point tracks of any number of views, the first one the origin.

    Sides are multiples of 14 pixels.
    """

    name = "vggt"
    BFLOAT16 = True
    licence = "CC-BY-NC-4.0"
    patch = 14
    resolution = 518

    SIZES: ClassVar = {"vggt": VggtConfig()}
    SMALLEST: ClassVar = VggtConfig(
        width=32,
        heads=2,
        encoder_depth=1,
        pairs=4,
        keep=(0, 1, 2, 3),
        features=16,
        channels=(8, 8, 8, 8),
        grid=4,
        track_features=16,
        track_levels=2,
        track_radius=1,
        track_hidden=48,
    )
    REFERENCE: ClassVar = {}
    TELLTALE: ClassVar = ("aggregator.camera_token", (1, 2, 1, 1024))
    TRUNK: ClassVar[type[Trunk]] = Trunk
    CAMERA: ClassVar[type[IterativeCamera]] = IterativeCamera

    def __init__(self, config: VggtConfig | None = None):
        super().__init__()
        config = config or self.SIZES["vggt"]
        self.config = config
        dim = config.width
        self.encoder = VisionTransformer(
            dim,
            config.encoder_depth,
            config.encoder_heads or config.heads,
            grid=config.grid,
            registers=REGISTERS,
            mask_token=True,
        )
        schedule: tuple[Role, ...] = ("frame", "global") * config.pairs
        self.trunk = self.TRUNK(schedule, dim, config.heads, roles=self._roles(config), layer_scale=0.01, eps=1e-5)
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, REGISTERS, dim))
        self.camera = self.CAMERA(2 * dim, config.heads, depth=config.camera_depth)
        head = partial(DptHead, 2 * dim, features=config.features, channels=config.channels, rectify=True)
        self.depth = head((2,))
        self.points = head((4,)) if config.point_head else None
        self.track_maps = self.tracker = None
        if config.track_head:
            self.track_maps = DptFeatures(
                2 * dim, features=config.track_features, channels=config.channels, rectify=True
            )
            self.tracker = Tracker(
                config.track_features,
                levels=config.track_levels,
                radius=config.track_radius,
                hidden=config.track_hidden,
            )
        self.KEY_MAP = key_map(config)

    def _roles(self, config: VggtConfig) -> Mapping[Role, BlockOptions]:
        """Options of blocks of one role."""
        return {}

    @classmethod
    def for_names(cls, names: Collection[str]) -> Vggt:
        """See Backbone.for_names: without the point head or the track head if the file has nothing of it."""
        heads = {head: any(name.startswith(f"{head}.") for name in names) for head in ("point_head", "track_head")}
        return cls(replace(cls.SIZES["vggt"], **heads))

    def encode(self, views: Views) -> Tokens:
        """See Backbone.encode. Layers "frame{i}" and "global{i}" of the pairs that the heads read, [B, S, T, C]."""
        check_views(views, self.patch)
        images = imagenet(views.images)
        batch, count, _, height, width = images.shape
        layout = TokenLayout(
            count,
            1 + REGISTERS,
            height // self.patch,
            width // self.patch,
            patch_mask(views, self.patch),
            share=views.share,
        )
        at_once = self.frames_at_once(block_bytes(layout.tokens, self.config.width))
        (patches,) = in_chunks(lambda x: (self.encoder(x),), at_once, images.flatten(0, 1))
        # Entry 0 is learned for the first view, entry 1 for all others.
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        first = int(views.share is None or views.share.first == 0)
        numbers = torch.arange(count, device=special.device)[:, None, None]
        special = torch.where(numbers < first, special[:, :1], special[:, 1:])
        x = torch.cat([special.expand(batch, -1, -1, -1), patches.unflatten(0, (batch, count))], dim=2)
        del patches
        blocks = {2 * i + half: f"{role}{i}" for i in self.config.keep for half, role in enumerate(("frame", "global"))}
        _, kept = self.trunk(x, layout, keep=tuple(blocks))
        return Tokens({name: kept[index] for index, name in blocks.items()}, layout, views)

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Backbone.decode. The first camera is near the origin of the world; the scale is unknown."""
        encoding = self.pose_encodings(tokens)[-1]
        cameras = decode_pose(encoding), decode_intrinsics(encoding, *tokens.views.images.shape[-2:])
        if not dense:
            return Prediction(*cameras, None, None)
        depth, conf = self.depth_maps(tokens)
        return Prediction(*cameras, depth, conf)

    def outputs(self, tokens: Tokens, queries: Tensor | None = None) -> dict[str, Tensor]:
        """All outputs of the official model, under their official names; `queries` [B, N, 2] adds tracks."""
        outputs = {f"pose_enc_iter{i}": value for i, value in enumerate(self.pose_encodings(tokens))}
        depth, outputs["depth_conf"] = self.depth_maps(tokens)
        outputs["depth"] = depth[..., None]
        if self.points is not None:
            outputs["world_points"], outputs["world_points_conf"] = self.point_maps(tokens)
        if queries is not None:
            tracks = self.track(tokens, queries)
            outputs |= {f"track_iter{i}": value for i, value in enumerate(tracks.positions)}
            outputs |= {"vis": tracks.visibility, "conf": tracks.confidence}
        return outputs

    def pose_encodings(self, tokens: Tokens) -> list[Tensor]:
        """Camera-from-world encodings [B, S, 9] (geometry/pose_encoding.py) after each iteration of the head."""
        last = self.config.keep[-1]
        camera = [tokens.layers[f"{role}{last}"][:, :, 0] for role in ("frame", "global")]
        with full_precision(camera[0]):
            token = torch.cat(camera, dim=-1).float()
            share = tokens.views.share
            if share is None:
                return self.camera(token)
            return [share.own(encoding) for encoding in self.camera(share.gather(token))]

    def depth_maps(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """z-depth and confidence, both [B, S, H, W]."""

        def read(*inputs) -> tuple[Tensor, Tensor]:
            (raw,) = self.depth(*inputs)
            return raw[:, 0].exp(), 1 + raw[:, 1].exp()

        depth, conf = self._dense(self.depth, tokens, read)
        return depth, conf

    def point_maps(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """World points [B, S, H, W, 3] in the frame of the first camera, and confidence [B, S, H, W]."""
        head = self.points
        if head is None:
            raise UsageError(f"these weights of {self.name} have no point head; use depth, or the authors' weights.")

        def read(*inputs) -> tuple[Tensor, Tensor]:
            (raw,) = head(*inputs)
            xyz = raw[:, :3].movedim(1, -1)
            return xyz.sign() * torch.expm1(xyz.abs()), 1 + raw[:, 3].exp()

        points, conf = self._dense(head, tokens, read)
        return points, conf

    def track(self, tokens: Tokens, queries: Tensor) -> Tracks:
        """Follow points of the first view, queries [B, N, 2] in pixels (x, y), into every view."""
        head = self.track_maps
        if head is None or self.tracker is None:
            raise UsageError(f"these weights of {self.name} have no track head; use the authors' weights.")
        (maps,) = self._dense(head, tokens, lambda *inputs: (head(*inputs),))
        return self.tracker(maps, queries)

    def _dense(self, head: DptHead | DptFeatures, tokens: Tokens, call) -> tuple[Tensor, ...]:
        layout, images = tokens.layout, tokens.views.images
        size = (layout.rows, layout.cols, *images.shape[-2:])
        layers = [tokens.layers[f"{role}{i}"].flatten(0, 1) for i in self.config.keep for role in ("frame", "global")]

        def some(*parts: Tensor) -> tuple[Tensor, ...]:
            cut = [p[:, layout.special :].float() for p in parts]
            pairs = [torch.cat(pair, dim=-1) for pair in zip(cut[::2], cut[1::2], strict=True)]
            return call(pairs, *size)

        with full_precision(images):
            outputs = in_chunks(some, self.frames_at_once(frame_bytes(head, *size[2:])), *layers)
        return tuple(t.unflatten(0, images.shape[:2]) for t in outputs)


def key_map(config: VggtConfig) -> KeyMap:
    """Official checkpoint names <-> ours."""
    pairs = range(config.pairs)
    official = "track_head.tracker.updateformer."
    own = KeyMap(
        (
            ("aggregator.camera_token", "camera_token"),
            ("aggregator.register_token", "register_token"),
            ("aggregator.patch_embed.", "encoder."),
            *number_blocks("aggregator.frame_blocks.{}.", "trunk.blocks.{}.", [(i, 2 * i) for i in pairs]),
            *number_blocks("aggregator.global_blocks.{}.", "trunk.blocks.{}.", [(i, 2 * i + 1) for i in pairs]),
            ("track_head.tracker.", "tracker."),
            (f"{official}virual_tracks", "tracker.updateformer.virtual_tracks"),
            *(
                (
                    f"track_head.tracker.updateformer.{blocks}.{i}.cross_attn.",
                    f"tracker.updateformer.{blocks}.{i}.attn.",
                )
                for blocks in ("space_virtual2point_blocks", "space_point2virtual_blocks")
                for i in range(6)
            ),
        )
    )
    heads = {"depth_head.": "depth.", "point_head.": "points.", "track_head.feature_extractor.": "track_maps."}
    for head, ours in heads.items():
        own += KeyMap(dense.KEYS).under(head, ours)
    return own + KeyMap(iterative.KEYS).under("camera_head.", "camera.")
