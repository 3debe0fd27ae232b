"""Does the peak memory predicted by `--memory` agree with the measured one?

    python benchmarks/memory_budget.py [--only NAME ...]

Each setting is a separate process, with random pictures and, except for nano, random weights. On a CPU the measure is
the process's largest resident memory (VmHWM; Linux), on a GPU the peak of torch's allocator. Before the figures count,
smaller chunks must give the same results as the usual ones. Limit: 15 % of the measured peak. Seconds were measured on
a shared machine. Writes benchmarks/results/memory_budget.json, where settings that --only leaves out keep their rows;
exit 1 if a prediction is off.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, hardware, write_result

from lean3r.export import export
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.pipeline.budget import Budget
from lean3r.pipeline.load import load
from lean3r.pipeline.reconstruct import reconstruct
from lean3r.types import Views

LIMIT = 0.15
ROOM = 10**13  # a budget that changes nothing
SETTINGS = {
    "nano, 4 small views": ("nano", 4, 192, 256, {}),
    "nano, 24 small views": ("nano", 24, 192, 256, {}),
    "nano, 4 large views": ("nano", 4, 384, 512, {}),
    "nano, 12 large views": ("nano", 12, 384, 512, {}),
    "nano, 12 views, files written": ("nano", 12, 192, 256, {"writes": True}),
    "da3-small, 4 views": ("da3-small", 4, 280, 378, {}),
    "da3-small, 8 views, one at a time": ("da3-small", 8, 280, 378, {"chunk_bytes": 1}),
    "pi3 of a third of the width, 6 views": ("pi3-like", 6, 280, 378, {}),
    "pi3 of a third of the width, 6 views, bfloat16": ("pi3-like", 6, 280, 378, {"dtype": "bfloat16"}),
}


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(*SETTINGS[given.child])))
        return
    difference = difference_of_chunks()
    print(f"smaller chunks: depth differs by {difference:.1e} of its mean", flush=True)
    path = RESULTS / "memory_budget.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {row["setting"]: row for row in before if row["setting"] in SETTINGS}
    for name in given.only:  # written one by one: an interrupted run keeps its rows
        rows[name] = {"setting": name, **run(name)}
        ordered = [rows[setting] for setting in SETTINGS if setting in rows]
        result = {"hardware": hardware(), "limit": LIMIT, "difference_of_chunks": difference, "rows": ordered}
        write_result("memory_budget", result)
    print(path)
    if difference > 1e-4 or any(abs(rows[name]["error"]) > LIMIT for name in given.only):
        raise SystemExit(1)


def run(name: str) -> dict:
    """One setting in a separate process."""
    done = subprocess.run([sys.executable, __file__, "--child", name], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    row = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{name:<48} {row['predicted_mb']:8.1f} {row['measured_mb']:8.1f} MB {100 * row['error']:+6.1f} %", flush=True
    )
    return row


def measure(kind: str, views: int, height: int, width: int, options: dict) -> dict:
    """In a fresh process: predicted and measured peak of one run."""
    model = build(kind)
    model.set_chunk_bytes(options.get("chunk_bytes", model.chunk_bytes))
    if "dtype" in options:
        model.origin = origin(options["dtype"])
    device = next(model.parameters()).device
    pictures = Views(torch.rand(1, views, 3, height, width))
    started = time.perf_counter()
    writes = options.get("writes", False)
    scene = reconstruct(model, pictures, memory=Budget(ROOM, writes=writes), refine="off")
    seconds = time.perf_counter() - started
    if writes:
        with tempfile.TemporaryDirectory() as folder:
            export(scene, Path(folder, "out"))
    measured = scene.info["peak_gpu_memory_mb"] if device.type == "cuda" else highest_mb()
    predicted = scene.info["memory"]["predicted_mb"]
    return {
        "predicted_mb": predicted,
        "measured_mb": round(measured, 1),
        "error": round(predicted / measured - 1, 4),
        "seconds": round(seconds, 2),
    }


def build(kind: str) -> Backbone:
    """A model on the GPU if there is one; random weights except for nano."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    if kind == "nano":
        return load("nano", device=device, dtype="float32")
    small = Pi3Config(width=384, heads=6, encoder_depth=8, depth=12, camera_width=128)
    model: Backbone = Pi3(small) if kind == "pi3-like" else MODELS.get(kind)()
    return model.to(device).eval()


def origin(dtype: str):
    """As `load` notes the number type."""
    from lean3r.models.origin import Origin
    from lean3r.pipeline.load import DTYPES

    return Origin("random", "", DTYPES[dtype])


def difference_of_chunks() -> float:
    """Mean difference of depth between usual and smallest chunks, over the mean depth."""
    model = build("nano")
    pictures = Views(torch.rand(1, 6, 3, 96, 128))
    usual = reconstruct(model, pictures, refine="off").depth
    model.set_chunk_bytes(1)
    return float(np.abs(reconstruct(model, pictures, refine="off").depth - usual).mean() / usual.mean())


def highest_mb() -> float:
    """Largest resident memory of this process so far, in MB of 10^6 bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("no VmHWM in /proc/self/status")
    return 1024 * int(found[1]) / 1e6


if __name__ == "__main__":
    main()
