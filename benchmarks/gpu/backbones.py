"""Seconds and peak memory of the big backbones on a GPU, by form and number of views.

    python benchmarks/gpu/backbones.py --out DIR [--models vggt pi3 da3-large] [--views 2 32 128]
                                       [--forms float32 half fp8 sla-fp8 gsa-fp8]
                                       [--size 336 504] [--dtype bfloat16] [--device cuda]

Forms: "float32" is the dense model with float32 weights under autocast to --dtype; "half" the same with the matrices of
encoder and trunk held in --dtype, its memory counted as if all weights were; any other is a plan, its unquantised
matrices held so. Weights are seeded noise (speed does not depend on them). Verified first, at a small size: the fused
attention kernel against the written-out form in float32, --dtype against float32 (20 dB at least); what the other forms
are from float32 is noted. Then for each number of views: one run to warm up, medians of --repeats runs of the whole
model (cameras and depth), and for the dense model the bare scaled_dot_product_attention calls of its global blocks, on
tensors of their shape: the part that a sparse mechanism can save. Memory: weights, and the peak of allocated tensors
besides. `times_faster...` and `times_smaller...` compare with both dense forms of the same run. Writes
DIR/backbones.json after every row, so that a run that is cut short leaves what it has. Runs on a CPU too, at small
sizes, with no figure for memory:

    python benchmarks/gpu/backbones.py --out DIR --models da3-small --views 2 --size 28 42 --device cpu --repeats 1
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "parity"))
from common import hardware
from official import build_ours

import lean3r
from lean3r.attention.dense import Dense
from lean3r.layers.trunk import Trunk
from lean3r.models.base import Backbone
from lean3r.models.execution import hold, weight_bytes
from lean3r.testing import snr_db
from lean3r.types import Prediction, Views

BASELINES = ("float32", "half")
SMALL = (2, 56, 84)
AGREE_DB, HALF_DB = 80.0, 20.0


def run(model: Backbone, images: torch.Tensor, dtype: torch.dtype) -> Prediction:
    """Cameras and depth."""
    cast = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(images.device.type, dtype)
    with torch.inference_mode(), cast:
        return model(Views(images))


def pictures(views: int, height: int, width: int, device: str) -> torch.Tensor:
    """[1, views, 3, height, width], smooth."""
    noise = torch.rand(1, views * 3, 7, 7, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return smooth.unflatten(1, (views, 3)).to(device)


def verify(model: Backbone, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Decibels of depth and cameras: fused against written-out attention, `dtype` against float32."""
    images = pictures(*SMALL, device)
    exact = run(model, images, torch.float32)
    half = run(model, images, dtype)
    mechanisms = [m for m in model.modules() if isinstance(m, Dense)]
    for mechanism in mechanisms:
        mechanism.implementation = "explicit"
    explicit = run(model, images, torch.float32)
    for mechanism in mechanisms:
        mechanism.implementation = "auto"
    assert exact.depth is not None and half.depth is not None and explicit.depth is not None
    found = {
        "fused_against_explicit_depth_db": snr_db(exact.depth.log(), explicit.depth.log()),
        "fused_against_explicit_cameras_db": snr_db(exact.cam_from_world, explicit.cam_from_world),
        "half_against_float32_depth_db": snr_db(half.depth.log(), exact.depth.log()),
        "half_against_float32_cameras_db": snr_db(half.cam_from_world, exact.cam_from_world),
    }
    for name, value in found.items():
        assert value >= (HALF_DB if name.startswith("half") else AGREE_DB), f"{name}: {value:.1f}"
    return {name: round(min(value, 999.0), 1) for name, value in found.items()}


