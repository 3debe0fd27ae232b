"""nano: the embedded model, small enough to ship inside the wheel and to train from scratch.

A convolutional stem, one per-view block, a matching layer between all pairs of views, then pairs of (frame,
global) blocks. After each pair the heads estimate cameras and coarse depth, and the residual between these
and the matches is fed back to the tokens. No view is the reference: permuting the views permutes the outputs.
The trunk sees the picture at half size; a guided head upsamples depth to full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.geometry.adjustment import Pairs
from lean3r.group import Share, of_all
from lean3r.heads.camera import CameraState, CameraUpdate
from lean3r.heads.guided import GuidedUpsampler, Surfaces
from lean3r.layers.causal import Sight
from lean3r.layers.embed import ConvStem, SpecialTokens
from lean3r.layers.matching import Feedback, Matches, PairMatcher, Peers, SharedPeers
from lean3r.layers.trunk import Trunk
from lean3r.models.base import Backbone, check_views, full_precision, grey_padding, in_chunks
from lean3r.types import Prediction, TokenLayout, Tokens, Views

ENLARGED = 1.25  # times the sides of pictures, for their matches alone
MOST_MATCHED = 32  # views; all pairs are compared, which takes longer than the network from there on
STEM_BYTES, HEAD_BYTES = 1 << 24, 1 << 26  # upper bounds of the working memory of stem and head for one view
EVERYONE = Peers()


@dataclass(frozen=True)
class NanoConfig:
    """Sizes of nano. `patch` is in pixels of the full picture; the trunk sees the picture at half size."""

    width: int = 128
    heads: int = 4
    pairs: int = 3
    patch: int = 16


@dataclass(frozen=True)
class Frame:
    """Normalised coordinates of each picture: (pixel - center) / side, side = sqrt(picture area).

    grid [B, S, N, 2] patch centres; center [B, S, 2] and side [B, S] in pixels of that picture.
    """

    grid: Tensor
    center: Tensor
    side: Tensor


@dataclass(frozen=True)
class Estimate:
    """Output of the heads after one pair of blocks: cameras, and log depth [B, S, N] at patch centres.
    world_from_cam and cam_from_world are [B, S, 4, 4]; the geometric mean depth of a scene is about 1."""

    cameras: CameraState
    log_depth: Tensor
    world_from_cam: Tensor
    cam_from_world: Tensor


@dataclass(frozen=True)
class Iterations:
    """Everything that a loss needs: all estimates, the matches, final tokens [B, S, T, C] and the frame."""

    estimates: list[Estimate]
    matches: Matches
    tokens: Tensor
    layout: TokenLayout
    frame: Frame


class Nano(Backbone):
    """Cameras, depth and confidence of any number of views, none of them the reference: the embedded model.

    Any aspect ratio, sides multiples of 16 pixels.
    """

    name = "nano"
    licence = "Apache-2.0"
    resolution = 240

    SIZES: ClassVar[dict[str, NanoConfig]] = {"nano": NanoConfig()}
    SMALLEST: ClassVar = NanoConfig(width=32, heads=2, pairs=2)
    TRUNK: ClassVar[type[Trunk]] = Trunk

    def __init__(self, config: NanoConfig | None = None):
        super().__init__()
        config = config or self.SIZES["nano"]
        self.config = config
        self.patch = config.patch
        dim = config.width
        self.stem = ConvStem((dim // 4, dim // 2, dim))
        self.special = SpecialTokens(1, dim)
        self.trunk = self.TRUNK(("frame",) + ("frame", "global") * config.pairs, dim, config.heads)
        self.matcher = PairMatcher(dim)
        self.cameras = nn.ModuleList(CameraUpdate(dim) for _ in range(config.pairs))
        self.depths = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1)) for _ in range(config.pairs))
        self.feedbacks = nn.ModuleList(Feedback(dim) for _ in range(config.pairs - 1))
        self.upsampler = GuidedUpsampler(dim, config.patch)
        self.apply(initialise)
        for head in self.cameras:
            assert isinstance(head, CameraUpdate)
            nn.init.normal_(head.mlp.fc2.weight, std=1e-3)

    @property
    def rounds(self) -> int:
        """Number of rounds: a pair of blocks, then an estimate."""
        return self.config.pairs

    def blocks_of_round(self, x: Tensor, layout: TokenLayout, index: int, sight: Sight | None = None) -> Tensor:
        """The (frame, global) blocks of one round on tokens [B, S, T, C]; `sight` is for causal ones."""
        extra = None if sight is None else {2 + 2 * index: sight}
        return self.trunk(x, layout, start=1 + 2 * index, stop=3 + 2 * index, extra=extra)[0]

    def special_tokens(self, patches: Tensor, first: int = 0) -> Tensor:
        """Patches [B, S, N, C] of views from number `first` on, with their special tokens before them."""
        return self.special(patches)

    def told_cameras(self, special: Tensor, index: int, cameras: CameraState, peers: Peers) -> Tensor:
        """The special tokens [B, S, n, C] once they know the cameras that a round found."""
        return special

    def iterate(self, half: Tensor, mask: Tensor | None = None, share: Share | None = None) -> Iterations:
        """Half-size pictures [B, S, 3, h, w] (mask [B, S, h, w]) -> every intermediate estimate."""
        return self.iterate_among(half, mask, EVERYONE if share is None else SharedPeers(share))

    def iterate_among(
        self,
        half: Tensor,
        mask: Tensor | None = None,
        peers: Peers = EVERYONE,
        sights: Sequence[Sight] | None = None,
        first: int = 0,
    ) -> Iterations:
        """`iterate` of views from number `first` on that see, with causal blocks, the peers and what the sight of each
        round shows."""
        x, matches, layout, frame = self._matched(half, mask, peers, first)
        special = layout.special
        cameras = CameraState.start(half.shape[0], half.shape[1], x)
        estimates: list[Estimate] = []
        for index in range(self.rounds):
            x = self.blocks_of_round(x, layout, index, None if sights is None else sights[index])
            cameras = _of_round(self.cameras, index)(x[:, :, 0], cameras)
            log_depth = _of_round(self.depths, index)(x[:, :, special:])[..., 0].float()
            estimate = Estimate(cameras, log_depth, *cameras.poses())
            estimates.append(estimate)
            focal, cam_from_world = cameras.log_focal.exp(), estimate.cam_from_world
            focals = peers.join(f"focal.{index}", focal)
            cam_from_world = peers.join(f"cam_from_world.{index}", cam_from_world)
            if index + 1 < self.rounds:
                rays = F.pad(frame.grid / focal[..., None, None], (0, 1), value=1.0)
                points = rays * log_depth.clamp(-4, 4).exp()[..., None]
                update = _of_round(self.feedbacks, index)(
                    matches, frame.grid, points, focals, estimate.world_from_cam, cam_from_world
                )
                told = self.told_cameras(x[:, :, :special], index, cameras, peers)
                x = torch.cat([told, x[:, :, special:] + update.to(x.dtype)], dim=2)
        return Iterations(estimates, matches, x, layout, frame)

    def _matched(
        self, half: Tensor, mask: Tensor | None, peers: Peers, first: int
    ) -> tuple[Tensor, Matches, TokenLayout, Frame]:
        """The tokens of `iterate_among` before the rounds, with the matches in them."""
        batch, views = half.shape[:2]
        layout, frame = _layout(half.shape, self.patch // 2, mask, half.device)
        layout = replace(layout, share=peers.share)
        chunk = 1 << 30 if torch.is_grad_enabled() else self.frames_at_once(STEM_BYTES)
        (patches,) = in_chunks(lambda x: (self.stem(x),), chunk, half.flatten(0, 1))
        patches = patches.reshape(batch, views, layout.patches, patches.shape[-1])
        x = self.special_tokens(patches, first)
        x, _ = self.trunk(x, layout, stop=1)
        special = layout.special
        update, matches = self.matcher(x[:, :, special:], frame.grid, layout.valid, peers)
        return torch.cat([x[:, :, :special], x[:, :, special:] + update], dim=2), matches, layout, frame

    def matched(self, views: Views) -> Pairs | None:
        """See Backbone.matched. Pictures are enlarged before: smaller patches are matched more exactly."""
        count, height, width = views.images.shape[1], *views.images.shape[-2:]
        if not 1 < count <= MOST_MATCHED:
            return None
        views = grey_padding(views)
        rows, cols = (round(ENLARGED * side / self.patch) for side in (height, width))
        size = (rows * self.patch, cols * self.patch)
        images = F.interpolate(views.images[0], size, mode="bicubic", antialias=True).clamp(0, 1)[None]
        mask = None if views.mask is None else F.interpolate(views.mask.float(), size)[0] > 0.5
        half, half_mask = self.half_size(Views(images, None if mask is None else mask[None]))
        _, matches, layout, frame = self._matched(half, half_mask, EVERYONE, 0)
        _, given = _layout(views.images.shape, self.patch, views.mask, half.device)
        ratio = 2 * half.new_tensor([width / size[1], height / size[0]])  # pixels of the views in one of a half picture
        scale = (frame.side[0, :, None] / given.side[0, :, None] * ratio)[:, None]
        shift = ((frame.center[0] * ratio - given.center[0]) / given.side[0, :, None])[:, None]
        everywhere = torch.ones_like(frame.grid[0, ..., 0], dtype=torch.bool)
        known = everywhere if layout.valid is None else layout.valid[0]
        found = frame.grid[0] * scale + shift, matches.position[0] * scale + shift, matches.spread[0]
        return Pairs.of(*found, matches.visibility[0].sigmoid(), known, (rows, cols))

    def appearance(self, views: Views) -> Tensor:
        """See Backbone.appearance: the tokens before views are compared."""
        half = F.avg_pool2d(grey_padding(views).images[0], 2)[:, None]
        mask = None if views.mask is None else views.mask[0, :, None, ::2, ::2]
        layout, _ = _layout(half.shape, self.patch // 2, mask, half.device)
        (patches,) = in_chunks(lambda x: (self.stem(x),), self.frames_at_once(STEM_BYTES), half.flatten(0, 1))
        x, _ = self.trunk(self.special(patches[:, None]), layout, stop=1)
        return self.statistics(x, layout)

    def sharpen(self, tokens: Tensor, log_depth: Tensor, images: Tensor) -> Surfaces:
        """Final tokens [B, S, T, C], coarse log depth [B, S, N], pictures [B, S, 3, H, W] -> surfaces [B, S, H, W]."""
        batch, views, _, height, width = images.shape
        grid = (height // self.patch, width // self.patch)
        patches = tokens[:, :, tokens.shape[2] - grid[0] * grid[1] :]
        chunk = 1 << 30 if torch.is_grad_enabled() else self.frames_at_once(HEAD_BYTES)
        coarse = log_depth.flatten(0, 1).unflatten(-1, grid)
        full = in_chunks(self.upsampler, chunk, patches.flatten(0, 1), coarse, images.flatten(0, 1))
        return Surfaces(*(t.unflatten(0, (batch, views)) for t in full))

    def encode(self, views: Views) -> Tokens:
        """See Backbone.encode. Layers: "patches" (all tokens), "depth" [B, S, N, 1], "cameras" [B, S, 1, 13]."""
        half, mask = self.half_size(views)
        return self.tokens_of(self.iterate(half, mask, views.share), views)

    def half_size(self, views: Views) -> tuple[Tensor, Tensor | None]:
        """What the trunk sees of checked views: pictures [B, S, 3, h, w] and mask [B, S, h, w] at half size."""
        check_views(views, self.patch)
        half = F.avg_pool2d(views.images.flatten(0, 1), 2).unflatten(0, views.images.shape[:2])
        return half, None if views.mask is None else views.mask[..., ::2, ::2]

    def tokens_of(self, iterations: Iterations, views: Views) -> Tokens:
        """The layers that `encode` returns."""
        last = iterations.estimates[-1]
        layers = {
            "patches": iterations.tokens,
            "depth": last.log_depth[..., None],
            "cameras": last.cameras.pack()[:, :, None],
        }
        return Tokens(layers, iterations.layout, views)

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Backbone.decode. The first view becomes the origin of the world."""
        return self.predict(tokens, dense=dense)

    def predict(self, tokens: Tokens, origin: Tensor | None = None, *, dense: bool = True) -> Prediction:
        """`decode` with the camera `origin` [B, 1, 4, 4], world_from_cam, as the origin of the world; None: the first
        view's."""
        views = tokens.views
        cameras = CameraState.unpack(tokens.layers["cameras"][:, :, 0].float())
        world_from_cam, cam_from_world = cameras.poses()
        with full_precision(cam_from_world):
            if origin is None:
                origin = of_all(views.share, world_from_cam)[:, :1]
            cam_from_world = cam_from_world @ origin
        _, frame = _layout(views.images.shape, self.patch, views.mask, cameras.center.device)
        focal = cameras.log_focal.exp() * frame.side
        intrinsics = torch.zeros(*focal.shape, 3, 3, device=focal.device)
        intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = focal
        intrinsics[..., :2, 2] = frame.center
        intrinsics[..., 2, 2] = 1.0
        if not dense:
            return Prediction(cam_from_world, intrinsics, None, None)
        surfaces = self.sharpen(tokens.layers["patches"], tokens.layers["depth"][..., 0], views.images)
        return Prediction(cam_from_world, intrinsics, surfaces.log_depth.exp(), 1 + 0.1 / surfaces.error)


