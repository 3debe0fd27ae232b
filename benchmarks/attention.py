"""Is sparse attention faster, and by how much? Every mechanism of the table against dense attention.

    python benchmarks/attention.py [--views 8 16 ...] [--only gsa sla] [--limit 45] [--name attention_cpu] [--out DIR]

First, in the same process, correctness: with nothing left out a mechanism must equal dense attention, and
implementation="auto" must equal the reference, gradients included. Then one global layer by the number of
views, forward and backward, against torch's scaled_dot_product_attention: seconds (medians), peak memory, counted
operations, and the share of the roofline that the peaks measured in this run allow; for gsa also the seconds of
selecting windows and of block-sparse attention. Then whole models, with the plan "gsa" and without. Runs on
a CPU or a GPU; writes NAME.json and NAME.png into benchmarks/results or DIR. Exit code 1 if a level is missed.
"""

from __future__ import annotations

import argparse
import inspect
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, capture, hardware, write_result
from measure import clock, inside, observed, once
from torch import Tensor, nn

from lean3r.attention import ATTENTION, coarse_fine
from lean3r.attention.base import Mechanism, Projected
from lean3r.attention.dense import Dense
from lean3r.bench.machine import peaks
from lean3r.compress import compress
from lean3r.errors import KernelError
from lean3r.layers.attention import SelfAttention
from lean3r.models.base import Backbone
from lean3r.models.nano import Nano
from lean3r.models.pi3 import Pi3
from lean3r.models.vggt import Vggt, VggtConfig
from lean3r.testing import assert_rms, rms_ratio
from lean3r.types import TokenLayout, Views

NOTHING_LEFT_OUT: dict[str, dict[str, Any]] = {
    "gsa": {"top_k": 512, "gate": "none"},
    "sla": {"mode": "block", "keep": 1.0, "init_std": 0.0},
    "thu-sla": {"keep": 1.0},
    "block_sparse": {"sparsity": 0.0},
    "merge": {"ratio": 0.0, "protect": 0.0},
    "kv_prune": {"frames": "auto", "query_merge": "auto", "mean": "one"},
    "frame_subset": {"frames": 25},
}
SETTINGS: dict[str, dict[str, Any]] = {"sla": {"mode": "block"}}
"""Settings other than a mechanism's own."""
LEVELS = {
    "cpu": {"layer": {128: 6.0, 256: 10.0}, "model": {128: 2.5}},
    "cuda": {"layer": {1024: 30.0}, "model": {32: 1.5, 128: 4.0, 512: 10.0, 1024: 20.0}},
}
"""Least speed-up by views: of a layer of gsa forward, and of the best of the whole models."""
SELECTION = {1024: 1 / 3}  # most of a layer's forward time on a GPU that choosing windows may take, by views
SLOWER = 1.05  # no whole model may take more than this share of the dense one's time


@dataclass(frozen=True)
class Bench:
    """What is measured where: a layer of `heads` heads of `head_dim` channels over views of layout tokens."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    head_dim: int
    special: int
    rows: int
    cols: int
    views: tuple[int, ...]
    limit_s: float
    limit_bytes: float

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def layout(self, views: int, mechanism: nn.Module) -> TokenLayout:
        """In the order that the trunk would give to this mechanism."""
        return TokenLayout(views, self.special, self.rows, self.cols, window=getattr(mechanism, "window", None))


def bench_here(views: list[int] | None, limit_s: float) -> Bench:
    """nano's global layer at 401 tokens a view on a CPU; Pi3's at 864 tokens on a GPU."""
    if torch.cuda.is_available():
        chosen = tuple(views or (8, 16, 32, 64, 128, 256, 512, 1024))
        memory = 0.7 * torch.cuda.get_device_properties(0).total_memory
        return Bench(torch.device("cuda"), torch.bfloat16, 16, 64, 0, 24, 36, chosen, limit_s, memory)
    chosen = tuple(views or (8, 16, 32, 64, 128, 256))
    return Bench(torch.device("cpu"), torch.float32, 4, 32, 1, 20, 20, chosen, limit_s, 4 * 2**30)


def build(name: str, settings: dict[str, Any], bench: Bench) -> Mechanism:
    """A row of ATTENTION for this layer."""
    kind = ATTENTION.get(name)
    sizes = {"dim": bench.dim, "heads": bench.heads}
    taken = {k: v for k, v in sizes.items() if k in inspect.signature(kind).parameters}
    torch.manual_seed(0)
    return kind(**taken, **settings).to(bench.device, bench.dtype)


def projections(bench: Bench, layout: TokenLayout, dtype: torch.dtype | None = None) -> Projected:
    """One call's projections as a global block makes them, from random input."""
    torch.manual_seed(1)
    layer = SelfAttention(bench.dim, bench.heads).to(bench.device, dtype or bench.dtype)
    # Neighbouring patches resemble one another, as in pictures: lists of random ones would all be different.
    base = torch.randn(1, layout.views, 1, bench.dim) + torch.randn(1, 1, layout.tokens, bench.dim)
    x = (base + torch.randn(1, layout.views, layout.tokens, bench.dim)).flatten(1, 2)
    return capture(layer, x.to(bench.device, dtype or bench.dtype), layout)


