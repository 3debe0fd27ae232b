"""Instructions that selection's search issues for each row of queries, counted in what was compiled, without a GPU.

    python benchmarks/gpu/search_cost.py [--top 32 64 256] [--views 1024] [--card 90]

One gsa layer of Pi3: heads of 64 in bfloat16, windows of 4 x 4 in views of 24 x 36 patches. Every instruction of the
machine code counts as often as its loops run; a warp's instruction counts once. Halvings are counted on random queries
and keys, the most that any row of a program needs; the branch that chooses among equal scores counts as never taken.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import triton

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from compile import Card, disassembled, launches, loops_of  # noqa: E402

from lean3r.ops.block_select import kernel  # noqa: E402
from lean3r.ops.block_select.kernel_ranking import UNCHECKED  # noqa: E402
from lean3r.ops.block_select.reference import ordered_bits  # noqa: E402

WINDOWS = 54  # of a view
RARE = 80  # instructions without a loop that a branch jumps over: choosing among equal scores


def issued(text: str, trips: list[float]) -> float:
    """Instructions of a warp, where the loops, in the order of the program, run so often each time they are entered."""
    code = [int(at, 16) for at in re.findall(r"/\*([0-9a-f]{4,})\*/\s+\S.*?;", text)]
    loops = loops_of(text)
    assert len(loops) == len(trips), f"{len(loops)} loops, {len(trips)} expected"
    rare = [
        (int(at, 16) + 16, int(to, 16))
        for at, to in re.findall(r"/\*([0-9a-f]{4,})\*/\s+@!?U?P\d+ BRA 0x([0-9a-f]+)", text)
        if int(to, 16) - int(at, 16) > 16 * RARE
    ]
    rare = [(a, b) for a, b in rare if not any(a <= start < b for start, _ in loops)]
    last = text[: text.rindex("EXIT")].count(";")
    return sum(
        math.prod(n for (a, b), n in zip(loops, trips, strict=True) if a <= at <= b)
        for at in code[: last + 1]
        if not any(a <= at < b for a, b in rare)
    )


def halvings(numbers: torch.Tensor, wanted: int, parts: int) -> float:
    """Trips through the loop of `take`, for rows [R, N] of one program."""
    x = ordered_bits(numbers).long()
    low, high = x.unflatten(1, (parts, -1)).amax(2).amin(1), x.amax(1) + 1
    trips = 0
    while (((x >= low[:, None]).sum(1) > wanted) & (high - low > 1)).any():
        for _ in range(UNCHECKED):
            middle = (low + high) >> 1
            enough = (x >= middle[:, None]).sum(1) >= wanted
            low, high = low.where(~enough, middle), high.where(enough, middle)
        trips += 1
    return trips


def loop_trips(constants: dict, keys: int, top_k: int, programs: int = 40) -> list[float]:
    """How often each loop of the search runs."""
    wide, rows, width, group, span = (constants[name] for name in ("K", "R", "L", "GROUP", "SPAN"))
    parts = max(width, wide)
    k = torch.randn(keys, 64)
    steps: list[list[float]] = []
    for _ in range(programs):
        scores = torch.randn(rows, 64) @ k.T
        maxima = scores.unflatten(1, (-1, group)).amax(2)
        numbers, found = maxima, []
        if constants["SPANS"]:
            peaks = maxima.unflatten(1, (-1, span)).amax(2)
            padded = torch.nn.functional.pad(peaks, (0, constants["SPANS"] - peaks.shape[1]), value=-torch.inf)
            # Parts without a number do not count in the kernel.
            filled = padded.unflatten(1, (parts, -1))[:, : peaks.shape[1] * parts // constants["SPANS"]]
            found.append(halvings(filled.flatten(1), top_k, filled.shape[1]))
            numbers = _of(maxima, peaks, top_k, span)
        else:
            each = wide * span // parts
            numbers = numbers[:, : numbers.shape[1] // each * each]
        found.append(halvings(numbers, top_k, numbers.shape[1] // (wide * span // parts)))
        found.append(halvings(_of(scores, maxima, top_k, group), top_k, parts))
        steps.append(found)
    *early, last = (statistics.mean(step) for step in zip(*steps, strict=True))
    tiles = top_k * group * rows / constants["M"]
    size = wide.bit_length() - 1
    lanes = sum(min(i, 5) for i in range(1, size + 1))
    lines = [sum(range(1, size - 4)) / size] * (size > 6)
    sort = [size, *lines, lanes / size] if size > 5 else []
    return [*early, tiles, last, *sort]


def _of(numbers: torch.Tensor, peaks: torch.Tensor, top_k: int, size: int) -> torch.Tensor:
    chosen = peaks.topk(top_k).indices.sort().values
    return numbers.unflatten(1, (-1, size)).gather(1, chosen[:, :, None].expand(-1, -1, size)).flatten(1)


def main() -> None:
    """Compile and print a line for each length of the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top", nargs="+", type=int, default=[32, 64, 256])
    parser.add_argument("--views", type=int, default=1024)
    parser.add_argument("--card", type=int, default=90, choices=(80, 89, 90))  # sm_100 has loops that wait
    args = parser.parse_args()
    torch.manual_seed(0)
    triton.runtime.driver.set_active(Card(args.card))  # type: ignore[arg-type]
    keys = args.views * WINDOWS
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        for top_k in args.top:
            q, k = (torch.zeros(1, 1, n, 64, dtype=torch.bfloat16, device="meta") for n in (256, keys))
            (search,) = (
                launch
                for launch in launches(lambda q=q, k=k, top_k=top_k: kernel.select(q, k, k, top_k, 0.125, None, ()))
                if launch.kernel.__name__ == "_search"
            )
            trips = loop_trips(search.constants, keys, top_k)
            count = issued(disassembled(search.compile()[0].asm["cubin"]), trips)
            row = count * search.constants["num_warps"] / search.constants["R"]
            print(f"top {top_k}: {row:,.0f} instructions a row; loops run {', '.join(f'{n:.1f}' for n in trips)} times")


if __name__ == "__main__":
    main()
