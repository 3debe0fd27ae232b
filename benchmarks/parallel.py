"""Do several processes find what one finds in a scene, and what does it cost each of them?

    python benchmarks/parallel.py [--only equality|memory|bytes ...]

Processes of this machine, by gloo, one thread each. Writes benchmarks/results/parallel.json, where parts that --only
leaves out keep their rows; exit 1 if results differ, or if a process sends other bytes than the formula says.

Equality: nano, with dense attention and with gsa, on a rendered room, VGGT, Pi3 and da3-small with random weights on
noise; the largest difference to one process, relative to the largest value of depth, confidence, poses or intrinsics.
nano-gsa-fp8 rounds activations to 8 bits, which turns differences of the last bit into steps: of it the median relative
difference of depth is beside that of one process when noise of 1e-7 is added to the pictures.

Memory: VGGT of a small width with random weights; the largest resident memory (VmHWM, reset before the network runs;
Linux) over that with the model loaded and the pictures of the share in memory, on the process that has most. One view
at a time in encoder and heads, so that their working memory does not hide the rest. Fitted: constant + a / processes.

Bytes: what process 0 has sent in the blocks across views, by purpose, of nano (dense) and nano-gsa-fp8 on a rendered
room, of windows what all processes have sent; "block" is that of one block, windows as the mean of the processes;
"wire" is what the network interface of this machine (lo) has counted for the whole run, which others may use too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from common import RESULTS, hardware, write_result

from lean3r.compress import compress
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.group import Group, Share
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.shared import part_of
from lean3r.models.vggt import Vggt, VggtConfig
from lean3r.pipeline.load import load
from lean3r.pipeline.predict import predict
from lean3r.pipeline.together import predict_together, take_share
from lean3r.processes import memory_status_mb
from lean3r.types import Prediction, Views

LIMIT = 1e-5
SIZES = (1, 2, 4)
WIDE = VggtConfig(
    width=256, heads=8, encoder_depth=2, pairs=4, keep=(0, 1, 2, 3), features=32, channels=(32, 32, 32, 32),
    point_head=False, track_head=False,
)  # fmt: skip
MEMORY = {"views": 32, "height": 252, "width": 336}
NANO = {"nano": "nano, dense", "nano-gsa-fp8": "nano-gsa-fp8"}
BYTES = [(views, 4) for views in (8, 16, 32, 64)]
EQUALITY = {
    "nano, a room": ("nano", 9),
    "nano with gsa, a room": ("nano-gsa", 9),
    "nano-gsa-fp8, a room": ("nano-gsa-fp8", 9),
    "vggt": ("vggt", 5),
    "pi3": ("pi3", 5),
    "da3-small": ("da3-small", 5),
}


def main() -> None:
    """Measure, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[], list[dict]]] = {"equality": equality, "memory": memory, "bytes": sent_bytes}
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        child(*given.child)
        return
    sys.argv[1:] = []  # the record is that of all parts, whichever ran last
    path = RESULTS / "parallel.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    for name in given.only:  # written one by one: an interrupted run keeps its rows
        result[name] = parts[name]()
        settings = {"memory": MEMORY | {"model": vars(WIDE)}}
        write_result("parallel", {"hardware": hardware(), "limit": LIMIT, "settings": settings} | result)
    wrong = [row for row in result.get("equality", ()) if row.get("error", 0) > LIMIT]
    wrong += [row for row in result.get("bytes", ()) if row["bytes"] != row["formula"]]
    print(path, *wrong, sep="\n")
    if wrong:
        raise SystemExit(1)


def equality() -> list[dict]:
    """The difference to one process, of every setting."""
    rows = []
    for name, (model, views) in EQUALITY.items():
        for size in SIZES[1:]:
            found = run("equality", {"model": model, "views": views}, size)[0]
            rows.append({"setting": name, "views": views, "processes": size, **found})
            print(rows[-1], flush=True)
    return rows


