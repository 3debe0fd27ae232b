"""How many frames a second does LingBot-Map take on a GPU, exactly and with few pages, and is a replayed step the same?

    python benchmarks/gpu/stream_steps.py --out DIR [--device cuda]

Random weights made on the device (speed does not depend on them), products in bfloat16, pictures of 518 x 378 pixels, 8
anchors and a window of 64 keyframes, every frame a keyframe: a frame is a picture in the processor's memory, its result
camera, depth and confidence there. The clock runs once the window is full. "A quarter of the pages" sees of the window
the last 4 frames and the 12 nearest others. On a CPU everything is tiny.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rows import Rows
from tuning import found_before, pinned

from lean3r.layers import kv_cache
from lean3r.layers.frames import CachePolicy
from lean3r.models.execution import hold
from lean3r.models.lingbot import LingbotMap
from lean3r.recorded import Recorder
from lean3r.stream.cache import CacheResult, CacheStream
from lean3r.testing import snr_db

FRAMES = 100  # on the clock
LEAST_DB = 35.0  # bfloat16 in another order of summation
SIZE, SMALL = (378, 518), (28, 42)
FORMS = {"exact": {}, "a quarter of the pages": {"top_pages": 12, "recent": 4}}


def main() -> None:
    """Agreement first, then the clock."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    rows, cuda = Rows(options.out, "stream_steps", options.device), options.device == "cuda"
    model = make(options.device)
    policy = CachePolicy() if cuda else CachePolicy(anchors=2, window=4)
    with pinned(found_before([row for row in rows.all if row["part"] == "layer"])):
        rows.take("agreement", lambda: agreement(model, options.device))
        for name, settings in FORMS.items():
            few = settings if cuda or not settings else {"top_pages": 1, "recent": 1}
            rows.take(
                name, lambda few=few: speed(model, replace(policy, **few), SIZE if cuda else SMALL, options.device)
            )


def make(device: str) -> LingbotMap:
    """The network as `--dtype auto` runs it."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LingbotMap(None if device == "cuda" else LingbotMap.SMALLEST)
    model = hold(model.eval(), torch.bfloat16)
    model.origin = replace(model.origin, dtype=torch.bfloat16)
    model.set_chunk_bytes(1 << 30)
    return model


def pictures(count: int, size: tuple[int, int]) -> np.ndarray:
    """[count, H, W, 3] uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def stream(model: LingbotMap, policy: CachePolicy, frames: np.ndarray) -> tuple[list[CacheResult], int]:
    """All results, and the number of graphs."""
    found = CacheStream(model, policy)
    results = [result for frame in frames for result in found.push(frame)]
    return results, len(found._cache.recorder._found)


def agreement(model: LingbotMap, device: str) -> dict:
    """Of replayed steps with the same steps launched one by one, bit by bit; and with slices of the cache given to
    torch's attention, in decibels."""
    policy, frames = CachePolicy(anchors=2, window=3, interval=2), pictures(12, SIZE if device == "cuda" else SMALL)
    replayed, graphs = stream(model, policy, frames)
    with mock.patch.object(Recorder, "__call__", lambda self, key, run, *inputs, name: run(*inputs)):
        launched, _ = stream(model, policy, frames)
    with mock.patch.object(kv_cache, "reads_on_device", lambda x: False):
        sliced, _ = stream(model, policy, frames)
    parts = ("cam_from_world", "depth", "conf")
    same = all(
        torch.equal(getattr(a, p), getattr(b, p)) for a, b in zip(replayed, launched, strict=True) for p in parts
    )
    least = min(
        snr_db(getattr(a, p).double(), getattr(b, p).double())
        for a, b in zip(replayed, sliced, strict=True)
        for p in parts
    )
    found = {"bit by bit": same, "graphs": graphs, "least_db": round(min(least, 200.0), 1)}
    replays = graphs > 0 or device != "cuda"
    return found if same and replays and least >= LEAST_DB else {"failed": f"{found}, at least {LEAST_DB} dB expected"}


def speed(model: LingbotMap, policy: CachePolicy, size: tuple[int, int], device: str) -> dict:
    """Milliseconds of a frame, once the window is full."""
    cuda = device == "cuda"
    found, frames = CacheStream(model, policy), pictures(16, size)
    full = policy.anchors + policy.window + 4
    for number in range(full):
        found.push(frames[number % len(frames)])
    times = []
    for number in range(FRAMES if cuda else 2):
        begun = time.perf_counter()
        (result,) = found.push(frames[number % len(frames)])
        for part in (result.cam_from_world, result.intrinsics, result.depth, result.conf):
            part.cpu()
        times.append(1e3 * (time.perf_counter() - begun))
    middle = statistics.median(times)
    row = {
        "ms": round(middle, 2),
        "p95_ms": round(sorted(times)[int(0.95 * len(times))], 2),
        "fps": round(1e3 / middle, 1),
    }
    return (
        row
        | {"cache_gb": round(found.bytes / 1e9, 3), "stored": found.stored}
        | (profile(found, frames[0]) if cuda else {})
    )


def profile(found: CacheStream, frame: np.ndarray) -> dict:
    """Milliseconds of all kernels of a frame, and of those that take longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        found.push(frame)
        torch.cuda.synchronize()
    kernels = sorted(seen.key_averages(), key=lambda each: -each.self_device_time_total)
    total = sum(each.self_device_time_total for each in kernels) / 1e3
    largest = [
        {"kernel": each.key[:60], "ms": round(each.self_device_time_total / 1e3, 3), "launches": each.count}
        for each in kernels[:16]
    ]
    return {"kernels_ms": round(total, 2), "largest": largest}


if __name__ == "__main__":
    main()
