"""Peak host memory and seconds of loading a checkpoint, by file form and number type, compared with the usual way.

    python benchmarks/loading.py [--model da3-base] [--folder DIR] [--runs 3]

Writes a checkpoint of random weights under official names in three forms (.safetensors, .pt, shards) and loads each in
a separate process, in float32 and cast to bfloat16. A process first loads the checkpoint of a small model, so that code
does not count; its memory is the peak of resident memory (VmHWM) less that just before (VmRSS), divided by the bytes of
the parameters in the target type. `usual` is torch.load or load_file, load_state_dict and `.to(dtype)`. Correctness
comes first: every parameter must equal the saved one, cast. Linux only. Seconds are for comparison within one run.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import hardware, write_result
from safetensors.torch import load_file, save_file
from torch import Tensor

from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import load_weights, without_memory

LIMIT = 1.15
WARM_UP = "nano"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMS = ("safetensors", "pt", "shards")
SHARDS = 4


def main() -> None:
    """Measure, print a table, write the JSON; exit 1 if a load is wrong or above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="da3-base", help="backbone of about the size wanted (da3-base: 541 MB)")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written; a temporary folder otherwise")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", nargs=5, metavar=("WAY", "MODEL", "PATH", "WARM", "DTYPE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(*given.child)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        small, large = (write_forms(name, Path(folder) / name) for name in (WARM_UP, given.model))
        rows = [
            run(way, given.model, form, large[form], small[form], dtype, given.runs)
            for form in FORMS
            for dtype in DTYPES
            for way in ("lean3r", "usual")
        ]
    path = write_result("loading", {"hardware": hardware(), "model": given.model, "limit": LIMIT, "rows": rows})
    print(path)
    ours = [row for row in rows if row["way"] == "lean3r"]
    if max(row["peak_over_target"] for row in ours) > LIMIT or not all(row["exact"] for row in rows):
        raise SystemExit(1)


def run(way: str, model: str, form: str, path: Path, warm: Path, dtype: str, runs: int) -> dict:
    """Medians of one way of loading one form, each run in a fresh process."""
    command = [sys.executable, __file__, "--child", way, model, str(path), str(warm), dtype]
    found = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(runs)
    ]
    row = {
        "way": way,
        "form": form,
        "dtype": dtype,
        "target_mb": round(found[0]["target_bytes"] / 1e6, 1),
        "peak_over_target": round(max(f["peak_bytes"] / f["target_bytes"] for f in found), 3),
        "seconds": round(statistics.median(f["seconds"] for f in found), 3),
        "exact": all(f["exact"] for f in found),
    }
    print(row, flush=True)
    return row


def measure(way: str, name: str, path: str, warm: str, dtype: str) -> dict:
    """In a fresh process: peak and seconds of one load, then whether the parameters are the saved ones."""
    load = ours if way == "lean3r" else usual
    load(WARM_UP, Path(warm), DTYPES[dtype])
    gc.collect()
    before = resident("VmRSS")
    started = time.perf_counter()
    model = load(name, Path(path), DTYPES[dtype])
    seconds = time.perf_counter() - started
    peak = resident("VmHWM") - before
    target = sum(p.nbytes for p in model.parameters())
    saved = read(Path(path))
    named = model.KEY_MAP.write(model.state_dict())
    exact = all(torch.equal(value, saved[key].to(value.dtype)) for key, value in named.items())
    return {"peak_bytes": peak, "target_bytes": target, "seconds": seconds, "exact": exact}


def ours(name: str, path: Path, dtype: torch.dtype) -> Backbone:
    """As lean3r loads: built without memory, values cast while they are read."""
    model = without_memory(MODELS.get(name))
    load_weights(model, path, dtype)
    return model


def usual(name: str, path: Path, dtype: torch.dtype) -> Backbone:
    """As a plain script loads: the model, then the whole file, then the cast."""
    model = MODELS.get(name)()
    tensors = read(path)
    tensors, _ = model.KEY_MAP.read(tensors)
    model.load_state_dict(tensors)
    return model.to(dtype)


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of one of the three forms."""
    if path.suffix == ".json":
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        return {name: value for shard in shards for name, value in load_file(path.parent / shard).items()}
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def write_forms(name: str, folder: Path) -> dict[str, Path]:
    """A checkpoint of random weights under official names in each of FORMS."""
    torch.manual_seed(0)
    model = MODELS.get(name)()
    own = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in model.state_dict().items()}
    model.load_state_dict(own)
    named = model.KEY_MAP.write(model.state_dict())
    tensors = {key: value.clone() for key, value in named.items()}
    sharded = folder / "sharded"
    sharded.mkdir(parents=True)
    table = {key: f"model-{place * SHARDS // len(tensors)}.safetensors" for place, key in enumerate(tensors)}
    for shard in set(table.values()):
        save_file({key: tensors[key] for key in tensors if table[key] == shard}, sharded / shard)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    save_file(tensors, folder / "model.safetensors")
    torch.save(tensors, folder / "model.pt")
    return {"safetensors": folder / "model.safetensors", "pt": folder / "model.pt", "shards": index}


def resident(key: str) -> int:
    """A figure of this process's memory in bytes."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"no {key} in /proc/self/status")
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    main()
