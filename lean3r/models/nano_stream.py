"""nano-stream: nano made causal, for streams on a laptop: a frame sees the first frames, the last ones, and a trace.

Global blocks attend to cached keys and values, as those of LingBot-Map (arXiv 2604.14141): the anchors and the last
keyframes in full, of older ones their special token. The matcher and the feedback compare a new frame with the frames
in full only. It starts from nano's weights, and has one vector more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from lean3r.geometry.pose import invert_pose
from lean3r.group import Share
from lean3r.heads.camera import CameraState
from lean3r.layers.causal import CausalTrunk, FrameSight, Sight
from lean3r.layers.frame_ring import FrameRing, RingPeers, TablePeers
from lean3r.layers.frames import CachePolicy, FrameTable
from lean3r.layers.kv_cache import DTYPES, CacheSizes, FrameCache
from lean3r.layers.linear import Linear
from lean3r.layers.matching import Peers
from lean3r.layers.time_rope import TimeRope
from lean3r.models.base import full_precision
from lean3r.models.nano import Iterations, Nano, NanoConfig
from lean3r.types import Prediction, Views

SPECIAL = 1
CAMERA = 13  # numbers of a CameraState
POLICY = CachePolicy(anchors=1, window=12, memory=SPECIAL, reserve=32)


@dataclass(frozen=True)
class StreamConfig(NanoConfig):
    """Sizes of nano-stream; `policy` is what a frame sees when all views are given at once."""

    policy: CachePolicy = field(default_factory=lambda: POLICY)


class NanoStreamCache:
    """What a stream keeps: keys and values of the global blocks (`blocks`); what the matcher and the feedback need of
    the frames in full, and their cameras after each round (`frames`)."""

    def __init__(self, policy: CachePolicy, blocks: CacheSizes, shapes: Mapping[str, tuple[int, ...]]):
        self.policy = policy
        self.blocks = FrameCache(blocks, policy.pages, policy.top_pages, policy.recent)
        self.frames = FrameRing(policy.anchors, policy.window, shapes)

    @property
    def stored(self) -> int:
        """Frames that it holds, in full or by their special token."""
        return self.blocks.stored

    def begin(self, frames: int, *, keep: bool) -> None:
        """See FrameCache.begin."""
        self.blocks.begin(frames, keep=keep)
        self.frames.begin(frames, keep=keep)

    def end(self) -> None:
        """See FrameCache.end."""
        self.blocks.end()
        self.frames.end()

    def accept(self) -> None:
        """See FrameCache.accept."""
        self.blocks.accept()
        self.frames.accept()

    @property
    def bytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(t.nbytes for t in self.blocks.tensors) + self.frames.bytes

    def expected_bytes(self, stored: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes once `stored` frames are stored, products in `dtype`: the sum of what `bytes` will count."""
        pages, digests = self.policy.pages, self.blocks.top_pages is not None
        kept = self.blocks.sizes.bytes(stored, dtype if pages == "auto" else DTYPES[pages], digests=digests)
        return kept + self.frames.expected_bytes(stored)

    def state(self) -> dict[str, Tensor | int]:
        """A copy of what it holds."""
        parts = {"blocks": self.blocks.state(), "frames": self.frames.state()}
        return {f"{part}.{name}": value for part, held in parts.items() for name, value in held.items()}

    def restore(self, state: Mapping[str, Tensor | int], device: torch.device) -> None:
        """Hold what `state` gave; UsageError if it is of other sizes."""
        for part, held in (("blocks", self.blocks), ("frames", self.frames)):
            prefix = f"{part}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            held.restore(own, device)


