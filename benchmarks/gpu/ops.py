"""How long do the operators take at full size? Verified first, timed after, with the same tensors' yardstick beside.

    python benchmarks/gpu/ops.py [--ops NAME ...] [--views 32 128 512 1024] [--device cuda|cpu] [--out DIR]

Sizes are those of one global layer: 864 tokens a view, 16 heads of 64, windows of 16 tokens, bfloat16 (float32 on a
CPU, where small --views are for trying the script out). Writes ops_<device>.json, into --out where given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import hardware, write_result

from lean3r.ops.block_select import block_select, torch_path
from lean3r.ops.block_sparse import block_sparse_attention
from lean3r.testing import assert_rms

TOKENS, HEADS, DIM, WINDOW = 864, 16, 64, 16
ROUNDS = 7


@dataclass(frozen=True)
class Setting:
    """Where and in what type an operator is timed, and over how many views."""

    device: str
    views: int

    @property
    def dtype(self) -> torch.dtype:
        """bfloat16 on the GPU."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def random(self, tokens: int, count: int = 3, heads: int = HEADS) -> list[Tensor]:
        """Tensors [1, heads, tokens, DIM] that want gradients."""
        shape = (1, heads, tokens, DIM)
        return [torch.randn(shape, device=self.device, dtype=self.dtype, requires_grad=True) for _ in range(count)]


def times(setting: Setting, rounds: int = ROUNDS, **runs: Callable[[], object]) -> dict[str, dict[str, float]]:
    """Median milliseconds and peak gigabytes of several things, taken in turns; the first round warms up."""
    cuda = setting.device == "cuda"
    taken: dict[str, list[float]] = {name: [] for name in runs}
    peaks = dict.fromkeys(runs, 0.0)
    for number in range(rounds + 1):
        for name, run in runs.items():
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
            if number:
                taken[name].append(time.perf_counter() - start)
    return {
        name: {"ms": round(1e3 * statistics.median(seconds), 3)} | ({"peak_gb": round(peaks[name], 3)} if cuda else {})
        for name, seconds in taken.items()
    }


