"""Where does the time of one gsa layer go, and how far is it from dense attention and from the roofline?

    python benchmarks/gpu/layer.py --out DIR [--device cuda] [--views 1024 128 32]

A global layer of Pi3: 16 heads of 64, 24 x 36 patches a view, windows of 4 x 4, bfloat16, random input in which
neighbours resemble one another. By views, with 5 special tokens a view and with none: the layer, its parts between
CUDA events inside one run, its operators alone in their variants on the layer's own lists, dense attention; forward
and backward at the last number of views. Autotuned: all configurations are first compiled side by side, each in a
process of its own, and every row says which one was chosen. On a CPU everything is tiny.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from common import capture
from roofline import H200, Layer
from rows import Rows, measure
from smoke import LIMIT
from torch import Tensor
from tuning import longest_list, number, pinned

from lean3r.attention import coarse_fine, regions
from lean3r.attention.base import Projected
from lean3r.attention.coarse_fine import Gsa
from lean3r.attention.cut import Cut
from lean3r.layers.attention import SelfAttention
from lean3r.ops.block_select import block_select
from lean3r.ops.block_sparse import block_sparse_attention
from lean3r.testing import rms_ratio
from lean3r.types import TokenLayout

PARTS: dict[str, list[tuple[Any, str]]] = {
    "windows and pooling": [(Cut, "blocks"), (Cut, "patches_first"), (Cut, "pool"), (Cut, "pooled_positions")],
    "selection": [(coarse_fine, "block_select"), (regions, "block_select"), (regions, "rank_listed")],
    "sparse pass": [(coarse_fine, "block_sparse_attention")],
    "special queries": [(F, "scaled_dot_product_attention")],
    "gates and merging": [(Gsa, "gates"), (coarse_fine, "_mix"), (Cut, "join"), (coarse_fine, "join_windows")],
}
"""What a layer calls, by the name that its time goes under; "norm and rotation" comes from the projections, with
the averages of q and k where one kernel does all."""
SELECTED = (32, 128)
REGIONS = 64  # candidates of two levels of selection
AGREE_VIEWS = 128  # torch's own paths take too long beyond
COMPILE_S = 150  # more than that, and the rest is compiled when it counts


@dataclass(frozen=True)
class Bench:
    """Sizes of the layer, where it runs and in what type."""

    device: str
    heads: int = 16
    dim: int = 1024
    rows: int = 24
    cols: int = 36
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def of(cls, device: str) -> Bench:
        """Pi3's on a GPU, a tiny one on a CPU."""
        return cls(device) if device == "cuda" else cls(device, 1, 32, 4, 8, torch.float16)

    def layout(self, views: int, special: int) -> TokenLayout:
        return TokenLayout(views, special, self.rows, self.cols, window=4)

    def gsa(self, **settings: Any) -> Gsa:
        """The mechanism, its kernels asked for by name."""
        torch.manual_seed(0)
        mechanism = Gsa(self.dim, self.heads, implementation="triton", **settings)
        return mechanism.to(self.device, self.dtype).requires_grad_(False)

    def projected(self, layout: TokenLayout) -> Projected:
        """What a global block hands to its mechanism; drawn on the device."""
        torch.manual_seed(1)
        with torch.device(self.device), torch.no_grad():
            layer = SelfAttention(self.dim, self.heads).to(self.dtype)
            x = torch.randn(1, layout.views, layout.tokens, self.dim, dtype=self.dtype)
            for shape in ((layout.views, 1), (1, layout.tokens)):
                x += torch.randn(1, *shape, self.dim, dtype=self.dtype)
        return capture(layer, x.flatten(1, 2), layout)

    def roofline(self, layout: TokenLayout) -> Layer:
        return Layer(layout.views, layout.patches, layout.special, self.dim)


def against(found: dict, work: tuple[float, float]) -> dict:
    """Operations, bytes and what an H200 would need at its peaks."""
    at_best = H200.milliseconds(*work)
    arithmetic = {"tflop": round(work[0] / 1e12, 4), "gb": round(work[1] / 1e9, 3), "roofline_ms": round(at_best, 3)}
    return found | arithmetic | {"of_roofline": round(at_best / found["ms"], 4)}


