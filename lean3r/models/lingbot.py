"""LingBot-Map: VGGT made causal, for streams: a frame sees the first frames, the last ones, and a trace of the others.

Source: "Geometric Context Transformer for Streaming 3D Reconstruction" (arXiv 2604.14141). Accepts the official
checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from lean3r.geometry.pose import invert_pose
from lean3r.geometry.pose_encoding import decode_intrinsics, decode_pose
from lean3r.heads.iterative import CausalCamera
from lean3r.layers.block import Block, BlockOptions
from lean3r.layers.causal import CausalTrunk, FrameSight, Sight
from lean3r.layers.embed import imagenet
from lean3r.layers.frames import TRAINED, CachePolicy, FrameTable
from lean3r.layers.kv_cache import CacheSizes, StreamCache
from lean3r.layers.time_rope import TimeRope
from lean3r.layers.trunk import Role
from lean3r.models.base import block_bytes, check_views, full_precision, in_chunks, patch_mask
from lean3r.models.keymap import KeyMap
from lean3r.models.vggt import REGISTERS, Vggt, VggtConfig
from lean3r.recorded import together
from lean3r.types import Prediction, TokenLayout, Tokens, Views

SPECIAL = 2 + REGISTERS
"""Camera, registers, scale."""


@dataclass(frozen=True)
class LingbotConfig(VggtConfig):
    """Sizes of LingBot-Map; `policy` is what a frame sees when all views are given at once. Without `time_rope` global
    blocks rotate by row and column only, as VGGT's."""

    point_head: bool = False
    track_head: bool = False
    time_rope: bool = True
    policy: CachePolicy = field(default_factory=CachePolicy)