def memory() -> list[dict]:
    """Peak memory of the process that takes most, and the fit over the numbers of processes."""
    rows = []
    for plan in ("dense", "gsa"):
        peaks = []
        for size in SIZES:
            found = run("memory", {"plan": plan}, size)
            peaks.append(max(each["mb"] for each in found))
            rows.append({"plan": plan, "processes": size, "mb": peaks[-1], "of_each_mb": [e["mb"] for e in found]})
            print(rows[-1], flush=True)
        shares = np.stack([np.ones(len(SIZES)), 1 / np.array(SIZES)], 1)
        constant, slope = np.linalg.lstsq(shares, np.array(peaks), rcond=None)[0]
        rows.append({"plan": plan, "constant_mb": float(constant), "shared_mb": float(slope)})
        print(rows[-1], flush=True)
    return rows


def sent_bytes() -> list[dict]:
    """What process 0 sends for one block across views, and what the formulas say."""
    rows = []
    for model in NANO:
        for views, size in BYTES:
            found = run("bytes", {"model": model, "views": views}, size)
            sent, blocks = found[0]["sent"], found[0]["blocks"]
            formula = formulas(found, model != "nano", views, size)
            counted = {name: sent.get(name, 0) for name in formula}
            if "windows" in formula:  # those of all processes: what one asks for, others send
                counted["windows"] = sum(each["sent"]["windows"] for each in found)
            block = sum(value / blocks / (size if name == "windows" else 1) for name, value in counted.items())
            asked, all_of = (sum(each[key] for each in found) for key in ("asked", "windows"))
            row = {"model": NANO[model], "views": views, "processes": size, "blocks": blocks, "bytes": counted}
            row |= {"formula": formula, "block": block, "matches": sent["matches"], "wire": found[0]["wire"]}
            row |= {"counted_by_all": sum(sum(each["sent"].values()) for each in found)}
            rows.append(row | ({"windows_fetched": asked / all_of} if all_of else {}))
            print(rows[-1], flush=True)
    return rows


def formulas(found: list[dict], sparse: bool, views: int, size: int) -> dict[str, int]:
    """Bytes that process 0 sends in all blocks, of windows all processes, in float32: the page has them in words."""
    shape, blocks = found[0]["shape"], found[0]["blocks"]
    longest, channels, tokens, special = -(-views // size), shape["width"], shape["tokens"], shape["special"]
    if not sparse:
        return {"keys": blocks * 2 * (size - 1) * longest * tokens * channels * 4}
    head, heads = channels // shape["heads"], shape["heads"]
    answers = (views - longest) * special * heads * (head + 1) * 4
    return {
        "coarse": blocks * 2 * (size - 1) * longest * shape["windows"] * channels * 4,
        "special": blocks * (3 * (size - 1) * longest * special * channels * 4 + answers),
        "windows": sum(each["asked"] for each in found) * 2 * 16 * head * 4,
    }


def run(job: str, settings: dict[str, Any], size: int) -> list[dict]:
    """A job on so many fresh processes: what each of them prints."""
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps(settings | {"job": job, "rendezvous": f"{folder}/rendezvous", "size": size})
        # Freed tensors go back to the system at once: what remains is what is needed.
        quiet = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--child", str(rank), given],
                env=os.environ | quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(size)
        ]  # fmt: skip
        done = [each.communicate() for each in started]
    for each, (_, said) in zip(started, done, strict=True):
        if each.returncode:
            raise SystemExit(f"{job} {settings} on {size} processes: {said}")
    return [json.loads(out.splitlines()[-1]) for out, _ in done]


def child(rank: str, given: str) -> None:
    """One process of a job."""
    settings = json.loads(given)
    where = f"file://{settings['rendezvous']}"
    dist.init_process_group("gloo", where, timedelta(hours=1), world_size=settings["size"], rank=int(rank))
    assert dist.group.WORLD is not None
    group = Group(dist.group.WORLD)
    jobs = {"equality": of_equality, "memory": of_memory, "bytes": of_bytes}
    print(json.dumps(jobs[settings["job"]](group, settings)))


