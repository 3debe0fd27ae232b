"""A sparse FP8 student of a hand-written network of many views: prepare, distil, save, load again.

Example 07 shows an adapter alone; docs/how-to/third-party.md does the same for transformers' ViT and the official
Depth Anything 3, whose adapters are ready.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lean3r
from lean3r.attention.base import Projected, recording
from lean3r.compress import convert, prepare
from lean3r.compress.targets import Site
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train import NetworkRecipe, distill
from lean3r.types import TokenLayout

DIM, HEADS, PATCH = 64, 4, 8
PLAN = {
    "name": "few windows, fp8",
    "steps": [
        {"target": "global blocks", "mechanism": "gsa", "settings": {"top_k": 2}},
        {"quantize": "fp8", "target": "every block"},
    ],
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/10"))
parser.add_argument("--weights", type=Path, help="not used here")
parser.add_argument("--steps", type=int, default=40)


class Attention(nn.Module):
    """Queries, keys and values from one linear layer, heads last."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.result = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, N, C] -> q, k, v, each [B, heads, N, channels]."""
        return self.inputs(x).unflatten(-1, (HEADS, -1, 3)).transpose(1, 2).unbind(-1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        return self.result(F.scaled_dot_product_attention(*self.split(x)).transpose(1, 2).flatten(2))


class Network(nn.Module):
    """Pictures [B, S, 3, H, W] -> a number for every patch: blocks in turn within one view and across all views."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, DIM, PATCH, PATCH), nn.Linear(DIM, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attention": Attention(), "mlp": nn.Sequential(nn.Linear(DIM, DIM), nn.GELU())})
            for _ in range(4)
        )

    def forward(self, images: Tensor) -> Tensor:
        """[B, S, 3, H, W] -> [B, S, patches]."""
        batch, views = images.shape[:2]
        x = self.patches(6 * images.flatten(0, 1) - 3).flatten(2).transpose(1, 2)
        for index, block in enumerate(self.blocks):
            x = x.reshape(batch, -1, DIM) if index % 2 else x.reshape(batch * views, -1, DIM)
            x = x + block["attention"](x)  # type: ignore[index]  # a ModuleDict
            x = x + block["mlp"](x)  # type: ignore[index]
        return self.head(x).reshape(batch, views, -1)


class Adapter:
    """Where the attention of Network is, and what looks across views."""

    def sites(self, model: nn.Module) -> list[Site]:
        """Attention layers in order: path, role, width, heads."""
        return [Site(f"blocks.{i}.attention", "global" if i % 2 else "frame", DIM, HEADS) for i in range(4)]

    def layout(self, images: Tensor) -> TokenLayout:
        """One view, from the input of the network."""
        return TokenLayout(views=1, special=0, rows=images.shape[-2] // PATCH, cols=images.shape[-1] // PATCH)

    def project(self, attention: Attention, x: Tensor) -> Projected:
        """q, k, v, and the transform of q and k before their product: none here."""
        return Projected(x, *attention.split(x), lambda q, k, positions=None: (q, k))

    def output(self, attention: Attention, mixed: Tensor, x: Tensor) -> Tensor:
        """The output of the layer, from the mixed values."""
        return attention.result(mixed.transpose(1, 2).flatten(2))


def main() -> None:
    """Print the error of the student before and after training, and of the file."""
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    teacher, adapter, world = Network().eval(), Adapter(), SyntheticWorld(seed=3, tiles=32, tile_size=32)

    def pictures(number: int) -> Tensor:
        return world.batch(number, 1, views=4, height=96, width=128).images

    student = prepare(teacher, PLAN, adapter=adapter)
    recipe = NetworkRecipe(steps=options.steps, lr=1e-3, train=("mechanisms", "global blocks"))
    trained = distill(teacher, student, adapter, pictures, recipe, out=options.out / "run")
    path = lean3r.save(convert(trained), options.out / "student.safetensors", overwrite=True)
    loaded = lean3r.load_into(Network(), path, adapter=adapter)
    images = torch.cat([pictures(number) for number in range(10_000, 10_008)])  # held out
    with torch.inference_mode(), recording() as log:
        dense = teacher(images)
        for name, network in (("before", student), ("trained", trained), ("loaded", loaded)):
            print(f"{name:8} {100 * ((network(images) - dense).std() / dense.std()).item():.1f} % off")
    print(f"{100 * (log[-1].density or 1):.0f} % of the pairs, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
