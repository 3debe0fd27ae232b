"""How long do whole models take by views, dense and with plans, and what memory?

    python benchmarks/gpu/whole_models.py --model pi3 --out DIR [--device cuda]

Pi3, VGGT or DA3-Large, random weights made on the device (speed does not depend on them), encoder and trunk held in
bfloat16, cameras and depth of 336 x 504 pixels, all computed. Kernels run in the configurations that part "layer"
found, without tuning. Dense attention is measured as long as a run takes less than DENSE_S by the law fitted so far;
beyond, its time is that law, a n + b n^2 with a, b >= 0 (linear layers and attention inside views; attention across
views), and the row says "extrapolated". On a CPU everything is tiny.
"""

from __future__ import annotations

import argparse
import gc
from functools import cache
from pathlib import Path
from typing import Any

import torch
from roofline import H200, MODELS
from rows import Rows, measure
from tuning import found_before, pinned

import lean3r.models
from lean3r.compress import compress, presets
from lean3r.compress.plan import CompressionPlan
from lean3r.models.base import Backbone
from lean3r.models.execution import accelerate, hold, weight_bytes
from lean3r.models.graphs import EncodeGraphs
from lean3r.testing import snr_db
from lean3r.types import Prediction, Views

DENSE_S = 60.0
GRAPH_VIEWS = (1, 2, 8)
REGIONS = 64  # looked at more closely, where windows are chosen in two levels; special tokens pooled
GRAPHS = "-graphs"
HALF_DB = 20.0  # least agreement of bfloat16 with float32
CHUNK_BYTES = 4 << 30  # for encoder and heads: the default serves small cards
ORDER = [
    *(
        (32, "dense"),
        (32, "dense-graphs"),
        (32, "gsa-pooled-fp8-graphs"),
        (1024, "gsa-regions-fp8"),
        (32, "gsa-graphs"),
    ),
    *((128, "dense"), (512, "dense"), (1024, "dense"), (1024, "gsa-regions"), (1024, "gsa-pooled"), (1024, "gsa")),
    *((128, "gsa-regions-fp8"), (512, "gsa-regions-fp8"), (32, "gsa"), (32, "fp8-graphs"), (32, "gsa-pooled-fp8")),
    *((1024, "gsa-pooled-fp8"), (128, "gsa"), (512, "gsa"), (32, "fp8")),
]
"""Rows by value; "graphs" replays `encode` as a CUDA graph."""