def leaves(p: Projected) -> tuple[Projected, list[Tensor]]:
    """The same projections, gradients recorded."""
    found = [t.detach().requires_grad_() for t in (p.q, p.k, p.v)]
    return replace(p, q=found[0], k=found[1], v=found[2]), found


def gradients(mechanism: Mechanism, p: Projected, layout: TokenLayout) -> list[Tensor]:
    """Of a fixed weighted sum of the output, by q, k and v."""
    p, inputs = leaves(p)
    out = mechanism(p, layout)
    return list(torch.autograd.grad(out, inputs, out.detach().roll(1, 2)))


def check(bench: Bench, names: list[str]) -> dict[str, dict[str, float]]:
    """Relative RMS errors by mechanism; raises where one is too large."""
    found: dict[str, dict[str, float]] = {}
    exact = 1e-5 if not bench.cuda else 5e-3
    for name in names:
        errors: dict[str, float] = {}
        if name in NOTHING_LEFT_OUT:
            mechanism = build(name, NOTHING_LEFT_OUT[name], bench)
            layout = bench.layout(3, mechanism)
            p, precise = projections(bench, layout), projections(bench, layout, torch.float32)
            with torch.no_grad():
                wanted = Dense("explicit")(precise, layout)
                errors["to dense"] = rms_ratio(mechanism(p, layout).float(), wanted)
                assert_rms(mechanism(p, layout).float(), wanted, exact if not bench.cuda else 4 * exact)
        if "implementation" in inspect.signature(ATTENTION.get(name)).parameters and name != "dense":
            settings = SETTINGS.get(name, {})
            small = replace(bench, dtype=torch.float32)
            auto, plain = (build(name, {**settings, "implementation": how}, small) for how in ("auto", "reference"))
            layout = small.layout(4, auto)
            p = projections(small, layout)
            with torch.no_grad():
                errors["to reference"] = rms_ratio(auto(p, layout), plain(p, layout))
            pairs = zip(gradients(auto, p, layout), gradients(plain, p, layout), strict=True)
            errors["gradients"] = max(rms_ratio(ours, theirs) for ours, theirs in pairs)
            assert max(errors["to reference"], errors["gradients"]) < 5e-3, (name, errors)
        found[name] = errors
        print("correct", name, *(f"{k} {v:.1e}" for k, v in errors.items()), flush=True)
    return found


def layer_row(name: str, views: int, backward: bool, bench: Bench, peak: dict[str, float]) -> dict[str, Any]:
    """One mechanism at one length, forward or forward and backward."""
    settings = {"implementation": "sdpa"} if name == "dense" else SETTINGS.get(name, {})
    mechanism = build(name, settings, bench)
    layout = bench.layout(views, mechanism)
    p = projections(bench, layout)

    def run(mechanism: Mechanism = mechanism) -> None:
        if backward:
            gradients(mechanism, p, layout)
        else:
            with torch.no_grad():
                mechanism(p, layout)

    if bench.cuda:
        run()  # kernels are compiled and tuned
    seconds, flops, memory = observed(run)
    seconds, repeats = clock(run, 1.0) if seconds < bench.limit_s / 10 else (once(run), 1)
    parts: dict[str, float] = {}
    if name == "gsa":
        selection, block_sparse = inside(coarse_fine, ("block_select", "block_sparse_attention"), run, min(repeats, 5))
        parts = {"selection_s": selection, "block_sparse_s": block_sparse, "selection_share": selection / seconds}
    if bench.cuda and getattr(mechanism, "implementation", "") == "auto":
        flops = flops_by_torch(lambda: run(build(name, {**settings, "implementation": "torch"}, bench)))
    moved = sum(t.nbytes for t in (p.q, p.k, p.v, p.v)) * (2 if backward else 1)
    ideal = None if flops is None else max(flops / peak["flops_per_s"], moved / peak["bytes_per_s"])
    return {
        "mechanism": name,
        "views": views,
        "pass": "forward and backward" if backward else "forward",
        "seconds": seconds,
        "repeats": repeats,
        "flops": flops,
        "bytes": moved,
        "peak_bytes": memory,
        "of_roofline": None if ideal is None else ideal / seconds,
        **parts,
    }


