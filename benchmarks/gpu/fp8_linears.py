"""Are linear layers in E4M3 faster than in bfloat16, and what of it do quantisation and product take?

    python benchmarks/gpu/fp8_linears.py --out DIR [--device cuda] [--views 32 2 8 128]

The four linear layers of a block of width 1,024 and its whole feed-forward part, 869 tokens a view: bfloat16, the
layer that plan "fp8" puts in its place, quantisation of the input alone and the product of codes alone; decibels of
the layer against float32. On a CPU everything is tiny.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from roofline import H200, linear_flops
from rows import Rows, measure
from torch import Tensor, nn

import lean3r
from lean3r.layers.linear import Linear
from lean3r.layers.mlp import Mlp
from lean3r.ops.fp8 import choose_product, lay_out, quantize_rows, rows_of, scaled_product
from lean3r.testing import snr_db

PLAN = {"steps": [{"quantize": "fp8", "target": "every linear"}]}
TOKENS = 869


def main() -> None:
    """A row for each layer and number of views."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--views", type=int, nargs="+", default=[32, 2, 8, 128])
    options = parser.parse_args()
    rows = Rows(options.out, "fp8_linears", options.device)
    cuda = options.device == "cuda"
    width, views = (1024, options.views) if cuda else (32, options.views[:1])
    layers: dict[str, Callable[[], nn.Module]] = {
        "qkv": lambda: Linear(width, 3 * width),
        "projection": lambda: Linear(width, width),
        "into the feed-forward part": lambda: Linear(width, 4 * width),
        "out of the feed-forward part": lambda: Linear(4 * width, width),
        "feed-forward part": lambda: Mlp(width, 4 * width),
    }
    for count in views:
        for name, make in layers.items():
            tokens = count * TOKENS if cuda else count
            rows.take(f"{count} views, {name}", lambda m=make, t=tokens: measure_layer(m, t, options.device))


def measure_layer(make: Callable[[], nn.Module], tokens: int, device: str) -> dict:
    """Milliseconds of the forms of a layer, speed-up, decibels, and the rooflines."""
    torch.manual_seed(0)
    with torch.inference_mode():
        exact = nn.Sequential(make()).eval().to(device)
        linears = [layer for layer in exact.modules() if type(layer) is Linear]
        x = torch.randn(1, tokens, linears[0].in_features, device=device)
        wanted, coarse = exact(x[:, :4096]), lean3r.compress(exact, PLAN).to(device, torch.bfloat16)
        half, x = exact.to(torch.bfloat16), x.to(torch.bfloat16)
        found = {
            "bf16": measure(lambda: half(x), device),
            "fp8": measure(lambda: coarse(x), device),
            "quantisation": measure(lambda: rows_of(x), device),
        }
        if len(linears) == 1 and choose_product("auto", x.device) == "scaled_mm":
            found["product"] = measure(product_alone(x, half[0].weight), device)
        db = snr_db(coarse(x[:, :4096]).float(), wanted)
    flops = sum(linear_flops(tokens, layer.in_features, layer.out_features) for layer in linears)
    return {
        **{f"{name}_{key}": value for name, row in found.items() for key, value in row.items()},
        "fp8_times_faster": round(found["bf16"]["ms"] / found["fp8"]["ms"], 3),
        "fp8_db": round(db, 1),
        "tflop": round(flops / 1e12, 4),
        "roofline_bf16_ms": round(1e3 * flops / H200.bf16, 4),
        "roofline_fp8_ms": round(1e3 * flops / H200.fp8, 4),
    }


def product_alone(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """The product of codes that are there already."""
    rows, laid_out = rows_of(x), lay_out(*quantize_rows(weight))
    return lambda: scaled_product(rows, laid_out, None, torch.bfloat16)


if __name__ == "__main__":
    main()
