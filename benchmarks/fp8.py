"""FP8 and INT8: cost in accuracy, savings in bytes, memory and time. Correctness comes first.

    python benchmarks/fp8.py [--parts noise kv outputs accuracy bytes files speed] [--golden DIR] [--scenes 60]

- check: a stored file, weights quantised while they are read, and a network converted in memory hold the same numbers,
  and a prepared network multiplies the same operands as the converted one. Always runs; everything else needs it.
- noise: signal over error of a cast, of one linear layer with its gradient, and of a feed-forward part.
- kv: sparse attention over keys and values in E4M3, one scale per block, against full ones: on normal numbers, and in
  the global layers of nano on rendered views; signal over error of the attention output.
- outputs: every output of the golden folder's cases (synthetic weights, which make every branch matter; reduced sizes,
  and those named by --full) with plan fp8 against float32. Depths and confidences as logarithms, as in docs/parity.md.
- accuracy: nano on held-out synthetic scenes, float32 against fp8, fp8-weight and int8-dynamic, without training.
- bytes: of the weights of whole models, from their shapes.
- files: a synthetic checkpoint of --file-model in float32, compressed to fp8: sizes, seconds, peak memory.
- speed: int8-dynamic and fp8 against float32, nano and a stack of linear layers as large as VGGT's, by turns; and the
  share of nano's time that the layers take which int8-dynamic changes: it can save no more than that.

Parts that are not asked for stay in the JSON as they were. `speed` takes seconds on the clock and, with one thread,
seconds of the processor: the latter hardly mind other work on the machine, and are what its limits are about.
Peaks are VmHWM less what the process had after importing and a small run (Linux only). Writes
benchmarks/results/fp8.json; seconds are for comparison within one run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import RESULTS, ROOT, hardware, write_result
from torch import Tensor, nn
from turns import by_turns, share_of

import lean3r
from lean3r.attention.coarse_fine import Gsa
from lean3r.attention.sla import SLA
from lean3r.compress import convert, prepare
from lean3r.compress.fp8_linear import Coded, Rounded
from lean3r.compress.plan import resolve_plan
from lean3r.layers.mlp import Mlp
from lean3r.models import MODELS
from lean3r.models.checkpoint import save_model, without_memory
from lean3r.models.writing import write_stream
from lean3r.ops.block_sparse import block_sparse_attention
from lean3r.ops.fp8 import dequantize, quantize_rows
from lean3r.pipeline.predict import predict
from lean3r.pipeline.transcode import compress_file
from lean3r.testing import snr_db
from lean3r.types import Views

PARTS = ("noise", "kv", "outputs", "accuracy", "bytes", "files", "speed")
FLOORS = {"cast": 25.0, "linear": 18.0, "linear gradient": 17.0, "feed-forward": 20.0}
KV_FLOOR = 20.0  # decibels
LIMITS = {"auc30": 0.5, "abs_rel_percent": 3.0, "vggt_gb": 1.35, "compress_peak": 1.3}
LEAST = 1 << 20  # bytes of a peak that is not noise


def main() -> None:
    """Check, measure, write; exit 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--golden", type=Path, default=ROOT / "../shared/golden")
    parser.add_argument("--full", nargs="*", default=["da3_small"], help="beginnings of the names of full-size cases")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 8])
    parser.add_argument(
        "--trained", type=Path, help="nano's FP8 student, for accuracy (lean3r distill --student-plan fp8)"
    )
    parser.add_argument("--file-model", default="vggt")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; a temporary folder otherwise")
    parser.add_argument("--out", default="fp8")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, model, folder = given.child
        print(json.dumps(child(what, model, Path(folder))))
        return
    earlier = RESULTS / f"{given.out}.json"
    result: dict = json.loads(earlier.read_text()) if earlier.exists() and set(given.parts) != set(PARTS) else {}
    result |= {"hardware": hardware(), "plan": resolve_plan("fp8").as_dict(), "limits": LIMITS}
    missed: dict[str, list[str]] = result.get("missed", {})
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result["check"] = check(Path(folder))
        for part in given.parts:
            started = time.perf_counter()
            result[part], missed[part] = {
                "noise": noise,
                "kv": key_values,
                "outputs": lambda: outputs(given.golden, given.full),
                "accuracy": lambda: accuracy(given.scenes, given.views, given.trained),
                "bytes": weight_bytes,
                "files": lambda: files(given.file_model, Path(folder)),
                "speed": speed,
            }[part]()
            print(f"  {part} took {time.perf_counter() - started:.0f} s", flush=True)
    result["missed"] = missed
    lines = [line for part in given.parts for line in missed[part]]
    print(write_result(given.out, result), *lines, sep="\n")
    if lines:
        raise SystemExit(1)