def flops_by_torch(run: Callable[[], None]) -> int | None:
    """Operations of the same work without kernels of our own, which count nothing; None where torch cannot do it."""
    try:
        return observed(run)[1]
    except (KernelError, torch.OutOfMemoryError):
        return None


def layers(bench: Bench, names: list[str], peak: dict[str, float]) -> list[dict[str, Any]]:
    """Every mechanism, every length, both passes; a length that would cost too much time or memory ends a row."""
    rows: list[dict[str, Any]] = []
    dense: dict[tuple[int, str], float] = {}
    for name in ["dense", *(n for n in names if n != "dense")]:
        limit_s = bench.limit_s if name == "dense" else bench.limit_s / 4
        for backward in (False, True):
            done: list[dict[str, Any]] = []
            for views in bench.views:
                costs = [expected(done, key, views) for key in ("seconds", "peak_bytes")]
                if costs[0] > limit_s or costs[1] > bench.limit_bytes:
                    print(f"{name} from {views} views on: left out, {costs[0]:.0f} s, {costs[1] / 2**30:.1f} GiB")
                    break
                try:
                    row = layer_row(name, views, backward, bench, peak)
                except torch.OutOfMemoryError:
                    print(f"{name} from {views} views on: out of memory")
                    break
                if name == "dense":
                    dense[views, row["pass"]] = row["seconds"]
                if (views, row["pass"]) in dense:
                    row["speed_up"] = dense[views, row["pass"]] / row["seconds"]
                done.append(row)
                print(shown(row), flush=True)
            rows += done
    return rows


def expected(done: list[dict[str, Any]], key: str, views: int) -> float:
    """What `key` will be at so many views: by the growth between the last two lengths, else by the square."""
    if not done:
        return 0.0
    power = 2.0
    if len(done) > 1:
        longer = math.log(done[-1]["views"] / done[-2]["views"])
        power = min(max(math.log(done[-1][key] / done[-2][key]) / longer, 1.0), 2.2)
    return done[-1][key] * (views / done[-1]["views"]) ** power


def shown(row: dict[str, Any]) -> str:
    """A line of the table."""
    parts = f"; {100 * row['selection_share']:.0f} % selection" if "selection_share" in row else ""
    return (
        f"{row['mechanism']:13} {row['views']:5} views {row['pass']:20} {row['seconds']:9.4f} s "
        f"{row.get('speed_up', float('nan')):7.2f} x  {row['peak_bytes'] / 2**20:8.0f} MiB "
        f"{(row['flops'] or 0) / 1e9:10.1f} GFLOP  {100 * (row['of_roofline'] or 0):5.1f} % of roofline{parts}"
    )


def tiny_vggt() -> Vggt:
    """VGGT as it is, narrow and short."""
    sizes: dict[str, Any] = {"width": 128, "heads": 4, "encoder_depth": 2, "pairs": 6, "keep": (2, 3, 4, 5)}
    heads: dict[str, Any] = {"features": 32, "channels": (32, 32, 64, 64), "track_levels": 2, "track_radius": 1}
    return Vggt(VggtConfig(**sizes, **heads, track_features=16, track_hidden=48))


def models(bench: Bench, views: list[int]) -> list[dict[str, Any]]:
    """Whole models, 400 patches a view (Pi3 on a GPU: 864), with plan "gsa" and dense, run by turns."""
    makes: dict[str, Callable[[], Backbone]] = {"nano": Nano, "tiny vggt": tiny_vggt}
    if bench.cuda:
        makes = {"pi3": Pi3}
    rows: list[dict[str, Any]] = []
    for name, make in makes.items():
        torch.manual_seed(0)
        with bench.device:
            model = make().eval()
        networks = {"dense": model, "gsa": compress(model, "gsa")}
        taken = 0.0
        for count in views:
            if rows and taken * (count / rows[-1]["views"]) ** 2 > bench.limit_s * 2:
                print(f"{name} from {count} views on: left out")
                break
            sides = (bench.rows * model.patch, bench.cols * model.patch)
            pictures = Views(torch.rand(1, count, 3, *sides, device=bench.device))
            times: dict[str, list[float]] = {kind: [] for kind in networks}
            while len(times["gsa"]) < 2 or (taken < bench.limit_s / 8 and len(times["gsa"]) < 8):
                for kind, network in networks.items():
                    with torch.inference_mode(), torch.autocast(bench.device.type, bench.dtype, enabled=bench.cuda):
                        times[kind].append(once(lambda: network(pictures)))  # noqa: B023
                taken = sum(map(sum, times.values()))
            medians = {kind: statistics.median(t[1:]) for kind, t in times.items()}  # the first warms up
            taken = medians["dense"]
            row: dict[str, Any] = {"model": name, "views": count, "repeats": len(times["gsa"]) - 1}
            row |= {f"{kind}_s": value for kind, value in medians.items()}
            rows.append(row | {"speed_up": medians["dense"] / medians["gsa"]})
            said = ", ".join(f"{kind} {value:8.3f} s" for kind, value in medians.items())
            print(f"{name:10} {count:4} views {said} {rows[-1]['speed_up']:6.2f} x", flush=True)
    return rows