def _of_round(modules: nn.ModuleList, index: int) -> nn.Module:
    """The module of this round: its own, or the one that all rounds share."""
    return modules[index % len(modules)]


def _layout(
    shape: torch.Size | tuple[int, ...], cell: int, mask: Tensor | None, device: torch.device
) -> tuple[TokenLayout, Frame]:
    """Token layout and normalised patch centres of pictures [B, S, 3, h, w] cut into cells of `cell` pixels."""
    batch, views, _, height, width = shape
    rows, cols = height // cell, width // cell
    y = (torch.arange(rows, device=device) + 0.5) * cell
    x = (torch.arange(cols, device=device) + 0.5) * cell
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
    if mask is None:
        sides = (torch.full((batch, views), side, dtype=torch.float32, device=device) for side in (width, height))
        center = torch.stack(tuple(sides), dim=-1) / 2
        side = torch.full((batch, views), height * width, dtype=torch.float32, device=device).sqrt()
        valid = None
    else:
        valid = mask[..., cell // 2 :: cell, cell // 2 :: cell].flatten(2)
        count = valid.sum(-1)
        center = (pixels * valid[..., None]).sum(2) / count[..., None]
        side = count.float().sqrt() * cell
    grid = (pixels - center[:, :, None]) / side[..., None, None]
    return TokenLayout(views, 1, rows, cols, valid), Frame(grid, center, side)


def initialise(module: nn.Module) -> None:
    """Initialise a linear layer of nano; other modules stay as they are."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 * 0.7)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