def check(folder: Path) -> dict[str, str]:
    """Numbers are the same by every way; AssertionError otherwise."""
    source, out = folder / "nano.safetensors", folder / "nano-fp8.safetensors"
    dense = lean3r.load("nano")
    save_model(dense, source)
    for plan in ("fp8", "int8-dynamic"):
        compress_file("nano", source, out, resolve_plan(plan), overwrite=True)
        whole = lean3r.compress(dense, plan).state_dict()
        for other in (lean3r.load("nano", weights=out), lean3r.load("nano", weights=source, plan=plan)):
            for name, value in other.state_dict().items():
                assert value.dtype == whole[name].dtype and torch.equal(value.float(), whole[name].float()), name
        prepared = prepare(dense, plan)
        converted = dict(convert(prepared).named_modules())
        for name, module in prepared.named_modules():
            if isinstance(module, Rounded):
                coded = converted[name]
                assert isinstance(coded, Coded) and torch.equal(coded.dequantize(), module.round_weight()), name
    print("check: the same numbers by every way", flush=True)
    return {"stored, read and converted": "equal", "operands of prepared and converted": "equal"}


def noise() -> tuple[dict[str, float], list[str]]:
    """Decibels of the pieces, on normal numbers, VGGT's widths."""
    torch.manual_seed(0)
    x = torch.randn(1024, 1024)
    found = {"cast": snr_db(dequantize(*quantize_rows(x)), x)}
    layer = nn.Sequential(nn.Linear(1024, 1024))
    rounded = prepare(layer, _every("fp8"))
    given, found["linear"] = x.clone().requires_grad_(), snr_db(rounded(x), layer(x))
    cotangent = torch.randn(1024, 1024)
    exact = torch.autograd.grad(layer(given), (given, layer[0].weight), cotangent)
    near = torch.autograd.grad(rounded(given), (given, layer[0].weight), cotangent)
    found["linear gradient"] = min(snr_db(b, a) for a, b in zip(exact, near, strict=True))
    feed = nn.Sequential(Mlp(1024, 4096))
    found["feed-forward"] = snr_db(prepare(feed, _every("fp8"))(x), feed(x))
    found = {name: round(value, 1) for name, value in found.items()}
    print("noise:", found, flush=True)
    return found, [f"{name} {found[name]} dB, floor {floor}" for name, floor in FLOORS.items() if found[name] < floor]


def key_values() -> tuple[dict[str, dict[str, float]], list[str]]:
    """Decibels of attention over rounded keys and values, the worst of the layers and the mean."""
    from accuracy import held_out

    torch.manual_seed(0)
    found = {}
    q, k, v = torch.randn(3, 1, 4, 2048, 64).unbind()
    lists = torch.rand(1, 4, 32, 32).topk(12).indices.int()
    for size in (1, 3):
        exact, near = (
            block_sparse_attention(size * q, k, v, lists, query_block=64, key_block=64, kv=kv) for kv in ("full", "fp8")
        )
        found[f"normal numbers, queries x {size}"] = {"worst_db": round(snr_db(near, exact), 1)}
    views = Views(held_out(8, 1)[0].images)
    for name, settings in (("gsa", {"top_k": 16}), ("sla", {})):
        step = {"target": "global blocks", "mechanism": name, "settings": settings}
        model = lean3r.compress(lean3r.load("nano"), {"steps": [step]})
        layers = [m for m in model.modules() if isinstance(m, Gsa | SLA)]
        decibels: list[float] = []

        def compare(layer: nn.Module, inputs: tuple, out: Tensor, decibels: list[float] = decibels) -> None:
            layer.kv = "fp8"  # type: ignore[assignment]
            decibels.append(snr_db(layer.forward(*inputs), out))
            layer.kv = "full"  # type: ignore[assignment]

        for layer in layers:
            layer.register_forward_hook(compare)
        predict(model, views)
        found[f"nano, {name}"] = {
            "worst_db": round(min(decibels), 1),
            "mean_db": round(statistics.mean(decibels), 1),
        }
    print("kv:", found, flush=True)
    low = [f"kv fp8: {name} {row['worst_db']} dB" for name, row in found.items() if row["worst_db"] < KV_FLOOR]
    return found, low