class LingbotMap(Vggt):
    """Cameras and depth of frames in order, the first one near the origin. Sides are multiples of 14 pixels.

    `encode` and `decode` take a whole sequence in one pass; `step` takes it frame by frame with a cache, with the same
    results up to rounding. Earlier frames do not see later ones, except the first, the anchors, which see one another.
    """

    name = "lingbot-map"
    BFLOAT16 = False
    licence = "Apache-2.0"

    SIZES: ClassVar = {"lingbot-map": LingbotConfig()}
    SMALLEST: ClassVar = LingbotConfig(
        **{**vars(Vggt.SMALLEST), "point_head": False, "track_head": False, "camera_depth": 1}
    )
    REFERENCE: ClassVar = None
    ORDERED: ClassVar = True
    STREAMS: ClassVar = "cache"
    WIDEST = None
    LONGEST = TRAINED
    BRIDGE = None
    TELLTALE: ClassVar = ("aggregator.scale_token", (1, 2, 1, 1024))
    TRUNK: ClassVar = CausalTrunk
    CAMERA: ClassVar = CausalCamera

    def __init__(self, config: LingbotConfig | None = None):
        config = config or self.SIZES["lingbot-map"]
        super().__init__(config)
        self.policy = config.policy
        self.scale_token = nn.Parameter(torch.zeros(1, 2, 1, config.width))
        self.KEY_MAP += KeyMap((("aggregator.scale_token", "scale_token"),))

    def _roles(self, config: VggtConfig) -> Mapping[Role, BlockOptions]:
        assert isinstance(config, LingbotConfig)
        return {"global": {"rope": "time" if config.time_rope else True}}

    @classmethod
    def for_names(cls, names: Collection[str]) -> LingbotMap:
        """See Backbone.for_names: there is one model only."""
        return cls()

    def encode(self, views: Views) -> Tokens:
        """See Backbone.encode: all frames in one pass. Layers as those of VGGT."""
        count, share = views.images.shape[1], views.share
        first, total = (0, count) if share is None else (share.first, share.total)
        sight = FrameSight(self._table(total), self.policy.memory, share)
        anchors = min(max(0, min(self.policy.anchors, total) - first), count)
        return self._encode_frames(views, anchors, first == 0, [sight] * self.config.pairs)

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Backbone.decode. The first camera is near the origin of the world; the scale is that of the anchors."""
        encoding = self.pose_encodings(tokens)[-1]
        return self._predict(encoding, tokens, *(self.depth_maps(tokens) if dense else (None, None)))

    def pose_encodings(self, tokens: Tokens) -> list[Tensor]:
        """World-from-camera encodings [B, S, 9] (geometry/pose_encoding.py) after each iteration of the head."""
        share = tokens.views.share
        sight = FrameSight(self._table(tokens.layout.views if share is None else share.total), 1)
        return self._cameras(tokens, [[sight] * len(self.camera.trunk)] * self._passes(self.policy))

    def new_cache(self, policy: CachePolicy, height: int, width: int) -> StreamCache:
        """An empty cache for a stream of pictures of this size; it takes no memory yet."""
        tokens = SPECIAL + (height // self.patch) * (width // self.patch)
        camera, heads = self.camera.trunk, self.config.heads
        kept = {"anchors": policy.anchors, "window": policy.window, "reserve": policy.reserve}
        memory = min(policy.memory, SPECIAL)
        head_dim = self.config.width // heads
        return StreamCache(
            policy,
            CacheSizes(self.config.pairs, heads, head_dim, memory=memory, page=tokens - memory, **kept),
            CacheSizes(self._passes(policy) * len(camera), heads, 2 * head_dim, memory=1, page=0, **kept),
        )

    def step(self, views: Views, cache: StreamCache, *, keep: bool = True, dense: bool = True) -> Prediction:
        """Predict the next frames of a stream [1, S, 3, H, W]: all anchors in the first call, later one frame a call.

        Frames are stored in the cache if `keep`; otherwise `cache.accept()` may store the one frame afterwards.
        """
        count, before = views.images.shape[1], cache.blocks.stored
        rope = TimeRope(range(before, before + count))
        cache.begin(count, keep=keep)
        if cache.key is None or views.mask is not None:
            prediction = self._advance(views, cache, rope, dense)
        else:  # on a GPU, steps of a settled stream differ by numbers on the device alone
            check_views(views, self.patch)  # its questions to the GPU cannot be recorded
            head_dim = self.config.width // self.config.heads
            waves = rope.waves(head_dim, views.images.device)

            def run(images: Tensor, waves: Tensor) -> Prediction:
                return self._advance(Views(images), cache, TimeRope(rope.times, {head_dim: waves}), dense)

            weights = tuple(cast(Block, block).attn.qkv.weight.data_ptr() for block in self.trunk.blocks)
            key = cache.key, not before, dense, self.chunk_bytes, weights
            prediction = cache.recorder(key, run, views.images, waves, name=self.name)
        cache.end()
        return prediction

    def _advance(self, views: Views, cache: StreamCache, rope: TimeRope, dense: bool) -> Prediction:
        """One step of a stream, once the cache knows of it."""
        count, before = views.images.shape[1], cache.blocks.stored
        sights = [cache.blocks.sight(layer, rope) for layer in range(self.config.pairs)]
        tokens = self._encode_frames(views, 0 if before else count, not before, sights)
        depth = len(self.camera.trunk)
        passes = [
            [cache.camera.sight(number * depth + layer, rope) for layer in range(depth)]
            for number in range(self._passes(cache.policy))
        ]

        def maps() -> tuple[Tensor | None, Tensor | None]:
            return self.depth_maps(tokens) if dense else (None, None)

        encoding, dense_maps = together(lambda: self._cameras(tokens, passes)[-1], maps, views.images)
        return self._predict(encoding, tokens, *dense_maps)

    def _table(self, count: int) -> FrameTable:
        return FrameTable.of(self.policy.for_frames(count), count)

    def _passes(self, policy: CachePolicy) -> int:
        return min(policy.camera_passes or self.camera.iterations, self.camera.iterations)

    def _encode_frames(self, views: Views, anchors: int, opening: bool, sights: Sequence[Sight]) -> Tokens:
        """Frames of which the first `anchors` are anchors; `opening`: the stream starts with the first of them."""
        check_views(views, self.patch)
        images = imagenet(views.images)
        batch, count, _, height, width = images.shape
        size = height // self.patch, width // self.patch
        layout = TokenLayout(count, SPECIAL, *size, patch_mask(views, self.patch), share=views.share)
        at_once = self.frames_at_once(block_bytes(layout.tokens, self.config.width))
        (patches,) = in_chunks(lambda x: (self.encoder(x),), at_once, images.flatten(0, 1))
        special = torch.cat(
            [
                _by_frame(torch.cat([self.camera_token, self.register_token], 2), int(opening), count),
                _by_frame(self.scale_token, anchors, count),
            ],
            dim=2,
        )
        x = torch.cat([special.expand(batch, -1, -1, -1), patches.unflatten(0, (batch, count))], dim=2)
        del patches
        blocks = {2 * i + half: f"{role}{i}" for i in self.config.keep for half, role in enumerate(("frame", "global"))}
        extra = {2 * i + 1: sight for i, sight in enumerate(sights)}
        _, kept = self.trunk(x, layout, keep=tuple(blocks), extra=extra)
        return Tokens({name: kept[index] for index, name in blocks.items()}, layout, views)

    def _cameras(self, tokens: Tokens, sights: Sequence[Sequence[Sight]]) -> list[Tensor]:
        last = self.config.keep[-1]
        camera = [tokens.layers[f"{role}{last}"][:, :, 0] for role in ("frame", "global")]
        with full_precision(camera[0]):
            token, share = torch.cat(camera, dim=-1).float(), tokens.views.share
            if share is None:
                return self.camera(token, sights)
            return [share.own(encoding) for encoding in self.camera(share.gather(token), sights)]

    def _predict(self, encoding: Tensor, tokens: Tokens, depth: Tensor | None, conf: Tensor | None) -> Prediction:
        with full_precision(encoding):
            intrinsics = decode_intrinsics(encoding, *tokens.views.images.shape[-2:])
            return Prediction(invert_pose(decode_pose(encoding)), intrinsics, depth, conf)


def _by_frame(token: Tensor, first: int, count: int) -> Tensor:
    """Learned tokens [1, 2, n, C] of `count` frames [1, count, n, C]: entry 0 for the `first` ones, then entry 1."""
    opens = torch.arange(count, device=token.device) < first
    return torch.where(opens[:, None, None], token[:, :1], token[:, 1:])