def of_equality(group: Group, settings: dict[str, Any]) -> dict:
    """The largest relative difference to one process."""
    model, views = build(settings["model"]), pictures(settings["model"], settings["views"])
    if group.rank:
        take_share(model, group)
        return {}
    found, expected = predict_together(model, views, None, group), predict(model, views)
    if "fp8" in settings["model"]:
        noise = 1e-7 * torch.randn(views.images.shape, generator=torch.Generator().manual_seed(2))
        other = predict(model, Views(views.images + noise))
        return {"median": median(found, expected), "median_of_noise": median(other, expected)}
    worst = 0.0
    for name in ("depth", "conf", "cam_from_world", "intrinsics"):
        one, other = getattr(expected, name), getattr(found, name)
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp_min(1)))
    return {"error": worst}


def median(found: Prediction, expected: Prediction) -> float:
    """The median relative difference of depth."""
    assert found.depth is not None and expected.depth is not None
    return float((found.depth / expected.depth - 1).abs().median())


def of_memory(group: Group, settings: dict[str, Any]) -> dict:
    """Peak resident memory over that with model and pictures, in MB; each process makes the pictures of its share."""
    torch.manual_seed(0)
    model: Backbone = Vggt(WIDE).eval()
    model.set_chunk_bytes(1)
    if settings["plan"] != "dense":
        model = compress(model, settings["plan"])
    share = Share.of(group, MEMORY["views"])
    images = torch.rand(1, share.count, 3, MEMORY["height"], MEMORY["width"])
    with torch.inference_mode():  # the first run of a process allocates for good
        model(Views(images[:, :1, :, :56, :56]))
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_status_mb("VmRSS")
    with torch.inference_mode():
        model(Views(images, share=share))
    peak = memory_status_mb("VmHWM")
    assert before is not None and peak is not None, "memory is measured on Linux only"
    return {"mb": peak - before}


def of_bytes(group: Group, settings: dict[str, Any]) -> dict:
    """What this process has sent, and what it was asked for."""
    name = settings["model"]
    model, views = build(name), pictures(name, settings["views"])
    part = part_of(views, Share.of(group, settings["views"]), group.rank)
    blocks = [b for r, b in zip(model.trunk.schedule, model.trunk.blocks, strict=True) if r == "global"]  # type: ignore
    group.gather(torch.zeros(1), [1] * group.size, "start")
    group.sent.clear()
    before = wire()
    with torch.inference_mode():
        layout = model.encode(part).layout
    sent = dict(group.sent)
    group.gather(torch.zeros(1), [1] * group.size, "end")
    attention: Any = blocks[0].attn
    width, heads = attention.qkv.in_features, attention.heads
    asked = sent.get("requests", 0) // 4
    count = -(-layout.rows // 4) * -(-layout.cols // 4)
    elsewhere = (settings["views"] - part.images.shape[1]) * count * heads * len(blocks)
    shape = {"width": width, "heads": heads, "tokens": layout.tokens, "special": layout.special, "windows": count}
    return {
        "sent": sent, "wire": wire() - before, "blocks": len(blocks), "shape": shape,
        "asked": asked, "windows": elsewhere if asked else 0,
    }  # fmt: skip


def build(name: str) -> Backbone:
    """Shipped weights of nano and its student; small random models otherwise."""
    if name == "nano-gsa":
        return compress(load("nano", device="cpu", dtype="float32"), "gsa:top_k=12,dense_below=0")
    if name in NANO:
        return load(name, device="cpu", dtype="float32")
    torch.manual_seed(0)
    kind = MODELS.get(name)
    model = kind(kind.SMALLEST)
    for key, parameter in model.named_parameters():  # so that every branch shows
        if key.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.2, 0.6)
    return model.eval()


def pictures(name: str, views: int) -> Views:
    """A rendered room for nano, noise for random weights."""
    if name.startswith("nano"):
        return Views(SyntheticWorld(seed=5, views=views, height=240, width=240).batch(0, 1).images)
    return Views(torch.rand(1, views, 3, 70, 42, generator=torch.Generator().manual_seed(1)))


def wire() -> int:
    """Bytes that the network interface of this machine has carried."""
    rows = (line.split() for line in Path("/proc/net/dev").read_text().splitlines())
    return next(int(row[1]) for row in rows if row and row[0] == "lo:")


if __name__ == "__main__":
    main()
