"""Depth Anything 3, the any-view models: a plain vision transformer whose later blocks look across views.

Source: Lin et al. 2025, "Depth Anything 3: Recovering the visual space from any views". Accepts the official
checkpoints of the small, base, large and giant sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lean3r.errors import UsageError
from lean3r.geometry.pose import invert_pose, make_pose
from lean3r.geometry.pose_encoding import decode_intrinsics, decode_pose
from lean3r.group import of_all
from lean3r.heads import dense, view_camera
from lean3r.heads.dense import DptHead, DualDptHead, aspect_of, frame_bytes
from lean3r.heads.view_camera import CameraDecoder, CameraEncoder, normalise_cameras
from lean3r.layers.embed import imagenet
from lean3r.layers.reference import choose_reference
from lean3r.layers.trunk import Role, Trunk
from lean3r.layers.vit import VisionTransformer
from lean3r.models.base import Backbone, block_bytes, check_views, full_precision, in_chunks, patch_mask
from lean3r.models.keymap import KeyMap, number_blocks
from lean3r.types import Prediction, TokenLayout, Tokens, Views

GAUSSIAN_NUMBERS = 38
MIN_TANGENT = 1e-6


@dataclass(frozen=True)
class Da3Config:
    """Sizes of an any-view model.

    Blocks before `alternate` see one view each; from `alternate` on, odd blocks see all views. `keep` are the
    indices of the blocks that the heads read.
    """

    width: int
    depth: int
    heads: int
    alternate: int
    keep: tuple[int, int, int, int]
    features: int = 256
    channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    mlp: Literal["gelu", "swiglu"] = "gelu"
    grid: int = 37
    gaussians: bool = False


class Da3(Backbone):
    """Cameras, depth and rays of any number of views; reads known cameras: the large size.

    Sides are multiples of 14 pixels.
    """

    name = "da3-large"
    licence = "CC-BY-NC-4.0"
    patch = 14
    resolution = 504
    BFLOAT16 = True
    ACCEPTS: ClassVar = frozenset({"intrinsics", "cam_from_world"})
    ACCEPTS_WHOLE: ClassVar = True
    REFERENCE: ClassVar = {"reference": "first"}
    TELLTALE: ClassVar = ("model.head.norm.bias", (2048,))

    SIZES: ClassVar = {
        "da3-small": Da3Config(384, 12, 6, 4, (5, 7, 9, 11), 64, (48, 96, 192, 384)),
        "da3-base": Da3Config(768, 12, 12, 4, (5, 7, 9, 11), 128, (96, 192, 384, 768)),
        "da3-large": Da3Config(1024, 24, 16, 8, (11, 15, 19, 23)),
        "da3-giant": Da3Config(1536, 40, 24, 13, (19, 27, 33, 39), mlp="swiglu", gaussians=True),
    }
    SMALLEST: ClassVar = Da3Config(
        width=64, depth=6, heads=4, alternate=2, keep=(2, 3, 4, 5), features=16, channels=(8, 8, 8, 8), grid=4
    )

    def __init__(self, config: Da3Config | None = None):
        super().__init__()
        config = config or self.SIZES[self.name]
        self.config = config
        dim, start = config.width, config.alternate
        self.encoder = VisionTransformer(
            dim,
            start,
            config.heads,
            grid=config.grid,
            registers=0,
            resize="offset",
            mlp=config.mlp,
            norm_eps=1e-5,
        )
        schedule: list[Role] = ["global" if index % 2 else "frame" for index in range(start, config.depth)]
        self.trunk = Trunk(
            schedule, dim, config.heads, layer_scale=1.0, mlp=config.mlp, roles={"global": {"rope": "flat"}}
        )
        self.camera_token = nn.Parameter(torch.zeros(1, 2, dim))
        self.camera_decoder = CameraDecoder(2 * dim)
        self.camera_encoder = CameraEncoder(dim)
        features, channels = config.features, config.channels
        self.head = DualDptHead(2 * dim, (2,), features=features, channels=channels)
        self.gaussian_head = None
        if config.gaussians:
            self.gaussian_head = DptHead(
                2 * dim, (GAUSSIAN_NUMBERS,), norm=False, guide=True, features=features, channels=channels
            )
        self.KEY_MAP = key_map(config).under("model.", "")

    def encode(self, views: Views, *, reference: str = "saddle_balanced", normalise: bool = True) -> Tokens:
        """See Backbone.encode. `reference` chooses the reference view (layers/reference.py).

        If poses and intrinsics are known for all views, the first view is the reference; other known parts are not
        read. `normalise` brings the poses to the frame that the network was trained on
        (heads/view_camera.normalise_cameras). Layers: "block{i}" [B, S, T, C], and "reference" [B, S, 1, 1], which is 1
        for the reference view.
        """
        check_views(views, self.patch)
        images = imagenet(views.images)
        batch, count, _, height, width = images.shape
        start = self.config.alternate
        share, size = views.share, (height // self.patch, width // self.patch)
        layout = TokenLayout(count, 1, *size, patch_mask(views, self.patch), share=share)

        def look(some: Tensor) -> tuple[Tensor, Tensor]:
            kept = self.encoder.layers(some, (start - 2, start - 1))
            return kept[start - 1], kept[start - 2][:, 0]

        size = self.frames_at_once(block_bytes(layout.tokens, self.config.width))
        x, classes = (t.unflatten(0, (batch, count)) for t in in_chunks(look, size, images.flatten(0, 1)))
        known = known_cameras(views)
        chosen = choose_reference(of_all(share, classes), reference if known is None else "first")
        # Only the camera token marks the reference view: attention ignores the order of views.
        numbers = torch.arange(count, device=x.device) + (0 if share is None else share.first)
        is_reference = numbers == chosen[:, None]
        if known is None:
            cameras = torch.where(is_reference[..., None], self.camera_token[:, :1], self.camera_token[:, 1:])
        else:
            pose, intrinsics = known
            with full_precision(images):
                pose = of_all(share, pose)
                pose = normalise_cameras(pose)[0] if normalise else pose
                cameras = self.camera_encoder(pose, of_all(share, intrinsics), height, width)
                cameras = cameras if share is None else share.own(cameras)
        x[:, :, 0] = cameras.to(x.dtype)
        heads_read = {block for pair in self.pairs for block in pair}
        _, kept = self.trunk(x, layout, keep=[block - start for block in heads_read])
        layers = {f"block{block}": kept[block - start] for block in heads_read if block >= start}
        if start - 1 in heads_read:
            layers[f"block{start - 1}"] = x
        layers["reference"] = is_reference[..., None, None].to(x.dtype)
        return Tokens(layers, layout, views)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """For each block that the heads read: (the latest per-view block, the block itself)."""
        return [(block - block % 2, block) for block in self.config.keep]

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """See Backbone.decode. The scale is unknown; with known poses, scale and world are those of the poses."""
        pose, intrinsics = self.cameras(self.pose_encoding(tokens), tokens)
        depth, conf = self.depth_maps(tokens) if dense else (None, None)
        known = known_cameras(tokens.views)
        if known is not None:
            given = of_all(tokens.views.share, known[0])
            with full_precision(pose):
                _, unit = normalise_cameras(given)
                pose = make_pose(pose[..., :3, :3], pose[..., :3, 3] * unit[:, None, None]) @ given[:, :1]
            depth = None if depth is None else depth * unit[:, None, None, None]
        return Prediction(pose, intrinsics, depth, conf)

    def outputs(self, tokens: Tokens) -> dict[str, Tensor]:
        """All outputs of the official network, under their official names and in its own frame."""
        encoding = self.pose_encoding(tokens)
        cam_from_world, intrinsics = self.cameras(encoding, tokens)
        depth, conf = self.depth_maps(tokens)
        rays, ray_conf = self.rays(tokens)
        return {
            "depth": depth,
            "depth_conf": conf,
            "ray": rays,
            "ray_conf": ray_conf,
            "pose_enc": encoding,
            "extrinsics": cam_from_world[..., :3, :],
            "intrinsics": intrinsics,
        }

    def pose_encoding(self, tokens: Tokens) -> Tensor:
        """World-from-camera encodings [B, S, 9] (geometry/pose_encoding.py)."""
        token = torch.cat([tokens.layers[f"block{block}"][:, :, 0] for block in self.pairs[-1]], dim=-1)
        with full_precision(token):
            return self.camera_decoder(token.float())

    def cameras(self, encoding: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """cam_from_world [B, S, 4, 4] and intrinsics [B, S, 3, 3] of encodings [B, S, 9]."""
        height, width = tokens.views.images.shape[-2:]
        with full_precision(encoding):
            return invert_pose(decode_pose(encoding)), decode_intrinsics(encoding, height, width, MIN_TANGENT)

    def depth_maps(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """z-depth and confidence, both [B, S, H, W]."""

        def read(levels: list[Tensor], image: Tensor) -> tuple[Tensor, ...]:
            (raw,) = self.head(levels, tokens.layout.rows, tokens.layout.cols, *image.shape[-2:])
            return raw[:, 0].exp(), 1 + raw[:, 1].exp()

        depth, conf = self._dense(read, tokens)
        return depth, conf

    def rays(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Ray directions and origins in the world [B, S, 8 rows, 8 cols, 6], and confidence [B, S, 8 rows, 8 cols]."""

        def read(levels: list[Tensor], image: Tensor) -> tuple[Tensor, ...]:
            aspect = aspect_of(image.shape[-1], image.shape[-2])
            raw = self.head.rays(levels, tokens.layout.rows, tokens.layout.cols, aspect)
            return raw[:, :6].movedim(1, -1), 1 + raw[:, 6].exp()

        rays, conf = self._dense(read, tokens)
        return rays, conf

    def gaussians(self, tokens: Tokens) -> Tensor:
        """Raw parameters of one Gaussian per pixel [B, S, 38, H, W]; the last one is its opacity in 0..1."""
        head = self.gaussian_head
        if head is None:
            raise UsageError(f"{self.name} has no Gaussian head; use da3-giant.")

        def read(levels: list[Tensor], image: Tensor) -> tuple[Tensor, ...]:
            height, width = image.shape[-2:]
            (raw,) = head(levels, tokens.layout.rows, tokens.layout.cols, height, width, imagenet(image))
            return (torch.cat([raw[:, :-1], raw[:, -1:].sigmoid()], dim=1),)

        return self._dense(read, tokens)[0]

    def level(self, local: Tensor, here: Tensor) -> Tensor:
        """Two block outputs [N, T, C] -> input of a dense head [N, P, 2C], the second half normalised."""
        return torch.cat([local[:, 1:], self.encoder.norm(here[:, 1:])], dim=-1).float()

    def _dense(self, read: Callable[[list[Tensor], Tensor], tuple[Tensor, ...]], tokens: Tokens) -> tuple[Tensor, ...]:
        """read(four levels [N, P, 2C], pictures [N, 3, H, W]) a few views at a time -> results [B, S, ...]."""
        images = tokens.views.images
        layers = [tokens.layers[f"block{block}"].flatten(0, 1) for pair in self.pairs for block in pair]

        def some(image: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
            return read([self.level(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)], image)

        with full_precision(images):
            size = self.frames_at_once(frame_bytes(self.head, *images.shape[-2:]))
            maps = in_chunks(some, size, images.flatten(0, 1), *layers)
        return tuple(t.unflatten(0, images.shape[:2]) for t in maps)


class Da3Small(Da3):
    """Cameras, depth and rays of any number of views; reads known cameras: the small size."""

    name = "da3-small"
    licence = "Apache-2.0"
    TELLTALE: ClassVar = ("model.head.norm.bias", (768,))


class Da3Base(Da3):
    """Cameras, depth and rays of any number of views; reads known cameras: the base size."""

    name = "da3-base"
    licence = "Apache-2.0"
    TELLTALE: ClassVar = ("model.head.norm.bias", (1536,))


class Da3Giant(Da3):
    """Cameras, depth, rays and Gaussians of any number of views; reads known cameras: the giant size."""

    name = "da3-giant"
    TELLTALE: ClassVar = ("model.head.norm.bias", (3072,))


def known_cameras(views: Views) -> tuple[Tensor, Tensor] | None:
    """cam_from_world [B, S, 4, 4] and intrinsics [B, S, 3, 3] if both are known for all views, else None."""
    known = views.known
    if known is None or known.cam_from_world is None or known.intrinsics is None:
        return None
    partial = [has for has in (known.has_pose, known.has_intrinsics) if has is not None and not bool(has.all())]
    return None if partial else (known.cam_from_world.float(), known.intrinsics.float())


def key_map(config: Da3Config) -> KeyMap:
    """Names in the official network <-> ours; checkpoints put "model." before them."""
    start, blocks = config.alternate, "backbone.pretrained.blocks.{}."
    own = KeyMap(
        (
            ("backbone.pretrained.", "encoder."),
            ("backbone.pretrained.camera_token", "camera_token"),
            *number_blocks(blocks, "encoder.blocks.{}.", [(i, i) for i in range(start)]),
            *number_blocks(blocks, "trunk.blocks.{}.", [(i, i - start) for i in range(start, config.depth)]),
            *view_camera.KEYS,
        ),
        tied=tuple(
            tuple(f"head.scratch.output_conv2_aux.{level}.2.{part}" for level in range(4))
            for part in ("weight", "bias")
        ),
    )
    heads = KeyMap(dense.KEYS)
    return own + heads.under("head.", "head.") + heads.under("gs_head.", "gaussian_head.")
