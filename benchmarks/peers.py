"""Memory and time of a forward pass compared with the official programs: same weights, pictures and outputs.

    python benchmarks/peers.py [--models vggt pi3 da3-large] [--views 8 16] [--size 168 224] [--dtypes float32 bfloat16]
                               [--peer vggt=PATH] [--peer pi3=PATH] [--name peers]

Agreement of the outputs is checked first (2e-5 relative RMS, float32). Then each program runs in separate processes,
one for each number of views and number type: a small warm-up, then `--repeats` runs, medians. "activation_mb" is the
peak of resident memory during the runs less what was resident before them (weights, libraries); "weights_mb" is the
weights alone. Both sides give what the official forward pass gives; "product" is our usual run (cameras and depth
only). bfloat16 is autocast over float32 weights for both. Peers that are neither installed nor named are skipped with
the reason; for them earlier official figures, from another machine state, are repeated as a reference, and no ratio is
formed. Writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import hardware, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))
from official import PEERS, PeerAbsent, build_ours, build_peer, differences, parse_clones, run_ours

from lean3r.types import Views

AGREE = 2e-5
MB = 1e6
REFERENCE = {
    "note": "official programs, float32, 168x224, 2 cores, 8 / 16 views; measured earlier, in another machine state",
    "vggt": {"8": {"seconds": 20, "activation_mb": 975}, "16": {"seconds": 41, "activation_mb": 1435}},
    "pi3": {"8": {"seconds": 20, "activation_mb": 596}, "16": {"seconds": 53, "activation_mb": 1708}},
    "da3-large": {"8": {"seconds": 8, "activation_mb": 899}, "16": {"seconds": 17, "activation_mb": 1012}},
}
AIMS = {"activation": 0.5, "float32 time": 0.9, "bfloat16 time": 0.5}


def pictures(views: int, height: int, width: int) -> torch.Tensor:
    """[1, views, 3, height, width], smooth."""
    noise = torch.rand(1, views * 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1).unflatten(1, (views, 3))


def status_mb(field: str) -> float:
    """A field of this process's memory status (VmRSS, VmHWM) in MB."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024 / MB


def agreement(name: str, clones: dict[str, Path]) -> dict[str, float]:
    """Relative RMS of each official output at a small size."""
    images = pictures(3, 70, 98)
    network = build_peer(name, clones)
    with torch.inference_mode():
        theirs = PEERS[name].call(network, images)
        del network
        found = differences(name, run_ours(build_ours(name), images), theirs)
    assert max(found.values()) <= AGREE, f"{name} differs from the official program: {found}"
    return found


def measure(
    name: str, who: str, views: int, size: list[int], dtype: str, repeats: int, clones: dict[str, Path]
) -> dict:
    """Seconds, CPU seconds and memory of one program in this process."""
    model = build_peer(name, clones) if who == "official" else build_ours(name)
    weights_mb = sum(p.nbytes for p in {id(p): p for p in model.parameters()}.values()) / MB
    cast = contextlib.nullcontext() if dtype == "float32" else torch.autocast("cpu", getattr(torch, dtype))
    images = pictures(views, *size)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    before = status_mb("VmRSS")
    seconds, cpu_seconds = [], []
    with torch.inference_mode(), cast:
        for given in (images[:, :2, :, :56, :56], *[images] * repeats):
            start, cpu = time.perf_counter(), time.process_time()
            if who == "official":
                PEERS[name].call(model, given)
            elif who == "ours" and not name.startswith("da3"):
                run_ours(model, given)
            else:  # the official forward pass of Depth Anything 3 returns no more than this
                model(Views(given))
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu)
    return {
        "seconds": round(statistics.median(seconds[1:]), 2),
        "cpu_seconds": round(statistics.median(cpu_seconds[1:]), 2),
        "activation_mb": round(status_mb("VmHWM") - before),
        "weights_mb": round(weights_mb),
        "resident_before_mb": round(before),
        "runs": repeats,
    }


def in_process(options: argparse.Namespace, *arguments: str) -> dict:
    """One measurement by this script in a separate process."""
    peers = [text for pair in options.peer for text in ("--peer", pair)]
    size = ["--size", *map(str, options.size), "--repeats", str(options.repeats)]
    done = subprocess.run([sys.executable, __file__, *arguments, *size, *peers], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, options: argparse.Namespace) -> dict:
    """Everything about one model."""
    result: dict = {"reference_official": REFERENCE.get(name)}
    sides = ["ours"] if name.startswith("da3") else ["ours", "product"]
    answer = in_process(options, "--agree", name)
    result["official"] = answer.get("absent", "measured")
    if "absent" in answer:
        print(f"{name}: official program skipped: {answer['absent']}", flush=True)
    else:
        result["relative_rms"] = answer
        sides.append("official")
        print(f"{name}: outputs agree, {max(answer.values()):.1e} at most", flush=True)
    for dtype in options.dtypes:
        for views in map(str, options.views):
            found = {who: in_process(options, "--one", name, who, views, dtype) for who in sides}
            if "official" in found:
                base = result.get("float32", {}).get(views, found)["official"]
                found["ratio_to_official_float32"] = {
                    key: round(found["ours"][key] / base[key], 3) for key in ("seconds", "cpu_seconds", "activation_mb")
                }
            result.setdefault(dtype, {})[views] = found
            print(name, dtype, views, "views", json.dumps(found), flush=True)
    return result


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["da3-large", "vggt", "pi3"])
    parser.add_argument("--views", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--size", nargs=2, type=int, default=[168, 224])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--name", default="peers")
    parser.add_argument("--agree", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    clones = parse_clones(options.peer)
    if options.agree:
        try:
            print(json.dumps(agreement(options.agree, clones)))
        except PeerAbsent as reason:
            print(json.dumps({"absent": str(reason)}))
        return
    if options.one:
        name, who, views, dtype = options.one
        print(json.dumps(measure(name, who, int(views), options.size, dtype, options.repeats, clones)))
        return
    result = {"hardware": hardware(), "size": options.size, "aims": AIMS, "reference_note": REFERENCE["note"]}
    start = time.perf_counter()
    for name in options.models:
        result[name] = compare(name, options)
    result["minutes"] = round((time.perf_counter() - start) / 60, 1)
    print(write_result(options.name, result))


if __name__ == "__main__":
    main()
