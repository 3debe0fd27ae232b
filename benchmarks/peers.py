"""Memory and time of a forward pass compared with the official programs: same weights, pictures and outputs.

    python benchmarks/peers.py [--models vggt pi3 da3-large] [--views 8 16] [--size 168 224]
                               [--kinds float32 bfloat16 int8] [--peer vggt=PATH] [--peer pi3=PATH]
                               [--rounds 3] [--threads 2] [--name peers]

Agreement of the outputs is checked first (2e-5 relative RMS, float32). Then the official program, in float32, and
ours in each kind run in processes of their own, which stay and take turns: a small warm-up each, then `--rounds`
rounds, medians. They share the float32 weights. "activation_mb" is the peak of resident memory during a run less what
was resident before it. Both sides give what the official forward pass gives. Kinds: "float32"; "bfloat16", held and run
as `--dtype auto` does on a processor that multiplies it; "int8", the plan int8-dynamic, everything else in float32.
Peers that are neither installed nor named are skipped with the reason, and no ratio is formed.
benchmarks/results/NAME.json is written after every number of views; models of an earlier run stay in it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from common import RESULTS, hardware, write_result
from torch import Tensor, nn

from lean3r.bench.official import PEERS, PeerAbsent, build_ours, build_peer, differences, parse_clones, run_ours
from lean3r.compress import compress
from lean3r.models.base import Backbone
from lean3r.models.execution import hold, weight_bytes
from lean3r.types import Views

AGREE = 2e-5
MB = 1e6
AIMS = {"seconds": 0.35, "activation_mb": 0.35}
FORK = multiprocessing.get_context("fork")


def pictures(views: int, height: int, width: int) -> Tensor:
    """[1, views, 3, height, width], smooth."""
    noise = torch.rand(1, views * 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1).unflatten(1, (views, 3))


def status_mb(field: str) -> float:
    """A field of this process's memory status (VmRSS, VmHWM) in MB."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024 / MB


class Worker:
    """A process that runs one program when asked, and measures it."""

    def __init__(self, run: Callable[[Tensor], object], threads: int):
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(theirs, run, threads), daemon=True)
        self.process.start()

    def __call__(self, images: Tensor) -> dict[str, float]:
        """Seconds, CPU seconds and memory of one run."""
        self.pipe.send(images.numpy())
        return self.pipe.recv()


def serve(pipe: Connection, run: Callable[[Tensor], object], threads: int) -> None:
    """What a worker does: run pictures, send costs, until it is stopped."""
    torch.set_num_threads(threads)
    while True:
        images = torch.from_numpy(pipe.recv())
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
        before = status_mb("VmRSS")
        start, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            run(images)
        costs = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        pipe.send(costs | {"activation_mb": status_mb("VmHWM") - before})


def shared(ours: Backbone, official: nn.Module, prefix: str) -> Backbone:
    """Ours with the very tensors of the official network, wherever both have the same."""
    theirs = {prefix + key: value for key, value in official.named_parameters()}
    for key, value in list(ours.state_dict(keep_vars=True).items()):
        same = theirs.get(ours.KEY_MAP.official(key) or "")
        if same is not None and torch.equal(same, value):
            value.data = same.data
    return ours


def forward(name: str, model: Backbone, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], object]:
    """Our run of what the official forward pass returns; that of Depth Anything 3 returns no more than ours."""

    def run(images: Tensor) -> object:
        cast = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
        with cast:
            return model(Views(images)) if name.startswith("da3") else run_ours(model, images)

    return run


def compare(name: str, options: argparse.Namespace, clones: dict[str, Path]) -> dict:
    """Everything about one model."""
    ours, official = build_ours(name), None
    result: dict = {"official": "measured", "weights_mb": {}}
    workers: dict[str, Worker] = {}
    try:
        official = build_peer(name, clones)
    except PeerAbsent as reason:
        result["official"] = str(reason)
    if official is not None:
        ours = shared(ours, official, PEERS[name].prefix)
        few = pictures(3, 70, 98)
        with torch.inference_mode():
            result["relative_rms"] = differences(name, run_ours(ours, few), PEERS[name].call(official, few))
        assert max(result["relative_rms"].values()) <= AGREE, result["relative_rms"]
        workers["official"] = Worker(lambda images: PEERS[name].call(official, images), options.threads)
    print(name, result, flush=True)
    for kind in sorted(options.kinds, key="bfloat16".__eq__):  # last: it changes the weights, but not the workers'
        model = compress(ours, "int8-dynamic") if kind == "int8" else ours
        if kind == "bfloat16":
            hold(model, torch.bfloat16)
        result["weights_mb"][kind] = round(weight_bytes(model) / MB)
        workers[kind] = Worker(
            forward(name, model, torch.bfloat16 if kind == "bfloat16" else torch.float32), options.threads
        )
    for worker in workers.values():
        worker(pictures(2, 56, 56))
    for views in options.views:
        images = pictures(views, *options.size)
        rounds = [{who: worker(images) for who, worker in workers.items()} for _ in range(options.rounds)]
        found = {
            who: {key: round(statistics.median(r[who][key] for r in rounds), 2) for key in rounds[0][who]}
            for who in workers
        }
        for who in options.kinds if official is not None else ():
            base = found["official"]
            found[who]["ratio"] = {key: round(found[who][key] / base[key], 3) for key in base}
        result[str(views)] = found
        print(name, views, "views", json.dumps(found), flush=True)
        save(options, name, result)
    for worker in workers.values():
        worker.process.terminate()
    return result


def save(options: argparse.Namespace, name: str, result: dict) -> None:
    """Write one model's figures beside those that the file has already."""
    path = RESULTS / f"{options.name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    run = {"hardware": hardware() | {"threads": options.threads}, "size": options.size, "rounds": options.rounds}
    write_result(options.name, known | {"aims": AIMS, name: run | result})


def main() -> None:
    """Check, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["da3-large", "vggt", "pi3"])
    parser.add_argument("--views", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--size", nargs=2, type=int, default=[168, 224])
    parser.add_argument("--kinds", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="peers")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with a pool of threads must not fork
    for name in options.models:
        compare(name, options, parse_clones(options.peer))


if __name__ == "__main__":
    main()