class NanoStream(Nano):
    """Cameras, depth and confidence of frames in order, the first one the origin: nano for streams.

    `encode` and `decode` take a whole sequence in one pass; `step` takes it frame by frame with a cache, with the same
    results up to rounding. Earlier frames do not see later ones, except the anchors, which see one another. Lengths are
    in units of the first frames' depth.
    """

    name = "nano-stream"

    SIZES: ClassVar[dict[str, NanoConfig]] = {"nano-stream": StreamConfig()}
    SMALLEST: ClassVar = StreamConfig(width=32, heads=2, pairs=2)
    TRUNK: ClassVar = CausalTrunk
    TELLTALE: ClassVar = ("anchor", (128,))
    ORDERED: ClassVar = True
    STREAMS: ClassVar = "cache"
    WIDEST = 12
    LONGEST = 24
    BRIDGE = 6

    def __init__(self, config: NanoConfig | None = None):
        config = config or self.SIZES["nano-stream"]
        if not isinstance(config, StreamConfig):
            config = StreamConfig(config.width, config.heads, config.pairs, config.patch)
        super().__init__(config)
        self.policy = config.policy
        self.anchor = nn.Parameter(torch.zeros(config.width))
        self.told = nn.ModuleList(Linear(2 * CAMERA, config.width) for _ in range(config.pairs - 1))
        for layer in self.told:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def matched(self, views: Views) -> None:
        """See Backbone.matched: earlier frames are not compared with later ones."""
        return None

    def special_tokens(self, patches: Tensor, first: int = 0) -> Tensor:
        """See Nano.special_tokens: those of anchors have a vector added."""
        x = self.special(patches)
        is_anchor = torch.arange(first, first + x.shape[1], device=x.device) < self.policy.anchors
        mark = is_anchor[:, None, None] * self.anchor
        return torch.cat([x[:, :, :SPECIAL] + mark.to(x.dtype), x[:, :, SPECIAL:]], 2)

    def told_cameras(self, special: Tensor, index: int, cameras: CameraState, peers: Peers) -> Tensor:
        """See Nano.told_cameras: their own and the one of the frame before."""
        own = cameras.pack()
        before = peers.before(peers.join(f"camera.{index}", own))
        start = CameraState.start(own.shape[0], own.shape[1], own).pack()
        update = self.told[index](torch.cat([own - start, before - start], -1).detach())
        return special + update[:, :, None].to(special.dtype)

    def iterate(self, half: Tensor, mask: Tensor | None = None, share: Share | None = None) -> Iterations:
        """See Nano.iterate: all frames in one pass, each seeing what the policy says."""
        first, count = (0, half.shape[1]) if share is None else (share.first, share.total)
        table = FrameTable.of(self.policy.for_frames(count), count)
        sight = FrameSight(table, min(self.policy.memory, SPECIAL), share)
        peers = TablePeers(table, half.device, share)
        return self.iterate_among(half, mask, peers, [sight] * self.rounds, first)

    def new_cache(self, policy: CachePolicy, height: int, width: int) -> NanoStreamCache:
        """An empty cache for a stream of pictures of this size; it takes no memory yet."""
        patches, dim = (height // self.patch) * (width // self.patch), self.config.width
        memory = min(policy.memory, SPECIAL)
        sizes = CacheSizes(
            layers=self.rounds,
            heads=self.config.heads,
            head_dim=dim // self.config.heads,
            memory=memory,
            page=SPECIAL + patches - memory,
            anchors=policy.anchors,
            window=policy.window,
            reserve=policy.reserve,
        )
        matcher = self.matcher
        shapes: dict[str, tuple[int, ...]] = {
            "descriptor": (patches, matcher.descriptor.out_features),
            "other": (patches, matcher.other.out_features),
            "grid": (patches, 2),
        }
        for index in range(self.rounds):
            shapes |= {f"focal.{index}": (), f"cam_from_world.{index}": (4, 4)}
            shapes |= {f"camera.{index}": (CAMERA,)} if index + 1 < self.rounds else {}
        return NanoStreamCache(policy, sizes, shapes)

    def step(self, views: Views, cache: NanoStreamCache, *, keep: bool = True, dense: bool = True) -> Prediction:
        """Predict the next frames of a stream [1, S, 3, H, W]: all anchors in the first call, later one frame a call.

        Frames are stored in the cache if `keep`; otherwise `cache.accept()` may store the one frame afterwards.
        """
        count, before = views.images.shape[1], cache.stored
        half, mask = self.half_size(views)
        cache.begin(count, keep=keep)
        rope = TimeRope(range(before, before + count))  # without effect: blocks rotate by row and column only
        sights: Sequence[Sight] = [cache.blocks.sight(index, rope) for index in range(self.rounds)]
        found = self.iterate_among(half, mask, RingPeers(cache.frames, half.device), sights, before)
        origin = cache.frames.values[f"cam_from_world.{self.rounds - 1}"][:1]
        cache.end()
        with full_precision(origin):
            origin = invert_pose(origin)[None]
        return self.predict(self.tokens_of(found, views), origin, dense=dense)
