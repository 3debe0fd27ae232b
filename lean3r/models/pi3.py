"""Pi3: a permutation-equivariant multi-view transformer; no view is the reference.

DINOv2 patches, learned registers, 36 alternating (frame, global) blocks; points, confidence and pose are read
from the last pair, each by its own small transformer. Source: Wang et al. 2025, "Pi3".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.geometry.camera import intrinsics_from_slopes
from lean3r.geometry.pose import invert_pose, make_pose, transform_points
from lean3r.group import of_all
from lean3r.heads.linear import LinearPixels
from lean3r.heads.pooled import PooledPose
from lean3r.heads.refine import ViewRefiner
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import VisionTransformer
from lean3r.models.base import Backbone, block_bytes, check_views, full_precision, in_chunks, patch_mask
from lean3r.models.keymap import KeyMap
from lean3r.types import Prediction, TokenLayout, Tokens, Views


@dataclass(frozen=True)
class Pi3Config:
    """Sizes of Pi3. `grid` is the side, in patches, of the encoder's learned positions."""

    width: int = 1024
    heads: int = 16
    depth: int = 36
    encoder_depth: int = 24
    grid: int = 37
    patch: int = 14
    registers: int = 5
    camera_width: int = 512


class Pi3(Backbone):
    """Cameras, points as depth, and confidence of any number of views, none of them the reference.

    Any aspect ratio, sides multiples of 14. Scale is unknown; known cameras are not read.
    """

    name = "pi3"
    BFLOAT16 = True
    licence = "CC-BY-NC-4.0"
    resolution = 504

    SIZES: ClassVar = {"pi3": Pi3Config()}
    SMALLEST: ClassVar = Pi3Config(width=32, heads=2, encoder_depth=1, depth=4, grid=4, camera_width=16)
    KEY_MAP = KeyMap((("decoder.", "trunk.blocks."), ("", "")))
    TELLTALE: ClassVar = ("conf_head.proj.weight", (196, 1024))

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: Pi3Config | None = None):
        super().__init__()
        config = config or self.SIZES["pi3"]
        self.config = config
        self.patch = config.patch
        dim, heads = config.width, config.heads
        self.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.encoder = VisionTransformer(dim, config.encoder_depth, heads, patch=config.patch, grid=config.grid)
        if config.registers:
            self.register_token = nn.Parameter(torch.randn(1, 1, config.registers, dim) * 0.02)
        self.trunk = Trunk(("frame", "global") * (config.depth // 2), dim, heads, layer_scale=0.01)
        self.point_decoder = ViewRefiner(2 * dim, dim, heads, dim)
        self.conf_decoder = ViewRefiner(2 * dim, dim, heads, dim)
        self.camera_decoder = ViewRefiner(2 * dim, dim, heads, config.camera_width)
        self.camera_head = PooledPose(config.camera_width)
        self.point_head, self.conf_head = self.dense_heads(config)

    def dense_heads(self, config: Pi3Config) -> tuple[nn.Module, nn.Module]:
        """The heads of points and of confidence."""
        return LinearPixels(config.width, config.patch, 3), LinearPixels(config.width, config.patch, 1)

    def encode(self, views: Views) -> Tokens:
        """See Backbone.encode. Layers: "frame" and "global", the outputs of the last two blocks."""
        check_views(views, self.patch)
        images = views.images
        rows, cols = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        valid = patch_mask(views, self.patch)
        layout = TokenLayout(images.shape[1], self.config.registers, rows, cols, valid, share=views.share)
        x = self.embed(views)
        if self.config.registers:
            x = torch.cat([self.register_token.to(x.dtype).expand(*x.shape[:2], -1, -1), x], dim=2)
        before, last = self.mix(x, layout, views)
        return Tokens({"frame": before, "global": last}, layout, views)

    def embed(self, views: Views) -> Tensor:
        """Patch tokens [B, S, P, C] that enter the trunk."""
        return self.see(self.encoder, (views.images - self.image_mean) / self.image_std)

    def see(self, encoder: VisionTransformer, images: Tensor) -> Tensor:
        """Patch tokens [..., P, C] of prepared images [..., channels, H, W], a few images at a time."""
        flat = images.flatten(0, -4).to(encoder.cls_token.dtype)
        tokens = (flat.shape[-2] // self.patch) * (flat.shape[-1] // self.patch) + encoder.special
        size = self.frames_at_once(block_bytes(tokens, self.config.width))
        return in_chunks(lambda x: (encoder(x),), size, flat)[0].unflatten(0, images.shape[:-3])

    def mix(self, x: Tensor, layout: TokenLayout, views: Views) -> tuple[Tensor, Tensor]:
        """Outputs of the last two blocks of the trunk, each [B, S, T, C]."""
        before = self.config.depth - 2
        x, kept = self.trunk(x, layout, keep=(before,))
        return kept[before], x

    def poses(self, tokens: Tokens) -> Tensor:
        """world_from_cam [B, S, 4, 4], without running a dense head."""

        def pose(features: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
            refined = self.refine(self.camera_decoder, features, tokens.layout, valid)
            return (precisely(self.camera_head, refined, valid),)

        (poses,) = self._by_frames(pose, tokens)
        return poses

    def outputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """All outputs of the official forward pass, with their names and shapes; confidence as logits."""
        poses = self.poses(tokens)
        slopes, log_z, logits = self._dense(tokens)
        local = _points(slopes, log_z)
        with full_precision(poses):
            points = transform_points(poses, local)
        return {
            "points": points,
            "local_points": local,
            "conf": logits[..., None],
            "camera_poses": poses,
        }

    def scale(self, tokens: Tokens) -> Tensor | None:
        """Metres per unit of length [B], None if the model does not predict it."""
        return None

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Backbone.decode. The first view becomes the origin of the world; conf is 1 + exp(logit), so that the
        official threshold sigmoid(logit) > 0.1 is conf > 1.11. Without `dense` the confidence path is skipped;
        the point path still runs, since intrinsics come from it. `poses` runs neither."""
        mask = tokens.views.mask

        # The poses' singular values, which are waited for, come last: until then kernels are launched while others run.
        def read(features: Tensor, valid: Tensor | None, *pixels: Tensor) -> tuple[Tensor, ...]:
            slopes, log_z = self.slopes(features, tokens.layout, valid)
            rest = (log_z.exp(), 1 + self.logits(features, tokens.layout, valid).exp()) if dense else ()
            return intrinsics_from_slopes(slopes, pixels[0] if pixels else None), *rest

        intrinsics, *rest = self._by_frames(read, tokens, *([] if mask is None else [mask]))
        world_from_cam, scale = self.poses(tokens), self.scale(tokens)
        if scale is not None:
            world_from_cam = scale_translation(world_from_cam, scale)
        with full_precision(world_from_cam):
            cam_from_world = invert_pose(world_from_cam) @ of_all(tokens.views.share, world_from_cam)[:, :1]
        depth, conf = rest if dense else (None, None)
        if depth is not None and scale is not None:
            depth = depth * scale[:, None, None, None]
        return Prediction(cam_from_world, intrinsics, depth, conf, is_metric=scale is not None)

    def slopes(self, features: Tensor, layout: TokenLayout, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of single views [N, T, 2C] -> (x / z, y / z) [N, H, W, 2] and log z [N, H, W]."""
        refined = self.refine(self.point_decoder, features, layout, valid)
        x = precisely(self.point_head, refined, layout.rows, layout.cols).movedim(1, -1)
        return x[..., :2], x[..., 2]

    def logits(self, features: Tensor, layout: TokenLayout, valid: Tensor | None) -> Tensor:
        """Features of single views [N, T, 2C] -> confidence logits [N, H, W]."""
        refined = self.refine(self.conf_decoder, features, layout, valid)
        return precisely(self.conf_head, refined, layout.rows, layout.cols)[:, 0]

    def refine(self, refiner: nn.Module, features: Tensor, layout: TokenLayout, valid: Tensor | None) -> Tensor:
        """Features of single views [N, T, 2C], valid [N, P] -> patch tokens for a head [N, P, C']."""
        mask = None if valid is None else F.pad(valid, (layout.special, 0), value=True)
        return refiner(features, layout.alone, mask)[:, layout.special :]

    def frame_bytes(self, layout: TokenLayout) -> int:
        """Rough working memory of the dense path for one view, in bytes."""
        return block_bytes(layout.tokens, self.config.width) + 40 * layout.patches * self.patch**2

    def _dense(self, tokens: Tokens) -> tuple[Tensor, ...]:
        def read(features: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
            return *self.slopes(features, tokens.layout, valid), self.logits(features, tokens.layout, valid)

        return self._by_frames(read, tokens)

    def _by_frames(self, call, tokens: Tokens, *extra: Tensor) -> tuple[Tensor, ...]:
        """call(features [N, T, 2C], valid [N, P] or None, ...) a few views at a time -> results [B, S, ...]."""
        layout = tokens.layout
        inputs = [tokens.layers["frame"], tokens.layers["global"], *extra]
        if layout.valid is not None:
            inputs.append(layout.valid)

        def join(before: Tensor, last: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            valid, rest = (rest[-1], rest[:-1]) if layout.valid is not None else (None, rest)
            return call(torch.cat([before, last], dim=-1), valid, *rest)

        size = self.frames_at_once(self.frame_bytes(layout))
        parts = in_chunks(join, size, *(t.flatten(0, 1) for t in inputs))
        return tuple(t.unflatten(0, inputs[0].shape[:2]) for t in parts)


def precisely(module: nn.Module, x: Tensor, *args) -> Tensor:
    """module(x, ...) in the number type of its own parameters, outside autocast; the result in float32."""
    with full_precision(x):
        return module(x.to(next(module.parameters()).dtype), *args).float()


def scale_translation(pose: Tensor, scale: Tensor) -> Tensor:
    """Poses [B, S, 4, 4] with translations multiplied by scale [B]."""
    return make_pose(pose[..., :3, :3], pose[..., :3, 3] * scale[:, None, None])


def _points(slopes: Tensor, log_z: Tensor) -> Tensor:
    z = log_z.exp()[..., None]
    return torch.cat([slopes * z, z], dim=-1)
