"""Sparse attention in a third-party network: an adapter says where q, k, v and the layout are.

The network is a plain nn.TransformerEncoder over the patches of two pictures. `FusedQkv` in lean3r.compress.foreign
does the same for timm and DINOv2 (Depth Anything 3 included); any class with the four methods below will do.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import lean3r
from lean3r.attention.base import Projected, recording
from lean3r.compress.foreign import MultiHead
from lean3r.compress.targets import Site
from lean3r.types import TokenLayout

ROWS, COLS, VIEWS = 9, 14, 2

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/07"))
parser.add_argument("--weights", type=Path, help="not used here")


class Written:
    """A hand-written adapter for a custom attention layer: where the layers are, and how they are called."""

    def sites(self, model: nn.Module) -> list[Site]:
        """Attention layers in order: path, role, width, heads."""
        return [Site(f"blocks.{i}", "global", 48, 4) for i in range(2)]

    def layout(self, x: Tensor) -> TokenLayout:
        """One view, from the input of the network."""
        return TokenLayout(views=1, special=0, rows=ROWS, cols=COLS)

    def project(self, attention: "OwnAttention", x: Tensor) -> Projected:
        """q, k, v [B, heads, N, channels], and the transform of q and k before their product: the identity here."""
        q, k, v = (part(x).unflatten(-1, (4, 12)).transpose(1, 2) for part in (attention.q, attention.k, attention.v))
        return Projected(x, q, k, v, lambda q, k, positions=None: (q, k))

    def output(self, attention: "OwnAttention", mixed: Tensor, x: Tensor) -> Tensor:
        """The output of the layer, from the mixed values."""
        return mixed.transpose(1, 2).flatten(2)


class OwnAttention(nn.Module):
    """An attention layer that lean3r has never seen."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        q, k, v = (part(x).unflatten(-1, (4, 12)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class OwnNetwork(nn.Module):
    """Two such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OwnAttention() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        for block in self.blocks:
            x = x + block(x)
        return x


def main() -> None:
    """Convert both, check that dense changes nothing, then attend to only 4 windows of 4 x 4 patches."""
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(1, VIEWS * ROWS * COLS, 48)
    few = {"target": "global blocks", "mechanism": "gsa", "settings": {"top_k": 4, "gate": "none"}}
    multi_head = MultiHead(lambda x: TokenLayout(1, 0, ROWS, COLS))
    for name, network, adapter in (("encoder", encoder, multi_head), ("own", OwnNetwork().eval(), Written())):
        same = lean3r.compress(network, "dense", adapter=adapter)
        fast = lean3r.compress(network, {"steps": [few]}, adapter=adapter)
        with torch.inference_mode(), recording() as log:
            error = (same(x) - network(x)).abs().max().item()
            change = (fast(x) - network(x)).abs().mean().item()
        density = log[-1].density or 1.0
        print(f"{name:8} dense {error:.1e} off, gsa {change:.3f} off at {100 * density:.0f} % of the pairs")
        torch.save(fast.state_dict(), options.out / f"{name}.pt")


if __name__ == "__main__":
    main()
