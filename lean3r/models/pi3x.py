"""Pi3X: Pi3 with convolutional heads, metric scale, and depth, rays and poses as optional inputs.

Known depth and rays are added to the patches before the trunk; known poses enter after blocks 1, 9, 17, ... by
attention between views. Source: the Pi3 authors' second model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.errors import UsageError
from lean3r.geometry.camera import ray_directions
from lean3r.geometry.pose import invert_pose, make_pose
from lean3r.group import Share, of_all
from lean3r.heads.conv import ConvPixels
from lean3r.heads.refine import SceneReader
from lean3r.layers.pose_injection import PoseFrame, PoseInjection
from lean3r.layers.trunk import key_mask
from lean3r.layers.vit import PatchEmbed, VisionTransformer
from lean3r.models.base import check_known, full_precision
from lean3r.models.pi3 import Pi3, Pi3Config, precisely, scale_translation
from lean3r.types import Known, TokenLayout, Tokens, Views

LOG_Z_MAX = 15.0
INJECTION_STEP = 8  # poses are injected after blocks 1, 9, 17, ...


@dataclass(frozen=True)
class Pi3XConfig(Pi3Config):
    """Sizes of Pi3X. `multimodal` False leaves out the parts that read depth, rays and poses."""

    multimodal: bool = True
    conv_widths: tuple[int, ...] = (256, 128, 64)
    conv_last: int = 32
    metric_width: int = 512
    metric_heads: int = 8


class Pi3X(Pi3):
    """Pi3 in metres, which also reads known depth, intrinsics and poses.

    Reads Views.known: depth, intrinsics or rays, and poses, each for all views or some.

    Depth is divided by its mean over the scene, poses are taken relative to view 0 and divided by the same mean
    (without depth, by the mean length of their translations). Results are not converted back to the unit of the
    known parts. A single known pose carries no information and is dropped.
    """

    name = "pi3x"
    TELLTALE: ClassVar = ("metric_token", (1, 1, 2048))
    ACCEPTS: ClassVar = frozenset({"depth", "intrinsics", "rays", "cam_from_world"})
    SIZES: ClassVar = {"pi3x": Pi3XConfig()}
    SMALLEST: ClassVar = Pi3XConfig(
        width=32,
        heads=2,
        encoder_depth=1,
        depth=4,
        grid=4,
        camera_width=16,
        conv_widths=(32, 16),
        conv_last=8,
        metric_width=32,
        metric_heads=2,
    )

    def __init__(self, config: Pi3XConfig | None = None):
        config = config or self.SIZES["pi3x"]
        super().__init__(config)
        self.sizes = config
        dim = config.width
        self.metric_token = nn.Parameter(torch.randn(1, 1, 2 * dim) * 0.02)
        self.metric_decoder = SceneReader(2 * dim, config.metric_width, config.metric_heads, config.metric_width)
        self.metric_head = nn.Linear(config.metric_width, 1)
        if config.multimodal:
            self.depth_encoder = VisionTransformer(
                dim, config.encoder_depth, config.heads, patch=config.patch, grid=config.grid, channels=2
            )
            self.depth_emb = nn.Parameter(torch.zeros(1, 1, dim))
            self.ray_embed = PatchEmbed(dim, config.patch, channels=2)
            count = len(range(1, config.depth, INJECTION_STEP))
            self.pose_inject_blk = nn.ModuleList(PoseInjection(dim, config.heads) for _ in range(count))

    def reads(self, known: Known | None) -> frozenset[str]:
        """See Backbone.reads; a single known pose is dropped."""
        read = super().reads(known)
        alone = known is not None and pose_frame(known) is None
        return read - {"cam_from_world"} if alone else read

    def dense_heads(self, config: Pi3Config) -> tuple[nn.Module, nn.Module]:
        """See Pi3.dense_heads."""
        assert isinstance(config, Pi3XConfig)
        sizes = (config.width, config.conv_widths)
        return ConvPixels(*sizes, (2, 1), config.conv_last), ConvPixels(*sizes, (1,), config.conv_last)

    def encode(self, views: Views) -> Tokens:
        """See Pi3.encode; known parts are first normalised to the scene's own unit."""
        known = views.known
        if known is None:
            return super().encode(views)
        check_known(views)
        if not self.sizes.multimodal:
            raise UsageError(
                "this Pi3X was built without inputs for depth, rays and poses; set multimodal=True in its config, "
                "or leave views.known out."
            )
        tokens = super().encode(replace(views, known=normalise_known(known, views.share)))
        return replace(tokens, views=views)

    def embed(self, views: Views) -> Tensor:
        """See Pi3.embed; adds known depth and rays."""
        x = super().embed(views)
        known = views.known
        if known is None:
            return x
        if known.depth is not None:
            image = torch.stack([known.depth, (known.depth > 0).to(known.depth.dtype)], dim=2)
            x = self._add(x, lambda t: self.see(self.depth_encoder, t) + self.depth_emb[0], image, known.has_depth)
        rays = known.rays
        if rays is None and known.intrinsics is not None:
            rays = ray_directions(known.intrinsics.float(), *views.images.shape[-2:])
        if rays is not None:
            slopes = (rays[..., :2] / (rays[..., 2:] + (1e-6 if known.rays is not None else 0))).movedim(-1, 2)
            x = self._add(x, lambda t: self.ray_embed(t.to(self.depth_emb.dtype)), slopes, known.has_intrinsics)
        return x

    def mix(self, x: Tensor, layout: TokenLayout, views: Views) -> tuple[Tensor, Tensor]:
        """See Pi3.mix; injects known poses between blocks."""
        frame = None if views.known is None else pose_frame(views.known, views.share)
        if frame is None:
            return super().mix(x, layout, views)
        start, special = 0, layout.special
        receives = frame.known[:, :, None, None]
        for block, inject in zip(range(1, self.config.depth, INJECTION_STEP), self.pose_inject_blk, strict=True):
            x, _ = self.trunk(x, layout, start=start, stop=block + 1)
            patches = x[:, :, special:]
            change = inject(patches.flatten(1, 2), layout, frame).unflatten(1, patches.shape[1:3])
            x = torch.cat([x[:, :, :special], torch.where(receives, patches + change, patches)], dim=2)
            start = block + 1
        before = self.config.depth - 2
        x, kept = self.trunk(x, layout, start=start, keep=(before,))
        return kept[before], x

    def scale(self, tokens: Tokens) -> Tensor:
        """Metres per unit of length [B]."""
        parts = tuple(tokens.layers[name].flatten(1, 2) for name in ("frame", "global"))
        mask = key_mask(tokens.layout, len(parts[0]))
        query = self.metric_token.expand(len(parts[0]), -1, -1)
        read = self.metric_decoder(query, parts, tokens.layout, None if mask is None else mask.flatten(1))
        return precisely(self.metric_head, read)[:, 0, 0].exp()

    def outputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """See Pi3.outputs; points and translations in metres, unit rays, and the factor itself."""
        relative = super().outputs(tokens)
        metric = self.scale(tokens)
        factor = metric[:, None, None, None, None]
        local = relative["local_points"]
        return {
            "points": relative["points"] * factor,
            "local_points": local * factor,
            "rays": F.normalize(local, dim=-1),
            "conf": relative["conf"],
            "camera_poses": scale_translation(relative["camera_poses"], metric),
            "metric": metric,
        }

    def slopes(self, features: Tensor, layout: TokenLayout, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """See Pi3.slopes."""
        x = self._pixels(self.point_decoder, self.point_head, features, layout, valid)
        return x[:, :2].movedim(1, -1), x[:, 2].clamp_max(LOG_Z_MAX)

    def logits(self, features: Tensor, layout: TokenLayout, valid: Tensor | None) -> Tensor:
        """See Pi3.logits."""
        return self._pixels(self.conf_decoder, self.conf_head, features, layout, valid)[:, 0]

    def frame_bytes(self, layout: TokenLayout) -> int:
        """See Pi3.frame_bytes; maps at picture size and the widest intermediate grids count here."""
        pixels = layout.patches * self.patch**2
        maps = 4 * pixels * 3 * (self.sizes.conv_widths[-1] + 2 + self.sizes.conv_last)
        grids = max(4 * layout.patches * 4 ** (i + 1) * 6 * w for i, w in enumerate(self.sizes.conv_widths))
        return max(super().frame_bytes(layout), maps, grids)

    def _pixels(
        self, refiner: nn.Module, head: nn.Module, features: Tensor, layout: TokenLayout, valid: Tensor | None
    ) -> Tensor:
        refined = self.refine(refiner, features, layout, valid)
        size = (layout.rows * self.patch, layout.cols * self.patch)
        return precisely(head, refined, layout.rows, layout.cols, size)

    def _add(self, x: Tensor, embed, image: Tensor, has: Tensor | None) -> Tensor:
        """x [B, S, P, C] plus embed(image) for the views where `has` [B, S] is True (None: all)."""
        if has is None:
            return x + embed(image.flatten(0, 1)).unflatten(0, x.shape[:2])
        if not bool(has.any()):
            return x
        out = x.clone()
        out[has] += embed(image[has]).to(x.dtype)
        return out


def normalise_known(known: Known, share: Share | None = None) -> Known:
    """`known` with depth divided by its mean over the scene, poses relative to view 0 and of the same unit.

    The mean is over all given depths, even those that `has_depth` excludes. In scenes without
    included depth, translations are divided by their mean length over views 1, 2, ..., unless the longest is below
    0.02. With a `share` the views are those of one process, the scene that of all.
    """
    pose, depth = known.cam_from_world, known.depth
    unit = None
    if depth is not None:
        depth = torch.where(torch.isfinite(depth) & (depth > 0), depth, torch.zeros_like(depth))
        count, total = (depth > 0).sum((1, 2, 3)), depth.sum((1, 2, 3))
        if share is not None:
            count, total = share.parts(count).sum(0), share.parts(total).sum(0)
        unit = torch.where(count > 0, total / count.clamp_min(1), torch.ones_like(total))
        unit = unit + 1e-8
        depth = depth / unit[:, None, None, None]
    if pose is not None:
        pose = of_all(share, pose)
        with full_precision(pose):
            relative = pose[:, :1] @ invert_pose(pose)
        shift = relative[..., :3, 3]
        if unit is not None:
            shift = shift / unit[:, None, None]
        if pose.shape[1] > 1:
            length = torch.linalg.vector_norm(shift[:, 1:], dim=-1)
            own = length.amax(1) >= 0.02
            if depth is not None:
                own &= torch.zeros_like(own) if known.has_depth is None else ~of_all(share, known.has_depth).any(1)
            shift = shift / torch.where(own, length.mean(1) + 1e-8, torch.ones_like(length[:, 0]))[:, None, None]
        with full_precision(pose):
            pose = invert_pose(make_pose(relative[..., :3, :3], shift))
        pose = pose if share is None else share.own(pose)
    return replace(known, depth=depth, cam_from_world=pose)


def pose_frame(known: Known, share: Share | None = None) -> PoseFrame | None:
    """The known poses as the trunk reads them; None if no scene has two."""
    if known.cam_from_world is None:
        return None
    has = known.has_pose
    if has is None:
        has = torch.ones(known.cam_from_world.shape[:2], dtype=torch.bool, device=known.cam_from_world.device)
    everywhere = of_all(share, has)
    has = has & (everywhere.sum(1, keepdim=True) > 1)
    return PoseFrame(known.cam_from_world, has) if bool((everywhere.sum(1) > 1).any()) else None