def parts_of(run: Callable[[Projected], object], p: Projected, device: str) -> dict[str, float]:
    """Milliseconds between the events around each call of PARTS inside a run, medians; the GPU is never waited for."""
    found: dict[str, list[float]] = {}
    for _ in range(3 if device == "cuda" else 1):
        taken: list[tuple[str, Callable[[], float]]] = []

        def timed(label: str, function: Callable) -> Callable:
            def call(*args: Any, **named: Any) -> Any:
                clock = stopwatch(device)
                result = function(*args, **named)
                taken.append((label, clock()))  # noqa: B023 - called within the round
                return result

            return call

        with ExitStack() as stack:
            for label, places in PARTS.items():
                for owner, name in places:
                    stack.enter_context(mock.patch.object(owner, name, timed(label, getattr(owner, name))))
            finish = timed("norm and rotation", p.finish)
            pools = p.finish_and_pool and timed("norm and rotation", p.finish_and_pool)
            run(replace(p, finish=finish, finish_and_pool=pools))
        if device == "cuda":
            torch.cuda.synchronize()
        sums = dict.fromkeys((*PARTS, "norm and rotation"), 0.0)
        for label, elapsed in taken:
            sums[label] += elapsed()
        for label, value in sums.items():
            found.setdefault(label, []).append(value)
    return {label: round(sorted(values)[len(values) // 2], 4) for label, values in found.items()}


def stopwatch(device: str) -> Callable[[], Callable[[], float]]:
    """Start; called, stop: what that returns gives the milliseconds once the work is done."""
    if device != "cuda":
        start = time.perf_counter()

        def stop() -> Callable[[], float]:
            taken = 1e3 * (time.perf_counter() - start)
            return lambda: taken

        return stop
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()

    def stop_event() -> Callable[[], float]:
        last.record()
        return lambda: first.elapsed_time(last)

    return stop_event


@contextmanager
def captured() -> Iterator[dict[str, tuple[tuple, dict]]]:
    """Arguments with which a layer calls its two operators."""
    seen: dict[str, tuple[tuple, dict]] = {}

    def spy(name: str, function: Callable) -> Callable:
        def call(*args: Any, **named: Any) -> Any:
            seen[name] = (args, named)
            return function(*args, **named)

        return call

    with ExitStack() as stack:
        for name in ("block_select", "block_sparse_attention"):
            stack.enter_context(mock.patch.object(coarse_fine, name, spy(name, getattr(coarse_fine, name))))
        yield seen


def operators(p: Projected, layout: TokenLayout, bench: Bench) -> dict[str, tuple[Callable[[], object], tuple]]:
    """The layer's operators alone, with its own tensors and lists: variants by name, and the work of each."""
    with captured() as seen, torch.no_grad():
        bench.gsa()(p, layout)
    (q, k, v, _), select = seen["block_select"]
    tensors, sparse = seen["block_sparse_attention"]
    work, special = bench.roofline(layout), layout.views * layout.special
    bare = sparse | {"dense_keys": None}
    found: dict[str, tuple[Callable[[], object], tuple]] = {
        f"selection of {count}": (lambda c=count: block_select(q, k, v, min(c, k.shape[2]), **select), work.selection())
        for count in SELECTED
    }
    found["norm and rotation of q and k"] = (lambda: p.finish(p.q, p.k), work.norm_and_rotation())
    if p.finish_and_pool is not None:
        pools, size = p.finish_and_pool, sparse["query_block"]
        found["norm, rotation and averages of q and k"] = (
            lambda: pools(p.q, p.k, size),
            work.norm_and_rotation(pooled=True),
        )
        written_out = replace(p, finish_and_pool=None)
        found["gsa, q and k averaged apart"] = (lambda: bench.gsa()(written_out, layout), work.gsa())
    scattered = torch.randint_like(tensors[3], k.shape[2])
    found |= {
        "dense between windows": (lambda: F.scaled_dot_product_attention(q, k, v), work.selection()),
        "sparse pass": (lambda: block_sparse_attention(*tensors, **bare), work.sparse()),
        "sparse pass, scattered lists": (
            lambda: block_sparse_attention(*tensors[:3], scattered, **bare),
            work.sparse(),
        ),
        "sparse pass, fp8 keys and values": (
            lambda: block_sparse_attention(*tensors, **bare | {"kv": "fp8"}),
            work.sparse(),
        ),
    }
    if special:
        found["sparse pass with special keys"] = (
            lambda: block_sparse_attention(*tensors, **sparse),
            work.sparse(special),
        )
    return found


def dense(p: Projected, layout: TokenLayout, bench: Bench) -> dict:
    """Flash attention over everything, norm and rotation left out; a length that takes seconds runs once."""
    with torch.no_grad():
        q, k = p.finish(p.q, p.k)
        run = lambda: F.scaled_dot_product_attention(q, k, p.v)  # noqa: E731
        found = measure(run, bench.device, warm=layout.views <= 512)
    return against(found, bench.roofline(layout).dense())


def agreement(p: Projected, layout: TokenLayout, bench: Bench) -> dict:
    """Relative RMS errors of the layer's kernels, in the configurations just tuned, against torch on the same numbers
    and lists; of the lists, by the scores of what they hold."""
    with captured() as seen, torch.no_grad():
        bench.gsa()(p, layout)
        (q, k, v, _), select = seen["block_select"]
        tensors, sparse = seen["block_sparse_attention"]
        ours, theirs = (
            block_select(q, k, v, min(SELECTED[0], k.shape[2]), **select | {"implementation": how})
            for how in ("triton", "torch")
        )
        found = {"coarse attention": rms_ratio(ours.out, theirs.out), "its sums": rms_ratio(ours.lse, theirs.lse)}
        scores = [torch.empty(*x.blocks.shape, device=q.device) for x in (ours, theirs)]
        for head in range(q.shape[1]):
            score = q[0, head].float() @ k[0, head].float().mT
            for held, chosen in zip(scores, (ours, theirs), strict=True):
                held[0, head] = score.gather(-1, chosen.blocks[0, head].long())
        found["scores of the lists"] = rms_ratio(*scores)
        attended = [block_sparse_attention(*tensors, **sparse | {"implementation": how}) for how in ("triton", "torch")]
        found["sparse pass"] = rms_ratio(*attended)
        plain = replace(p, finish_and_pool=None)
        found["steps one by one"] = rms_ratio(bench.gsa()(p, layout), bench.gsa()(plain, layout))
    found = {what: float(f"{error:.3g}") for what, error in found.items()}
    wrong = {what: error for what, error in found.items() if not error <= LIMIT[bench.dtype]}
    return {"failed": f"relative RMS error {wrong}, at most {LIMIT[bench.dtype]}"} if wrong else found


def both_ways(attend: Callable[[Projected], Tensor], p: Projected) -> Callable[[], object]:
    """Forward and backward by q, k and v."""
    inputs = [x.detach().requires_grad_() for x in (p.q, p.k, p.v)]
    given = replace(p, q=inputs[0], k=inputs[1], v=inputs[2], finish_and_pool=None)

    def run() -> object:
        out = attend(given)
        return torch.autograd.grad(out, inputs, out.detach())

    return run


def compile_all(options: argparse.Namespace) -> None:
    """Compile every configuration, each number of all lists in a process of its own, into the cache on disk."""
    count = longest_list()
    command = [sys.executable, __file__, "--out", str(options.out), "--device", options.device, "--configuration"]
    running = [subprocess.Popen([*command, str(index)]) for index in range(count)]
    until = time.monotonic() + COMPILE_S
    for process in running:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def run_once(bench: Bench, sizes: set[int], index: int) -> None:
    """Everything that will be measured, once, in configuration `index`; what fails now fails again when it counts. On a
    CPU, which compiles nothing, special tokens are enough."""
    with pinned(number(index)):
        for views, special in product(sizes, (5, 0) if bench.device == "cuda" else (5,)):
            layout = bench.layout(views, special)
            p = bench.projected(layout)
            try:
                with torch.no_grad():
                    for run, _ in operators(p, layout, bench).values():
                        run()
                    bench.gsa(regions=REGIONS)(p, layout)
                if special:
                    both_ways(lambda p, layout=layout: bench.gsa()(p, layout), p)()
            except Exception as error:
                print(f"configuration {index}: {type(error).__name__}: {error}"[:200], flush=True)


def main() -> None:
    """Compile, then one row after the other, the largest size first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--views", type=int, nargs="+")
    parser.add_argument("--configuration", type=int, help="compile this one of each list, measure nothing")
    options = parser.parse_args()
    bench = Bench.of(options.device)
    sizes = options.views or ([1024, 128, 32] if options.device == "cuda" else [2])
    if options.configuration is not None:
        return run_once(bench, {min(128, sizes[0]), sizes[-1]}, options.configuration)
    rows = Rows(options.out, "layer", options.device)
    start = time.monotonic()
    compile_all(options)
    rows.write("compilation", {"seconds": round(time.monotonic() - start, 1), "processes": longest_list()})
    for views in sizes:
        for special in (5, 0):
            measure_size(rows, bench, bench.layout(views, special))
    layout = bench.layout(sizes[-1], 5)
    p = bench.projected(layout)
    attend = {
        "gsa": lambda p: bench.gsa()(p, layout),
        "dense": lambda p: F.scaled_dot_product_attention(*p.finish(p.q, p.k), p.v),
    }
    for name, run in attend.items():
        title = f"{layout.views} views, forward and backward, {name}"
        rows.take(title, lambda run=run: measure(both_ways(run, p), bench.device))


def measure_size(rows: Rows, bench: Bench, layout: TokenLayout) -> None:
    """All rows of one number of views and special tokens; tensors are made only when a row is missing."""
    title = f"{layout.views} views, {layout.special} special"

    @cache
    def p() -> Projected:
        return bench.projected(layout)

    @cache
    def alone() -> dict[str, tuple[Callable[[], object], tuple]]:
        return operators(p(), layout, bench)

    def whole(**settings: Any) -> dict:
        mechanism = bench.gsa(**settings)
        with torch.no_grad():
            found = measure(lambda: mechanism(p(), layout), bench.device)
            parts = parts_of(lambda p: mechanism(p, layout), p(), bench.device)
        shares = {"selection_share": round(parts["selection"] / found["ms"], 3)}
        work = bench.roofline(layout).gsa(pooled=mechanism.special == "pooled", regions=mechanism.regions)
        return against(found, work) | {"parts_ms": parts} | shares

    def variant(name: str) -> dict:
        run, work = alone()[name]
        with torch.no_grad():
            return against(measure(run, bench.device), work)

    if layout.views <= AGREE_VIEWS:
        rows.take(f"{title}, agreement with torch", lambda: agreement(p(), layout, bench))
    rows.take(f"{title}, gsa", whole)
    rows.take(f"{title}, gsa, two levels of {REGIONS}", lambda: whole(regions=REGIONS))
    rows.take(f"{title}, dense", lambda: dense(p(), layout, bench))
    if layout.special:
        rows.take(f"{title}, gsa, special tokens pooled", lambda: whole(special="pooled"))
        both = {"special": "pooled", "regions": REGIONS}
        rows.take(f"{title}, gsa, special tokens pooled, two levels of {REGIONS}", lambda: whole(**both))
    rows.take(f"{title}, gsa, fp8 keys and values", lambda: whole(kv="fp8"))
    names = [f"selection of {count}" for count in SELECTED]
    names += ["norm and rotation of q and k", "dense between windows", "sparse pass", "sparse pass, scattered lists"]
    names += ["sparse pass, fp8 keys and values", *(["sparse pass with special keys"] if layout.special else [])]
    names += ["norm, rotation and averages of q and k", "gsa, q and k averaged apart"] if bench.device == "cuda" else []
    for name in names:
        rows.take(f"{title}, {name}", lambda name=name: variant(name))


if __name__ == "__main__":
    main()
