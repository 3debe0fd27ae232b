"""Exported models: are they the model, how large are they, and how fast on a CPU?

    python benchmarks/exports.py [--rounds 7]

nano as .onnx (onnxruntime) and as .pt2 (torch.export) against nano itself, in turns, on one thread each, on noise of
320 x 240 pixels; before that, the largest |file - model| / max(1, |model|) of each output. nano-gsa-fp8 likewise as
.onnx for few views and for many. The same differences for VGGT, Pi3, Depth Anything 3, Speed3R and LingBot-Map in their
smallest configurations, with random weights, as .onnx: pictures of 1, 2 and 5 views, other sizes than the graph was
recorded with. Writes benchmarks/results/exports.json; needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, hardware, write_result
from turns import one_thread

from lean3r.deploy import Exported, export_model
from lean3r.deploy.graph import outputs_of
from lean3r.models.base import Backbone
from lean3r.pipeline.load import load
from lean3r.types import Views

sys.path.insert(0, str(ROOT / "tests"))
from contracts.tiny import tiny

VIEWS, MANY, HEIGHT, WIDTH = (2, 8), 64, 240, 320
OTHERS = ("vggt", "pi3", "da3-small", "speed3r-pi3", "lingbot-map", "nano-stream")


def of_file(model: Backbone, path: Path, **options: bool) -> dict[str, Any]:
    """What export_model found out, and how long it took."""
    start = time.process_time()
    found: Exported = export_model(model, path, **options)
    row: dict[str, Any] = {"mb": found.bytes / 1e6, "differences": found.differences}
    row |= {key: found.details[key] for key in ("opset", "operators") if key in found.details}
    return row | {"export_cpu_s": time.process_time() - start}


def seconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each run, in turns, on the clock and of the processor."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            began, busy = time.perf_counter(), time.process_time()
            run()
            if number:
                wall[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - busy)
    return {name: {"wall_s": statistics.median(wall[name]), "cpu_s": statistics.median(cpu[name])} for name in runs}


def main() -> None:
    """Compare, then measure, and write the results."""
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    result: dict[str, Any] = {"others": {}}
    with tempfile.TemporaryDirectory() as name, one_thread(), torch.no_grad():
        folder = Path(name)
        nano = load("nano", None, "cpu", "float32")
        result["nano"] = {kind: of_file(nano, folder / f"nano{kind}") for kind in (".onnx", ".pt2")}
        session = onnxruntime.InferenceSession(folder / "nano.onnx", options)
        program = torch.export.load(folder / "nano.pt2").module()
        result["seconds"] = []
        for views in VIEWS:
            images = torch.rand(1, views, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(views))
            given = {"images": np.ascontiguousarray(images.numpy())}
            runs: dict[str, Callable[[], object]] = {
                "lean3r": lambda images=images: outputs_of(nano(Views(images))),
                "onnxruntime": lambda given=given: session.run(None, given),
                "torch.export": lambda images=images: program(images),
            }
            result["seconds"].append({"views": views, "rows": seconds(runs, rounds)})
            print(result["seconds"][-1], flush=True)
        student = load("nano-gsa-fp8", None, "cpu", "float32")
        path = folder / "many.onnx"
        result["student"] = {
            "few": of_file(student, folder / "few.onnx"),
            "many": of_file(student, path, many_views=True),
        }
        session = onnxruntime.InferenceSession(path, options)
        images = torch.rand(1, MANY, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(MANY))
        runs = {
            "lean3r": lambda: outputs_of(student(Views(images))),
            "onnxruntime": lambda: session.run(None, {"images": images.numpy()}),
        }
        result["student"]["seconds"] = {"views": MANY, "rows": seconds(runs, min(rounds, 3))}
        print(result["student"], flush=True)
        for other in OTHERS:
            result["others"][other] = of_file(tiny(other), folder / f"{other}.onnx")
            print(other, result["others"][other], flush=True)
    write_result("exports", {**result, "hardware": hardware() | {"threads": 1}})


if __name__ == "__main__":
    main()
