"""Does every kernel run and say what its reference says? Small sizes, one configuration each, outputs and gradients.

    python benchmarks/gpu/smoke.py --out DIR [--device cuda] [--part smoke]

A row for each kernel and number type, on a GPU each in a process of its own, so that all compile at once: relative RMS
errors against the written-out reference in float32. Under compute-sanitizer the same rows are written as part
"sanitizer". On a CPU the kernels run in Triton's interpreter (TRITON_INTERPRET=1), which multiplies bfloat16 wrongly:
there float16 alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rows import Rows
from torch import Tensor
from tuning import pinned, smallest

from lean3r.ops.block_select import block_select
from lean3r.ops.block_sparse import block_sparse_attention, rounded_blocks
from lean3r.ops.fp8 import (
    choose_product,
    dequantize,
    gelu_rows,
    lay_out,
    norm_rows,
    quantize_rows,
    rows_of,
    scaled_product,
)
from lean3r.ops.join_windows import join_windows
from lean3r.ops.linear_attention import linear_attention
from lean3r.ops.norm_rotate import norm_rotate
from lean3r.ops.rank_listed import rank_listed
from lean3r.ops.residual import add_scaled, norm_to
from lean3r.ops.rope2d import rope2d
from lean3r.ops.span_attention import span_attention
from lean3r.testing import rms_ratio

LIMIT = {torch.float16: 5e-3, torch.bfloat16: 1e-2}
"""Largest relative RMS error of an output or gradient; bfloat16 keeps 8 bits."""


def heads(draw: Callable[..., Tensor]) -> int:
    """Of the largest checks: one in Triton's interpreter, which takes its time for each."""
    return 2 if draw(0).device.type == "cuda" else 1


def errors(run: Callable[..., Tensor], wanted: Callable[..., Tensor], leaves: Sequence[Tensor]) -> dict[str, float]:
    """Relative RMS error of the output and the largest one of the gradients, against float32 of the same numbers."""
    ours = [x.detach().requires_grad_() for x in leaves]
    exact = [x.detach().float().requires_grad_() for x in leaves]
    got, expected = run(*ours), wanted(*exact)
    slope = torch.randn_like(got)
    pairs = zip(torch.autograd.grad(got, ours, slope), torch.autograd.grad(expected, exact, slope.float()), strict=True)
    return {"output": rms_ratio(got, expected), "gradients": max(rms_ratio(a, b) for a, b in pairs)}


