"""Sparse against dense nano over the number of views and the density, on the same held-out scenes.

    python benchmarks/densities.py [--sla FILE] [--sla-fp8 FILE] [--views 2 4 8 16 32] [--out nano_densities] [--keep]

The trained students: nano-gsa-fp8 of the package, its windows a query (top-k) changed after training, and those of
`lean3r distill --recipe nano-sla-fp8`: with --sla the weights of its second phase, the share of keys changed, and with
--sla-fp8 its result. Differences from dense nano are means over scenes with 95 per cent intervals (each scene is
compared with itself; the file has single scenes of dense nano only). Writes benchmarks/results/NAME.json after every
row; --keep measures only rows that are missing.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from accuracy import check_scoring, held_out
from common import RESULTS, hardware, write_result
from paired import KEYS, density_of, difference, per_scene, student

import lean3r
from lean3r.attention.coarse_fine import Gsa
from lean3r.attention.sla import SLA
from lean3r.models.base import Backbone
from lean3r.types import Views

SCENES = {2: 160, 4: 100, 8: 60, 16: 24, 32: 10}
TOP_K = (4, 8, 12, 32, 64)
KEEP = (0.05, 0.1, 0.3)


def models(sla: str | None, sla_fp8: str | None) -> dict[str, Backbone]:
    """The dense model and the students, by name."""
    rows = {"dense": lean3r.load("nano").eval()}
    for count in TOP_K:
        fewer = lean3r.load("nano-gsa-fp8").eval()
        for module in fewer.modules():
            if isinstance(module, Gsa):
                module.top_k = count
        rows[f"gsa-fp8, {count} windows"] = fewer
    for keep in KEEP if sla else ():
        changed = student(rows["dense"], str(sla))
        for module in changed.modules():
            if isinstance(module, SLA):
                module.keep = keep
        rows[f"sla, {keep:.0%} of the keys"] = changed
    if sla_fp8:
        rows["sla-fp8, 10% of the keys"] = student(rows["dense"], sla_fp8)
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sla", metavar="FILE")
    parser.add_argument("--sla-fp8", metavar="FILE")
    parser.add_argument("--views", type=int, nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", default="nano_densities")
    options = parser.parse_args()
    check_scoring()
    path = RESULTS / f"{options.out}.json"
    old = json.loads(path.read_text())["views"] if options.keep and path.exists() else {}
    result: dict[str, Any] = {"hardware": hardware(), "scenes": SCENES, "views": old}
    compared = models(options.sla, options.sla_fp8)
    for views in options.views:
        batches = held_out(views, SCENES[views])
        rows = old.setdefault(str(views), {})
        for name, model in compared.items():
            if name in rows:
                continue
            found = per_scene(model, batches)
            rows[name] = {"density": density_of(model, Views(batches[0].images))}
            if name == "dense":
                rows[name]["scenes"] = found
            rows[name]["mean"] = {key: sum(v) / len(v) for key, v in found.items()}
            rows[name]["against_dense"] = {
                key: difference([found[key]], [rows["dense"]["scenes"][key]]) for key in KEYS
            }
            auc, margin = rows[name]["mean"]["auc30"], rows[name]["against_dense"]["auc30"]
            interval = f"{margin['mean']:+.2f}, {margin['low']:+.2f} to {margin['high']:+.2f}"
            print(
                f"{views:3d} views  {name:28s} {rows[name]['density']:.3f}  AUC@30 {auc:.1f} ({interval})", flush=True
            )
            write_result(options.out, result)
    print(path)


if __name__ == "__main__":
    main()
