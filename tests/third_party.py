"""Networks as others write them, with adapters: many views with pairs of blocks, transformers' ViT, the official Depth
Anything 3 at a tiny size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.attention.base import Projected
from lean3r.compress.adapters import SeparateQkv, depth_anything_3
from lean3r.compress.foreign import ForeignAttention
from lean3r.compress.targets import Site
from lean3r.types import TokenLayout

DIM, HEADS, PATCH = 32, 2, 8


class LookAttention(nn.Module):
    """One linear layer for queries, one for keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.pair, self.back = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = (self.query(x), *self.pair(x).chunk(2, -1))
        return tuple(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.scaled_dot_product_attention(*self.split(x)).transpose(1, 2).flatten(2))


class Pair(nn.Module):
    """First within views, then across them."""

    def __init__(self) -> None:
        super().__init__()
        self.within, self.across = LookAttention(), LookAttention()
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        batch, views = x.shape[:2]
        x = x + self.within(self.norms[0](x).flatten(0, 1)).unflatten(0, (batch, views))
        x = x + self.across(self.norms[1](x).flatten(1, 2)).unflatten(1, (views, -1))
        return x + self.mlp(self.norms[2](x))


class ManyViews(nn.Module):
    """Pictures [B, S, 3, H, W] -> depth [B, S, H, W] and a camera of 16 numbers each."""

    def __init__(self, pairs: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.camera_token = nn.Parameter(torch.randn(1, 1, 1, DIM))
        self.pairs = nn.ModuleList(Pair() for _ in range(pairs))
        self.depth, self.camera = nn.Linear(DIM, PATCH * PATCH), nn.Linear(DIM, 16)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        batch, views, _, height, width = images.shape
        x = self.patches(images.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (batch, views))
        x = torch.cat([self.camera_token.expand(batch, views, 1, DIM), x], 2)
        for pair in self.pairs:
            x = pair(x)
        grid = self.depth(x[:, :, 1:]).flatten(0, 1).transpose(1, 2)
        depth = F.fold(grid, (height, width), PATCH, stride=PATCH)
        return {"depth": depth.view(batch, views, height, width), "camera": self.camera(x[:, :, 0])}


def grid(images: Tensor) -> TokenLayout:
    """The patches of a picture and one special token, from pictures [..., 3, H, W]."""
    return TokenLayout(1, 1, images.shape[-2] // PATCH, images.shape[-1] // PATCH)


@dataclass(frozen=True)
class Pairs:
    """The adapter for ManyViews, written by hand."""

    def sites(self, model: nn.Module) -> list[Site]:
        looks = [name for name, module in model.named_modules() if isinstance(module, LookAttention)]
        return [Site(name, "frame" if name.endswith("within") else "global", DIM, HEADS) for name in looks]

    def layout(self, images: Tensor) -> TokenLayout:
        return grid(images)

    def project(self, attention: LookAttention, x: Tensor) -> Projected:
        return Projected(x, *attention.split(x), lambda q, k, positions=None: (q, k))

    def output(self, attention: LookAttention, mixed: Tensor, x: Tensor) -> Tensor:
        return attention.back(mixed.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Case:
    """A network, its adapter, an input, the number of its attention layers by role, and the prefixes of its blocks."""

    network: nn.Module
    adapter: ForeignAttention
    images: Tensor
    roles: dict[str, int]
    blocks: tuple[str, ...]

    def run(self, network: nn.Module) -> Tensor:
        """Its main output."""
        output: Any = network(self.images)
        return output["depth"] if "depth" in output else output["last_hidden_state"]


def by_hand() -> Case:
    """ManyViews."""
    return Case(ManyViews().eval(), Pairs(), torch.rand(1, 3, 3, 40, 48), {"frame": 2, "global": 2}, ("pairs.",))


def vit() -> Case:
    """transformers' ViT: every picture for itself."""
    transformers = pytest.importorskip("transformers", reason="transformers comes with peft, of the extra 'train'")
    config = transformers.ViTConfig(
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=64,
        image_size=48,
        patch_size=8,
    )
    return Case(
        transformers.ViTModel(config).eval(), SeparateQkv(grid), torch.rand(2, 3, 48, 48), {"global": 2}, ("layers.",)
    )


def official_da3() -> Case:
    """The official network of the package depth-anything-3, tiny."""
    net = pytest.importorskip(
        "depth_anything_3.model.da3",
        reason="the official network is not installed: pip install --no-deps depth-anything-3, and what it imports",
    )
    from depth_anything_3.model.cam_dec import CameraDec  # type: ignore[import-not-found]
    from depth_anything_3.model.cam_enc import CameraEnc  # type: ignore[import-not-found]
    from depth_anything_3.model.dinov2.vision_transformer import (  # type: ignore[import-not-found]
        DinoVisionTransformer,
    )
    from depth_anything_3.model.dualdpt import DualDPT  # type: ignore[import-not-found]

    class Backbone(nn.Module):
        """As DinoV2 there, whose sizes are fixed."""

        def __init__(self) -> None:
            super().__init__()
            options = {"alt_start": 4, "rope_start": 4, "qknorm_start": 4, "cat_token": True, "img_size": 56}
            self.pretrained = DinoVisionTransformer(
                patch_size=14, embed_dim=64, depth=8, num_heads=4, ffn_layer="mlp", **options
            )

        def forward(self, x: Tensor, **named: object) -> object:
            return self.pretrained.get_intermediate_layers(x, [4, 5, 6, 7], **named)

    head = DualDPT(dim_in=128, output_dim=2, features=32, out_channels=[16, 16, 32, 32])
    cameras = {"cam_dec": CameraDec(dim_in=128), "cam_enc": CameraEnc(dim_out=64, num_heads=4, trunk_depth=1)}
    network = net.DepthAnything3Net(Backbone(), head, **cameras).eval()
    for parameter in network.backbone.parameters():
        nn.init.normal_(parameter, std=0.1)
    roles = {"encoder": 4, "frame": 2, "global": 2}
    return Case(
        network, depth_anything_3(network), torch.rand(1, 4, 3, 70, 56), roles, ("backbone.pretrained.blocks.",)
    )


CASES = {"by hand": by_hand, "transformers": vit, "depth-anything-3": official_da3}