def verify_block_select(device: str) -> None:
    """Chosen blocks, output and gradients against the reference; long enough for all three levels of the search."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16)[: 3 if device == "cuda" else 1]:
        for top_k, nk in ((32, 9001), (512, 9001), (32, 183)):
            q, k, v = (torch.randn(1, 2, n, DIM, device=device, dtype=dtype) for n in (300, nk, nk))
            leaves = [t.requires_grad_() for t in (q, k, v)]
            got = block_select(q, k, v, top_k, implementation="triton" if device == "cuda" else "torch")
            wanted = block_select(*(t.float() for t in leaves), top_k, implementation="reference")
            scores = (q.float() @ k.float().mT).detach()
            ours, theirs = (
                scores.gather(-1, s.blocks.clamp_min(0).long()).masked_fill(s.blocks < 0, 0) for s in (got, wanted)
            )
            assert (ours - theirs).abs().max() <= 1e-5 * scores.abs().max(), f"{dtype}, top {top_k} of {nk}: blocks"
            limit = 1e-5 if dtype == torch.float32 else 5e-3
            assert_rms(got.out, wanted.out, limit)
            assert_rms(got.lse, wanted.lse, 1e-5)
            slope = torch.randn_like(wanted.out)
            ours = torch.autograd.grad(got.out, leaves, slope.to(dtype))
            for a, b in zip(ours, torch.autograd.grad(wanted.out, leaves, slope), strict=True):
                assert_rms(a, b, limit)


def time_block_select(setting: Setting) -> dict:
    """Forward and backward at top-k 8 to 512, the share of the search, and flash attention of the same size."""
    windows = setting.views * TOKENS // WINDOW
    q, k, v = setting.random(windows)
    slope = torch.randn_like(q)
    run = torch_path.select
    if setting.device == "cuda":
        from lean3r.ops.block_select.kernel import select as run

    def forward(top_k: int) -> Callable[[], object]:
        return lambda: run(q, k, v, top_k, DIM**-0.5, None, [])

    def both(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(), (q, k, v), slope)

    with torch.no_grad():
        found = times(
            setting,
            **{f"top_{top_k}": forward(top_k) for top_k in (8, 32, 64, 128, 512)},
            attention_alone=forward(0),
            sdpa=lambda: F.scaled_dot_product_attention(q, k, v),
        )
    found |= times(
        setting,
        forward_backward_top_32=both(lambda: run(q, k, v, 32, DIM**-0.5, None, [])[1]),
        forward_backward_sdpa=both(lambda: F.scaled_dot_product_attention(q, k, v)),
    )
    search = found["top_32"]["ms"] - found["attention_alone"]["ms"]
    flop = 4 * windows**2 * DIM * HEADS
    return {
        "windows": windows,
        **found,
        "search_share_top_32": round(search / found["top_32"]["ms"], 3),
        "tflop": round(flop / 1e12, 3),
        "tflop_per_s_top_32": round(flop / found["top_32"]["ms"] / 1e9, 1),
    }


def verify_block_sparse(device: str) -> None:
    """Output and gradients against the reference in float32: repeats, skipped entries, hidden and dense keys."""
    implementation = "triton" if device == "cuda" else "torch"
    for dtype in (torch.float32, torch.float16, torch.bfloat16)[: 3 if device == "cuda" else 1]:
        for query_block, key_block, dim, listed in (
            *((16, 16, 64, 32), (16, 16, 64, 300), (32, 64, 32, 8), (64, 64, 96, 8)),
            *((128, 128, 128, 4), (49, 25, 48, 8), (16, 64, 80, 512)),
        ):
            nq, nk = 41, 60
            q, k, v, extra_k, extra_v = (
                torch.randn(2, 2, n, dim, device=device, dtype=dtype)
                for n in (nq * query_block, *(nk * key_block,) * 2, 37, 37)
            )
            blocks = torch.randint(-3, nk + 3, (2, 2, nq, listed), device=device, dtype=torch.int32)
            mask = torch.rand(2, nk * key_block, device=device) > 0.1

            def attend(implementation: str, leaves: list[Tensor]) -> Tensor:
                sizes = {"query_block": query_block, "key_block": key_block}  # noqa: B023
                return block_sparse_attention(
                    *(*leaves[:3], blocks),  # noqa: B023
                    **sizes,
                    key_mask=mask,  # noqa: B023
                    dense_keys=(leaves[3], leaves[4]),
                    implementation=implementation,  # type: ignore[arg-type]
                )

            leaves = [x.requires_grad_() for x in (q, k, v, extra_k, extra_v)]
            got, wanted = attend(implementation, leaves), attend("reference", [x.float() for x in leaves])
            limit = 1e-5 if dtype == torch.float32 else 5e-3
            assert_rms(got, wanted, limit)
            slope = torch.randn_like(wanted)
            found = torch.autograd.grad(got, leaves, slope.to(dtype))
            for a, b in zip(found, torch.autograd.grad(wanted, leaves, slope), strict=True):
                assert_rms(a, b, limit)


def time_block_sparse(setting: Setting) -> dict:
    """Forward and backward at top 32 and 128, lists scattered or alike among neighbours, and flash attention."""
    tokens = setting.views * TOKENS
    windows = tokens // WINDOW
    q, k, v = setting.random(tokens)
    slope = torch.randn_like(q)
    implementation = "triton" if setting.device == "cuda" else "torch"

    def lists(top_k: int, pool: int, neighbours: int) -> Tensor:
        """Each window names top_k of the `pool` windows that its group of neighbours draws by chance."""
        groups = -(-windows // neighbours)
        drawn = torch.randint(windows, (1, HEADS, groups, pool), device=setting.device, dtype=torch.int32)
        drawn = drawn.repeat_interleave(neighbours, 2)[:, :, :windows]
        index = torch.rand(drawn.shape, device=setting.device).argsort(-1)[..., :top_k]
        return drawn.gather(-1, index)

    def forward(blocks: Tensor) -> Tensor:
        how = {"query_block": WINDOW, "key_block": WINDOW, "implementation": implementation}
        return block_sparse_attention(q, k, v, blocks, **how)  # type: ignore[arg-type]

    scattered, alike, many = lists(32, 32, 1), lists(32, 48, 4), lists(128, 192, 4)
    with torch.no_grad():
        found = times(
            setting,
            scattered_32=lambda: forward(scattered),
            alike_32=lambda: forward(alike),
            alike_128=lambda: forward(many),
        )
        if setting.device == "cuda":
            from lean3r.ops.tiles import unions

            found |= times(setting, unions_alike_32=lambda: unions(alike, WINDOW, windows))
        few = ROUNDS if setting.views <= 128 else 1
        found |= times(setting, few, sdpa=lambda: F.scaled_dot_product_attention(q, k, v))
    found |= times(setting, forward_backward_alike_32=lambda: torch.autograd.grad(forward(alike), (q, k, v), slope))
    if setting.views <= 128:
        dense = lambda: torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), slope)  # noqa: E731
        found |= times(setting, forward_backward_sdpa=dense)
    flop = 4 * tokens * 32 * WINDOW * DIM * HEADS
    moved = windows * 32 * WINDOW * 2 * DIM * HEADS * q.element_size()
    return {
        "tokens": tokens,
        **found,
        "speed_up_alike_32": round(found["sdpa"]["ms"] / found["alike_32"]["ms"], 2),
        "tflop_per_s_alike_32": round(flop / found["alike_32"]["ms"] / 1e9, 1),
        "gb_of_keys_without_sharing": round(moved / 1e9, 2),
    }


OPS: dict[str, tuple[Callable[[str], None], Callable[[Setting], dict]]] = {
    "block_select": (verify_block_select, time_block_select),
    "block_sparse": (verify_block_sparse, time_block_sparse),
}


def main() -> None:
    """Verify every operator, then time it at every number of views; JSON after each so that a cut-off run counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--views", nargs="+", type=int, default=[32, 128, 512, 1024])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    result: dict = {"hardware": hardware(), "tokens_a_view": TOKENS, "heads": HEADS, "dim": DIM, "rounds": ROUNDS}
    for name in options.ops:
        verify, clock = OPS[name]
        verify(options.device)
        print(f"{name}: verified")
        result[name] = {}
        for views in options.views:
            setting = Setting(options.device, views)
            result[name][views] = clock(setting) | {"dtype": str(setting.dtype)}
            print(name, views, json.dumps(result[name][views]), flush=True)
            path = write_result(f"ops_{options.device}", result)
            if options.out:
                (options.out / path.name).write_bytes(path.read_bytes())


if __name__ == "__main__":
    main()