def main() -> None:
    """Agreement at a small size, then row after row, then what each is against dense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    name, device = options.model, options.device
    rows = Rows(options.out, name, device)
    order, divisor, size = ORDER, 1, (336, 504)
    if device != "cuda":
        order, divisor, size = [row for row in ORDER if row[0] != 512], 64, (56, 84)
    dense_s = DENSE_S if device == "cuda" else 0.0

    @cache
    def model(form: str) -> Backbone:
        return make(name, form, device)

    rows.take("bfloat16 against float32", lambda: agreement(name, device))
    for views in GRAPH_VIEWS if device == "cuda" else ():
        rows.take(f"CUDA graphs, {views} views", lambda v=views: graphs(make(name, "dense", device), v, size, device))
    with pinned(found_before([row for row in rows.all if row["part"] == "layer"])):
        for count, form in order:
            views = max(1, count // divisor)
            guess = law(points(rows)) if form == "dense" else None
            if guess and seconds(guess, views) > dense_s:
                extrapolate(rows, guess, views)
                continue
            rows.take(
                f"{form}, {views} views", lambda v=views, f=form: measure_model(model(f), name, f, v, size, device)
            )
            gc.collect()
    for count in sorted({count for count, _ in order}):
        compare(rows, max(1, count // divisor))


def make(name: str, form: str, device: str) -> Backbone:
    """A model in a form of ORDER, on the device from the start."""
    cuda = device == "cuda"
    length: dict[str, Any] = {} if cuda else {"dense_below": 0}
    plans: dict[str, CompressionPlan] = {
        "gsa": presets.gsa(**length),
        "gsa-pooled": presets.gsa(**length, special="pooled"),
        "gsa-regions": presets.gsa(**length, special="pooled", regions=REGIONS),
        "gsa-pooled-fp8": presets.gsa(**length, special="pooled") + presets.fp8(),
        "gsa-regions-fp8": presets.gsa(**length, special="pooled", regions=REGIONS) + presets.fp8(),
        "fp8": presets.fp8(),
    }
    kind = lean3r.models.MODELS.get(name)
    torch.manual_seed(0)
    with torch.device(device):
        model: Backbone = kind() if cuda else kind(kind.SMALLEST)
    if (plan := form.removesuffix(GRAPHS)) in plans:
        model = compress(model, plans[plan])
    model = hold(model.to(device).eval(), torch.bfloat16)
    model.set_chunk_bytes(CHUNK_BYTES)
    if form.endswith(GRAPHS) and cuda:
        accelerate(model, cuda_graphs=True)
    return model


def predict(model: Backbone, images: torch.Tensor, *, half: bool = True) -> Prediction:
    """Cameras and depth; products in bfloat16 with `half`."""
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
        return model(Views(images))


def agreement(name: str, device: str) -> dict:
    """Decibels of bfloat16 against float32 of the same random weights, at a small size."""
    images = torch.rand(1, 2, 3, 56, 84, device=device)
    model = make(name, "dense", device)
    half = predict(model, images)
    exact = predict(model.float(), images, half=False)
    assert half.depth is not None and exact.depth is not None
    found = {
        "depth_db": round(snr_db(half.depth.log().float(), exact.depth.log()), 1),
        "cameras_db": round(snr_db(half.cam_from_world.float(), exact.cam_from_world), 1),
    }
    return found if min(found.values()) >= HALF_DB else {"failed": f"{found}, at least {HALF_DB} dB expected"}


def graphs(model: Backbone, views: int, size: tuple[int, int], device: str) -> dict:
    """`encode` as launched and as a CUDA graph; first two different inputs, bit by bit, then the clock."""
    recorded = EncodeGraphs()
    inputs = [Views(torch.rand(1, views, 3, *size, device=device)) for _ in range(2)]
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        for one in inputs:
            expected, found = model.encode(one), recorded(model, one)
            differs = [name for name, value in expected.layers.items() if not torch.equal(value, found.layers[name])]
            if differs:
                return {"failed": f"layers {', '.join(differs)} differ from those of a run without a graph"}
        if None in recorded.recordings.values():
            return {"failed": "no graph could be recorded; see the log"}
        plain = measure(lambda: model.encode(inputs[0]), device)
        replayed = measure(lambda: recorded(model, inputs[0]), device)
    return {"plain_ms": plain["ms"], "ms": replayed["ms"], "times_faster": round(plain["ms"] / replayed["ms"], 3)}


def measure_model(model: Backbone, name: str, form: str, views: int, size: tuple[int, int], device: str) -> dict:
    """One row."""
    images = torch.rand(1, views, 3, *size, device=device)
    found = measure(lambda: predict(model, images), device, budget_s=8.0, warm=form != "dense" or views < 512)
    patches = images.shape[-2] * images.shape[-1] // model.patch**2
    two_levels = "regions" in form
    settings = {"pooled": "pooled" in form or two_levels, "regions": REGIONS if two_levels else None}
    flops = MODELS[name].flops(views, patches, gsa="gsa" in form, **settings)
    return {
        **found,
        "views": views,
        "form": form,
        "weights_gb": round(weight_bytes(model) / 1e9, 3),
        "chunk_bytes": CHUNK_BYTES,
        "tflop": round(flops / 1e12, 3),
        "roofline_bf16_ms": round(H200.milliseconds(flops), 3),
    }


def points(rows: Rows) -> list[tuple[int, float]]:
    """(views, seconds) of the dense rows measured so far."""
    found = [r for r in rows.done.values() if r.get("form") == "dense" and "ms" in r and not r.get("extrapolated")]
    return [(row["views"], row["ms"] / 1e3) for row in found]


def law(measured: list[tuple[int, float]]) -> tuple[float, float] | None:
    """a, b >= 0 of seconds = a n + b n^2, least relative squares; None for fewer than two lengths."""
    if len(measured) < 2:
        return None
    table = torch.tensor([(n / t, n * n / t) for n, t in measured], dtype=torch.float64)
    ones = torch.ones(len(measured), 1, dtype=torch.float64)
    a, b = torch.linalg.lstsq(table, ones).solution.flatten().tolist()
    if min(a, b) < 0:  # one of the two terms alone
        column = table[:, 0 if b < 0 else 1]
        best = float(column.sum() / column.square().sum())
        return (best, 0.0) if b < 0 else (0.0, best)
    return a, b


def seconds(found: tuple[float, float], views: int) -> float:
    """What the law says."""
    return found[0] * views + found[1] * views**2


def extrapolate(rows: Rows, found: tuple[float, float], views: int) -> None:
    """A dense row that was not measured."""
    title = f"dense, {views} views, extrapolated from {', '.join(str(n) for n, _ in points(rows))}"
    figures = {"ms": round(1e3 * seconds(found, views), 1), "views": views, "form": "dense", "extrapolated": True}
    said = {"law": "seconds = a n + b n^2", "a": found[0], "b": found[1], "measured": points(rows)}
    rows.take(title, lambda: figures | said)


def compare(rows: Rows, views: int) -> None:
    """How many times faster than dense each form is at this length; replaces what an earlier run said."""
    here = {r["form"]: r for r in rows.done.values() if r.get("views") == views and "ms" in r}
    if "dense" not in here:
        return
    dense = here.pop("dense")
    found = {f"{form}_times_faster": round(dense["ms"] / row["ms"], 3) for form, row in here.items()}
    title, figures = f"against dense, {views} views", found | {"dense_extrapolated": "extrapolated" in dense}
    if found and not figures.items() <= rows.done.get(title, {}).items():
        rows.write(title, figures)


if __name__ == "__main__":
    main()