def outputs(golden: Path, full: list[str]) -> tuple[dict, list[str]]:
    """Decibels of every output of the golden cases, fp8 and fp8-weight against float32."""
    from half_precision import decibels_by_case

    if not golden.is_dir():
        return {"skipped": f"no {golden.name}"}, []
    plans = ("fp8", "fp8-weight")
    forms = {plan: (lambda model, plan=plan: lean3r.compress(model, plan), torch.float32) for plan in plans}
    return dict(decibels_by_case(golden, full, forms)), []


def accuracy(scenes: int, view_counts: list[int], trained: Path | None) -> tuple[dict, list[str]]:
    """nano's figures on the same held-out scenes by plan, and what each plan loses; `trained` is its FP8 student."""
    from accuracy import held_out, short

    from lean3r.eval.synthetic import score_scenes

    dense, rows, missed = lean3r.load("nano"), {}, []
    models = {"float32": dense} | {p: lean3r.compress(dense, p) for p in ("fp8", "fp8-weight", "int8-dynamic")}
    if trained is not None:
        models["fp8 trained"] = lean3r.load("nano", weights=str(trained))
    for views in view_counts:
        batches = held_out(views, scenes)
        row = rows[str(views)] = {}
        for name, model in models.items():
            row[name] = score_scenes(lambda v, model=model: predict(model, v), batches)
            print(f"{views:3d} views {name:13s} {short(row[name])}", flush=True)
        for name in models:
            loss = row["float32"]["auc30"] - row[name]["auc30"]
            rise = 100 * (row[name]["abs_rel"] / row["float32"]["abs_rel"] - 1)
            row[name] |= {"auc30_loss": round(loss, 3), "abs_rel_rise_percent": round(rise, 3)}
            if name == "fp8" and (loss > LIMITS["auc30"] or rise > LIMITS["abs_rel_percent"]):
                missed.append(f"nano, {views} views: AUC@30 loses {loss:.2f} points, AbsRel rises {rise:.2f} %")
    return {"scenes": scenes, "weights_hash": dense.origin.hash, "views": rows}, missed


def weight_bytes() -> tuple[dict, list[str]]:
    """Gigabytes of parameters and buffers of whole models by form."""
    table = {}
    for name in ("nano", "vggt", "pi3", "da3-large", "da3-giant"):
        dense = without_memory(MODELS.get(name))
        small = _kept(lean3r.compress(dense, "fp8"))
        whole = dense.parameter_count
        row = {"float32_gb": 4 * whole / 1e9, "bfloat16_gb": 2 * whole / 1e9, "fp8_gb": small / 1e9}
        table[name] = {key: round(value, 4) for key, value in row.items()} | {"of_bfloat16": small / (2 * whole)}
        print(name, table[name], flush=True)
    over = table["vggt"]["fp8_gb"] > LIMITS["vggt_gb"]
    return table, [f"VGGT needs {table['vggt']['fp8_gb']} GB in FP8"] if over else []


def files(name: str, folder: Path) -> tuple[dict, list[str]]:
    """A synthetic checkpoint compressed by the command's own function, in a process of its own."""
    source = synthetic_file(name, folder)
    row = run_child("compress", name, folder)
    row["float32_gb"] = round(source.stat().st_size / 1e9, 4)
    row["fp8_gb"] = round((folder / f"{name}-fp8.safetensors").stat().st_size / 1e9, 4)
    row["peak_over_larger_file"] = round(row["peak_bytes"] / source.stat().st_size, 4)
    row |= {"load": run_child("load", name, folder)}
    row["load"]["peak_over_kept"] = round(row["load"]["peak_bytes"] / row["load"]["kept_bytes"], 3)
    source.unlink()
    print(f"files {name}:", row, flush=True)
    over = row["peak_over_larger_file"] > LIMITS["compress_peak"]
    return {name: row}, [f"compressing {name} took {row['peak_over_larger_file']} of the larger file"] if over else []