def median_seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """Median wall time after one run to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def dense_attention_seconds(model: Backbone, tokens: int, dtype: torch.dtype, repeats: int, device: str) -> float:
    """scaled_dot_product_attention alone, over `tokens` tokens, once for each global block."""
    trunk = next(m for m in model.modules() if isinstance(m, Trunk))
    block = next(b for b, role in zip(trunk.blocks, trunk.schedule, strict=True) if role == "global")
    heads, width = block.attn.heads, block.attn.proj.in_features  # type: ignore[union-attr]
    shape = (1, heads, tokens, width // heads)  # type: ignore[operator]
    q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    with torch.inference_mode():
        one = median_seconds(lambda: F.scaled_dot_product_attention(q, k, v), repeats, device)
    return one * trunk.schedule.count("global")


def in_form(dense: Backbone, form: str, dtype: torch.dtype) -> Backbone:
    """A model of its own for a form; parameters that nothing changes are shared with the dense one on the CPU."""
    if form == "float32":
        return copy.deepcopy(dense)
    return hold(copy.deepcopy(dense) if form == "half" else lean3r.compress(copy.deepcopy(dense), form), dtype)


def measure(model: Backbone, views: int, options: argparse.Namespace, dtype: torch.dtype, dense: bool) -> dict:
    """One row: seconds, memory, and dense attention alone for dense models; the reason where it does not fit."""
    device, images = options.device, pictures(views, *options.size, options.device)
    row: dict = {"views": views}
    try:
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        row["seconds"] = median_seconds(lambda: run(model, images, dtype), options.repeats, device)
        if device != "cpu":
            row["activations_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        if dense:
            tokens = model.encode(Views(images[:, :1])).layout.tokens * views
            row["tokens"] = tokens
            row["dense_attention_seconds"] = dense_attention_seconds(model, tokens, dtype, options.repeats, device)
            row["dense_attention_share"] = row["dense_attention_seconds"] / row["seconds"]
    except torch.OutOfMemoryError as error:
        row["out_of_memory"] = str(error).splitlines()[0]
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def compare(forms: dict[str, dict]) -> None:
    """Add to every row how many times faster and smaller than the dense forms it is, where both ran."""
    for base in (name for name in BASELINES if name in forms):
        for form in forms.values():
            for row, other in zip(form["rows"], forms[base]["rows"], strict=False):
                if "seconds" in row and "seconds" in other:
                    row[f"times_faster_than_{base}"] = round(other["seconds"] / row["seconds"], 3)
                if "activations_mb" in row and "activations_mb" in other:
                    peaks = (x["activations_mb"] + y["weights_mb"] for x, y in ((other, forms[base]), (row, form)))
                    row[f"times_smaller_than_{base}"] = round(next(peaks) / next(peaks), 3)


def main() -> None:
    """Verify, measure, write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["vggt", "pi3", "da3-large"])
    parser.add_argument("--views", nargs="+", type=int, default=[2, 32, 128])
    parser.add_argument("--forms", nargs="+", default=[*BASELINES, "fp8", "sla-fp8", "gsa-fp8"])
    parser.add_argument("--size", nargs=2, type=int, default=[336, 504], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, options.dtype)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict = {"hardware": hardware(), "size": options.size, "dtype": options.dtype, "models": {}}
    path = options.out / "backbones.json"
    small = pictures(*SMALL, options.device)
    for name in options.models:
        dense = build_ours(name)
        forms: dict[str, dict] = {}
        result["models"][name] = {"forms": forms}
        exact = None
        for form in options.forms:
            model = in_form(dense, form, dtype).to(options.device)
            if exact is None:
                exact = run(model, small, torch.float32) if form == "float32" else None
                result["models"][name]["verified"] = verify(model, options.device, dtype) if exact else "no float32"
                print(name, result["models"][name]["verified"], flush=True)
            weights = 2 * sum(p.numel() for p in model.parameters()) if form == "half" else weight_bytes(model)
            forms[form] = {"weights_mb": round(weights / 1e6), "rows": []}
            if exact is not None and exact.depth is not None:
                depth = run(model, small, dtype).depth
                assert depth is not None
                forms[form]["depth_against_float32_db"] = round(snr_db(depth.log(), exact.depth.log()), 1)
            for views in options.views:
                with torch.inference_mode():
                    row = measure(model, views, options, dtype, form == "float32")
                forms[form]["rows"].append(row)
                compare(forms)
                print(name, form, row, flush=True)
                path.write_text(json.dumps(result, indent=2) + "\n")
            del model
            gc.collect()
    print(path)


if __name__ == "__main__":
    main()