def judged(bench: Bench, rows: list[dict[str, Any]], whole: list[dict[str, Any]]) -> list[str]:
    """What falls short of LEVELS and SLOWER; memory of gsa that grows faster than its views."""
    short = [
        f"{r['model']} {r['views']} views: gsa takes {1 / r['speed_up']:.2f} of the dense time"
        for r in whole
        if r["speed_up"] < 1 / SLOWER
    ]
    gsa = [r for r in rows if r["mechanism"] == "gsa" and r["pass"] == "forward"]
    for one, two in pairwise(gsa):
        growth = (two["peak_bytes"] / one["peak_bytes"]) / (two["views"] / one["views"])
        if growth > 1.1 and one["views"] >= 32:
            short.append(f"gsa: memory from {one['views']} to {two['views']} views grows {growth:.2f} times as fast")
    short += [
        f"gsa at {r['views']} views: selection takes {r['selection_share']:.2f} of the time"
        for r in gsa
        if bench.cuda and r["selection_share"] > SELECTION.get(r["views"], 1)
    ]
    found = {
        "layer": {r["views"]: r["speed_up"] for r in gsa if "speed_up" in r},
        "model": {v: max(r["speed_up"] for r in whole if r["views"] == v) for v in {r["views"] for r in whole}},
    }
    for kind, levels in LEVELS[bench.device.type].items():
        for views, level in levels.items():
            if found[kind].get(views, level) < level:
                short.append(f"{kind} at {views} views: {found[kind][views]:.2f} x, {level} x wanted")
    return short


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory by views, forward, of every mechanism."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    forward = [r for r in rows if r["pass"] == "forward"]
    for axis, key, scale, label in ((axes[0], "seconds", 1, "seconds"), (axes[1], "peak_bytes", 2**20, "peak MiB")):
        for mechanism in dict.fromkeys(r["mechanism"] for r in forward):
            line = [(r["views"], r[key] / scale) for r in forward if r["mechanism"] == mechanism]
            style = {"color": "black", "linewidth": 2} if mechanism == "dense" else {}
            axis.plot(*zip(*line, strict=True), marker=".", label=mechanism, **style)
        axis.set(xscale="log", yscale="log", xlabel="views", ylabel=label)
        axis.set_xticks(sorted({r["views"] for r in forward}), labels=sorted({r["views"] for r in forward}))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    figure.suptitle("One global attention layer, forward", fontsize=10)
    figure.savefig(path, dpi=90)


def main() -> int:
    """Check, measure, write; 1 when a level is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+")
    parser.add_argument("--model-views", type=int, nargs="*", help="none at all: no whole models")
    parser.add_argument("--only", nargs="+", default=list(ATTENTION), help="rows of the table")
    parser.add_argument(
        "--limit", type=float, default=45.0, help="seconds that one dense run may take, others a quarter"
    )
    parser.add_argument("--name", help="of the files that are written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files that are written")
    options = parser.parse_args()
    bench = bench_here(options.views, options.limit)
    model_views = options.model_views
    if model_views is None:
        model_views = [8, 32, 128, 512, 1024] if bench.cuda else [1, 2, 4, 5, 6, 8, 12, 16, 32, 64, 128]
    errors = check(bench, options.only)
    peak = peaks(bench.device, bench.dtype)
    print(f"peaks: {peak['flops_per_s'] / 1e9:.0f} GFLOP/s, {peak['bytes_per_s'] / 1e9:.1f} GB/s", flush=True)
    rows = layers(bench, options.only, peak)
    whole = models(bench, model_views)
    short = judged(bench, rows, whole)
    name = options.name or f"attention_{bench.device.type}"
    result = {
        "hardware": hardware(),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "layer": {k: getattr(bench, k) for k in ("heads", "head_dim", "special", "rows", "cols")},
        "method": "one run watched (operations, peak memory), which also warms up, then medians; above "
        f"{bench.limit_s / 10:.1f} s one run; operations counted, bytes those of q, k, v and the result, read or "
        "written once; selection_s and block_sparse_s are seconds of their forward passes inside the layer, measured "
        "in runs of their own",
        "peaks": peak,
        "relative_rms": errors,
        "layers": rows,
        "models": whole,
        "missed": short,
    }
    path = write_result(name, result, options.out)
    plot(rows, path.with_suffix(".png"))
    print(path)
    print("\n".join(short) if short else "every level is reached")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
