"""Speed3R's sparse attention on a CPU at the shapes of real backbones: one global layer, then the whole of Pi3.

    python benchmarks/backbone_layer.py [--views 8 16 32 64 128 256] [--model-views 32 64 128] [--out DIR]

16 heads of 64 channels, 192 patches and 5 registers a view: Pi3 on pictures of 224 x 168 pixels, float32. First, in
the same process, correctness, as in attention.py. Then dense attention (torch's scaled_dot_product_attention), `gsa`
as Speed3R defines it, with special="pooled", and with regions=64 besides, by turns: seconds of wall time and of all
cores, medians, and the exponent by which they grow with the views. Writes backbone_layer_cpu.json and, of the whole,
backbone_model_cpu.json; no views, no file.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from attention import Bench, bench_here, build, check, projections
from common import RESULTS, hardware, write_result

from lean3r.compress import compress, presets
from lean3r.models.pi3 import Pi3
from lean3r.types import Views

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {"implementation": "sdpa"}),
    "gsa": ("gsa", {}),
    "gsa, special pooled": ("gsa", {"special": "pooled"}),
    "gsa, pooled, 64 regions": ("gsa", {"special": "pooled", "regions": 64}),
}
AIMS = {"layer": {64: 6.0, 128: 10.0, 256: 16.0}, "model": {32: 1.25, 64: 1.5, 128: 2.1}}
"""Speed-ups over dense attention by views that lean3r aims at."""
AIM_EXPONENT = 1.2  # from 32 views on
LONG_S = 20.0  # runs above are not repeated


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Wall time and time of all cores, in seconds."""
    wall, cores = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cores


def by_turns(runs: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Medians of each; the first turn warms up, unless a run is long."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(6):
        for name, run in runs.items():
            times[name].append(seconds(run))
        if turn == 0 and max(t[0][0] for t in times.values()) > LONG_S:
            break
    kept = {name: t[1:] or t for name, t in times.items()}
    return {
        name: {"wall_s": statistics.median(w for w, _ in t), "cpu_s": statistics.median(c for _, c in t)}
        for name, t in kept.items()
    }


def rows_of(views: int, times: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each network with its speed-up over the dense one, printed."""
    rows: list[dict[str, Any]] = []
    for name, t in times.items():
        speed_up = {f"{kind}_speed_up": times["dense"][f"{kind}_s"] / t[f"{kind}_s"] for kind in ("wall", "cpu")}
        rows.append({"network": name, "views": views, **t, **speed_up})
        print(
            f"{views:4} views {name:24} {t['wall_s']:8.3f} s, {t['cpu_s']:8.3f} s of all cores: "
            f"{speed_up['wall_speed_up']:5.2f} x, {speed_up['cpu_speed_up']:5.2f} x",
            flush=True,
        )
    return rows


def layer(bench: Bench, views: int) -> list[dict[str, Any]]:
    """One global layer, without its linear layers."""
    mechanisms = {name: build(kind, settings, bench) for name, (kind, settings) in LAYERS.items()}
    calls: dict[str, Callable[[], object]] = {}
    for name, mechanism in mechanisms.items():
        layout = bench.layout(views, mechanism)
        calls[name] = partial(mechanism, projections(bench, layout), layout)
    with torch.no_grad():
        return rows_of(views, by_turns(calls))


def models(bench: Bench, counts: list[int]) -> list[dict[str, Any]]:
    """Pi3 at its full size with random weights, and with both plans."""
    torch.manual_seed(0)
    dense = Pi3().eval()
    networks = {"dense": dense}
    for name, (_, settings) in list(LAYERS.items())[1:]:
        networks[name] = compress(dense, presets.gsa(dense_below=0, **settings))
    rows: list[dict[str, Any]] = []
    for views in counts:
        pictures = Views(torch.rand(1, views, 3, bench.rows * dense.patch, bench.cols * dense.patch))
        with torch.inference_mode():
            rows += rows_of(views, by_turns({name: partial(model, pictures) for name, model in networks.items()}))
    return rows


def exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Growth of CPU seconds with the views, from 32 on: the slope between the shortest and the longest."""
    slopes: dict[str, float] = {}
    for name in LAYERS:
        line = [(r["views"], r["cpu_s"]) for r in rows if r["network"] == name and r["views"] >= 32]
        for (first, a), (last, b) in pairwise([line[0], line[-1]] if len(line) > 1 else []):
            slopes[name] = math.log(b / a) / math.log(last / first)
    return slopes


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="*", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--model-views", type=int, nargs="*", default=[32, 64, 128])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files that are written")
    options = parser.parse_args()
    shape: dict[str, Any] = {"heads": 16, "head_dim": 64, "special": 5, "rows": 12, "cols": 16}
    bench = replace(bench_here(options.views, LONG_S), **shape, device=torch.device("cpu"), dtype=torch.float32)
    method = f"by turns, medians of five after one; above {LONG_S:.0f} s one run; speed-ups over dense attention"
    about = {"hardware": hardware(), "shape": shape, "method": method, "relative_rms": check(bench, ["gsa"])}
    if options.views:
        print("one global layer")
        rows = [row for views in options.views for row in layer(bench, views)]
        slopes = exponents(rows)
        print(*(f"{name}: exponent {slope:.2f}" for name, slope in slopes.items()), sep="\n")
        aims = {"aims": AIMS["layer"], "aim_exponent": AIM_EXPONENT}
        print(write_result("backbone_layer_cpu", about | {"layer": rows, "exponents": slopes} | aims, options.out))
    if options.model_views:
        print("Pi3")
        rows = models(bench, options.model_views)
        print(write_result("backbone_model_cpu", about | {"pi3": rows, "aims": AIMS["model"]}, options.out))


if __name__ == "__main__":
    main()