def speed() -> tuple[dict, list[str]]:
    """Medians of runs by turns, and what nano's quantised layers take of it."""
    torch.manual_seed(0)
    dense = lean3r.load("nano")
    views = Views(torch.rand(1, 8, 3, 240, 240))
    stack = nn.Sequential(*(Mlp(1024, 4096) for _ in range(6))).eval()
    plans = ("int8-dynamic", "fp8", "fp8-weight")
    nano = {"float32": dense} | {plan: lean3r.compress(dense, plan) for plan in plans}
    large = {"float32": stack} | {plan: lean3r.compress(stack, _every(plan)) for plan in plans}
    small = lean3r.load("nano", plan="int8-dynamic")
    found: dict = {
        "nano, 8 views of 240 x 240": by_turns({n: lambda m=m: predict(m, views) for n, m in nano.items()}, 9)
    }
    for tokens in (300, 1374, 2 * 1374):
        x = torch.randn(tokens, 1024)
        name = f"6 feed-forward parts of VGGT, {tokens:,} tokens"
        found[name] = by_turns({n: lambda m=m, x=x: m(x) for n, m in large.items()}, 5)
    missed = []
    for name, row in found.items():
        print(f"speed {name}:", row, flush=True)
        if row["int8-dynamic"]["cpu_of_float32"] > 1:
            missed.append(f"int8-dynamic is no faster than float32: {name}")
    layers = [name for name, module in small.named_modules() if isinstance(module, Coded)]
    found["nano's quantised layers"] = share = {
        "float32": share_of(dense, layers, views, 9),
        "int8-dynamic": share_of(small, layers, views, 9),
    }
    print("speed, nano's quantised layers:", share, flush=True)
    return found, missed


def synthetic_file(name: str, folder: Path) -> Path:
    """A float32 checkpoint under official names, never whole in memory: random matrices that keep a signal's size."""
    model = without_memory(MODELS.get(name))
    named = model.KEY_MAP.write(model.state_dict())
    like = {key: value.float() if value.is_floating_point() else value for key, value in named.items()}
    path = folder / f"{name}-float32.safetensors"
    generator = torch.Generator().manual_seed(0)

    def values() -> Iterator[tuple[str, Tensor]]:
        for key, value in like.items():
            if value.ndim < 2:  # gains of norms and branches are 1, offsets 0
                yield key, torch.full(value.shape, 0 if "bias" in key else 1, dtype=value.dtype)
            else:
                size = (value.numel() // value.shape[0]) ** -0.5
                yield key, (size * torch.randn(value.shape, generator=generator)).to(value.dtype)

    write_stream(path, like, values(), {"model": name})
    return path


def run_child(what: str, name: str, folder: Path) -> dict:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--child", what, name, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def child(what: str, name: str, folder: Path) -> dict:
    """Peak and seconds of compressing a file or of loading the outcome; nano's own run comes before, uncounted."""
    small = lean3r.load("nano", plan="fp8")
    predict(small, Views(torch.rand(1, 2, 3, 96, 96)))
    del small
    gc.collect()
    before, started, row = resident("VmRSS"), time.perf_counter(), {}
    fp8 = folder / f"{name}-fp8.safetensors"
    if what == "compress":
        compress_file(name, folder / f"{name}-float32.safetensors", fp8, resolve_plan("fp8"), overwrite=True)
    else:
        row["kept_bytes"] = _kept(lean3r.load(name, weights=fp8))
    peak = max(LEAST, resident("VmHWM") - before)
    return {**row, "peak_bytes": peak, "seconds": round(time.perf_counter() - started, 2)}


def resident(key: str) -> int:
    """A figure of this process's memory in bytes."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"no {key} in /proc/self/status")
    return 1024 * int(found.group(1))


def _every(scheme: str) -> dict:
    return {"steps": [{"quantize": scheme, "target": "every linear"}]}


def _kept(model: nn.Module) -> int:
    return sum(v.nbytes for v in {id(v): v for v in model.state_dict(keep_vars=True).values()}.values())


if __name__ == "__main__":
    main()