def check_rope2d(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Rotation by row and column."""
    x, positions = draw(2, 4, 70, 64), torch.rand(70, 2, device=draw(1).device) * 40

    def turned(how: str) -> Callable[[Tensor], Tensor]:
        return lambda x: rope2d(x, positions, implementation=how)  # type: ignore[arg-type]

    return errors(turned("triton"), turned("reference"), [x])


def check_norm_rotate(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Norm, rotation and means of windows; views with special tokens, windows that fill no tile."""
    qkv, weight, bias, angle = draw(2, 3 * 53, 3, 4, 64), draw(64), draw(64), draw(53, 64)
    given = (qkv.permute(2, 0, 3, 1, 4)[1], weight, bias, (angle.cos(), angle.sin()))
    sizes = {"tokens": 53, "special": 5, "window": 16}
    ours, theirs = (norm_rotate(*given, **sizes, implementation=how) for how in ("triton", "reference"))  # type: ignore[arg-type]
    named = zip(("output", "means"), ours, theirs, strict=True)
    return {name: rms_ratio(a.float(), b.float()) for name, a, b in named}


def check_norm_rotate_pairs(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Norm, and rotation of neighbouring channels by a table of all tokens in float32."""
    qkv, weight, bias, angle = draw(2, 3 * 53, 3, 4, 64), draw(64), draw(64), draw(3 * 53, 32).float()
    given = (qkv.permute(2, 0, 3, 1, 4)[1], weight, bias, (angle.cos(), angle.sin()))
    sizes = {"tokens": 3 * 53, "pairs": True}
    found, wanted = (norm_rotate(*given, **sizes, implementation=how)[0] for how in ("triton", "reference"))  # type: ignore[arg-type]
    return {"output": rms_ratio(found.float(), wanted.float())}


def check_join_windows(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Branches mixed by gates, and put in order behind special tokens."""
    given = (draw(2, 3, 3 * 96, 64), draw(2, 3, 18, 64), draw(2, 3 * 101, 6), draw(2, 3, 15, 64))
    found, wanted = (join_windows(*given, tokens=101, size=16, implementation=how) for how in ("triton", "reference"))  # type: ignore[arg-type]
    return {"output": rms_ratio(found.float(), wanted.float())}


def check_rank_listed(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Chosen members of listed groups, by their scores."""
    q, k = draw(1, 2, 27, 4, 64), draw(1, 2, 27, 4, 64)
    lists = torch.rand(1, 2, 27, 27, device=q.device).argsort(-1)[..., :24].int()
    names = torch.arange(108, device=q.device).view(27, 4)
    scores = q.float().flatten(2, 3) @ k.float().flatten(2, 3).mT
    found, best = (
        scores.gather(-1, rank_listed(q, k, lists, names, names[None] >= 0, 32, implementation=how).long())  # type: ignore[arg-type]
        for how in ("triton", "torch")
    )
    return {"output": rms_ratio(found, best)}


def check_residual(draw: Callable[..., Tensor]) -> dict[str, float]:
    """The norm of a stream in float32, and its next sum with a branch in half precision."""
    x, branch, gain, offset = draw(70, 1000).float(), draw(70, 1000), draw(1000).float(), draw(1000).float()
    normed, summed = zip(
        *(
            (
                norm_to(x, gain, offset, 1e-6, branch.dtype, implementation=how),  # type: ignore[arg-type]
                add_scaled(x, branch, gain, implementation=how),  # type: ignore[arg-type]
            )
            for how in ("triton", "reference")
        ),
        strict=True,
    )
    return {"output": rms_ratio(*normed), "sum": rms_ratio(*summed)}


def check_quantize_rows(draw: Callable[..., Tensor]) -> dict[str, float]:
    """E4M3 codes and scales: the same numbers."""
    x = draw(70, 1000)
    (codes, scale), (theirs, scales) = (quantize_rows(x, implementation=how) for how in ("triton", "reference"))
    return {"output": rms_ratio(dequantize(codes, scale).float(), dequantize(theirs, scales).float())}


def check_fused_rows(draw: Callable[..., Tensor]) -> dict[str, float]:
    """LayerNorm and GELU together with E4M3 codes: a code may be its neighbour."""
    x, gain, offset = draw(70, 1000), draw(1000), draw(1000)
    found: dict[str, float] = {}
    for name, coded in (
        ("norm", lambda how: norm_rows(x, gain, offset, 1e-6, implementation=how)),
        ("gelu", lambda how: gelu_rows(x, implementation=how)),
    ):
        ours, theirs = (dequantize(rows.codes, rows.scale) for rows in (coded("triton"), coded("reference")))
        found[name] = rms_ratio(ours, theirs)
    return found


def check_fp8_product(draw: Callable[..., Tensor]) -> dict[str, float]:
    """The product of E4M3 codes, where torch and the device have one, against that of what they stand for."""
    x, weight, bias = draw(300, 256), draw(384, 256), draw(384)
    coded = quantize_rows(weight)
    if choose_product("auto", x.device) != "scaled_mm":
        return {}
    rows = rows_of(x)
    wanted = dequantize(rows.codes, rows.scale) @ dequantize(*coded).float().mT + bias.float()
    found = {"fast": True, "exact": False}
    return {
        name: rms_ratio(scaled_product(rows, lay_out(*coded), bias, x.dtype, fast_accum=fast).float(), wanted)
        for name, fast in found.items()
    }


def check_linear_attention(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Linear attention with hidden keys."""
    q, k, v = draw(2, 2, 70, 64), draw(2, 2, 90, 64), draw(2, 2, 90, 64)
    mask = torch.arange(90, device=q.device) % 7 > 0

    def attend(how: str) -> Callable[..., Tensor]:
        settings = {"feature": "softmax", "eps": 1e-6, "key_mask": mask.expand(2, -1), "implementation": how}
        return lambda q, k, v: linear_attention(q, k, v, **settings)  # type: ignore[arg-type]

    return errors(attend("triton"), attend("reference"), [q, k, v])


def check_block_select(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Chosen blocks by their scores, output and gradients; more keys than one tile, a length that divides nothing."""
    q, k, v = (draw(1, heads(draw), tokens, 64) for tokens in (70, 333, 333))
    ours, theirs = (block_select(q, k, v, 20, implementation=how) for how in ("triton", "reference"))
    scores = q.float() @ k.float().mT
    found, best = (scores.gather(-1, chosen.blocks.long()) for chosen in (ours, theirs))

    def attend(how: str) -> Callable[..., Tensor]:
        return lambda q, k, v: block_select(q, k, v, 20, implementation=how).out  # type: ignore[arg-type]

    return {"blocks": rms_ratio(found, best)} | errors(attend("triton"), attend("reference"), [q, k, v])


def sparse_case(draw: Callable[..., Tensor]) -> tuple[list[Tensor], dict]:
    """q, k, v and two of dense keys; lists with repeats and skipped entries, and hidden keys."""
    nq, nk, size = 9, 13, 16
    leaves = [draw(2, heads(draw), tokens, 64) for tokens in (nq * size, nk * size, nk * size, 37, 37)]
    device = leaves[0].device
    blocks = torch.randint(-3, nk + 3, (*leaves[0].shape[:2], nq, 6), device=device, dtype=torch.int32)
    mask = torch.rand(2, nk * size, device=device) > 0.1
    return leaves, {"blocks": blocks, "query_block": size, "key_block": size, "key_mask": mask}


def check_block_sparse(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Listed blocks and dense keys, forward and backward."""
    leaves, settings = sparse_case(draw)

    def attend(how: str) -> Callable[..., Tensor]:
        return lambda q, k, v, *dense: block_sparse_attention(
            q, k, v, dense_keys=dense, implementation=how, **settings  # type: ignore[arg-type]
        )  # fmt: skip

    return errors(attend("triton"), attend("reference"), leaves)


def check_block_sparse_fp8(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Keys and values in E4M3, against the reference on what the codes stand for."""
    (q, k, v, *dense), settings = sparse_case(draw)
    got = block_sparse_attention(q, k, v, dense_keys=tuple(dense), kv="fp8", implementation="triton", **settings)  # type: ignore[arg-type]
    k, v = (rounded_blocks(x, settings["key_block"], settings["key_mask"]).float() for x in (k, v))
    seen = tuple(x.float() for x in dense)
    wanted = block_sparse_attention(q.float(), k, v, dense_keys=seen, implementation="reference", **settings)  # type: ignore[arg-type]
    return {"output": rms_ratio(got.float(), wanted)}


def check_span_attention(draw: Callable[..., Tensor]) -> dict[str, float]:
    """Runs of one buffer whose other rows are NaN, for many queries and for one."""
    q, cache, spans = draw(2, 70, 64), draw(2, 2, 700, 64), [(3, 130), (500, 0), (401, 200), (300, 1)]
    seen = torch.zeros(700, dtype=torch.bool, device=q.device)
    for first, length in spans:
        seen[first : first + length] = True
    cache[:, :, ~seen] = torch.nan
    listed = torch.tensor(spans, dtype=torch.int32, device=q.device)
    found = {}
    for name, some in (("output", q), ("one query", q[:, :1])):
        ours = span_attention(some, *cache, listed, implementation="triton")
        wanted = span_attention(some.float(), *cache.float(), listed, implementation="reference")
        found[name] = rms_ratio(ours.float(), wanted)
    return found


CHECKS = {
    "block_sparse": check_block_sparse,
    "block_select": check_block_select,
    "quantize_rows": check_quantize_rows,
    "fused_rows": check_fused_rows,
    "fp8_product": check_fp8_product,
    "block_sparse_fp8": check_block_sparse_fp8,
    "linear_attention": check_linear_attention,
    "norm_rotate": check_norm_rotate,
    "norm_rotate_pairs": check_norm_rotate_pairs,
    "join_windows": check_join_windows,
    "rank_listed": check_rank_listed,
    "residual": check_residual,
    "rope2d": check_rope2d,
    "span_attention": check_span_attention,
}


def measured(check: Callable[..., dict[str, float]], kind: torch.dtype, device: str) -> dict:
    """A row: the errors, or why they are too large."""
    torch.manual_seed(0)
    found = check(lambda *shape: torch.randn(shape, device=device, dtype=kind))
    found = {what: float(f"{error:.3g}") for what, error in found.items()}
    wrong = {what: error for what, error in found.items() if not error <= LIMIT[kind]}
    return {"failed": f"relative RMS error {wrong}, at most {LIMIT[kind]}"} if wrong else found


def main() -> int:
    """Every check in every number type, side by side on a GPU; 1 when one failed or gave nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--part", default="smoke")
    parser.add_argument("--row", help="this one alone")
    options = parser.parse_args()
    kinds = [torch.bfloat16, torch.float16] if options.device == "cuda" else [torch.float16]
    checks = {f"{name} {str(kind).removeprefix('torch.')}": (CHECKS[name], kind) for kind in kinds for name in CHECKS}
    rows = Rows(options.out, options.part, options.device)
    if options.device == "cuda" and options.row is None:
        missing = [name for name in checks if name not in rows.done]
        processes = [subprocess.Popen([sys.executable, *sys.argv, "--row", name]) for name in missing]
        for process in processes:
            process.wait()
        rows = Rows(options.out, options.part, options.device)
        return int(any("failed" in rows.done.get(name, {"failed"}) for name in checks))
    for name in [options.row] if options.row else checks:
        with pinned(smallest):
            rows.take(name, partial(measured, *checks[name], options.device))
    return int(any("failed" in row for row in rows.done.values()))


if __name__ == "__main__":
    sys.exit(main())
