"""nano in one table: every mechanism at three densities, number formats, trained students, refined or not.

    python benchmarks/table.py [--sla FILE] [--runs build/table] [--photos ../shared/data/scenes] [--processes 2]

Each row is a run of `lean3r evaluate` on the synthetic world (2 to 32 views) and on the photo scenes (2, 8 and all
views), in a folder of its own. FILE is the student of `lean3r distill --recipe nano-sla-fp8`. Differences from dense
nano, with their intervals, are those of `lean3r report`; seconds and memory of the network, on a machine that should
do nothing else, those of `lean3r bench`. What is done is not done again. Writes benchmarks/results/nano_table.json
after every row, and docs/images/pareto.svg.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from common import ROOT, hardware, write_result
from paired import density_of
from safetensors import safe_open
from torch import Tensor

import lean3r
from lean3r.cli.main import main as lean3r_main
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.eval.report.compare import compare, costs
from lean3r.eval.report.plots import pareto
from lean3r.eval.report.runs import Run, Scores, read_runs
from lean3r.eval.runs.scores import pool_resamples
from lean3r.types import Views

SCENES = {2: 40, 4: 32, 8: 24, 16: 12, 32: 8}  # views -> scenes of the synthetic world
PHOTOS = ("colmap@2", "colmap@8", "colmap")
FIGURES = ("auc3", "auc5", "auc15", "auc30", "abs_rel")
BLOCKS = "query_block=16,key_block=16,window=4"
SETTINGS = {  # mechanism -> its settings, and what gives some 5, 10 and 30 % of the pairs of tokens at 8 views
    "gsa": ("", "top_k", (6, 12, 38)),
    "sla": ("target=global blocks,block=16,window=4", "keep", (0.05, 0.1, 0.3)),
    "thu-sla": (f"target=global blocks,{BLOCKS}", "keep", (0.05, 0.1, 0.3)),
    "block_sparse": (BLOCKS, "sparsity", (0.95, 0.9, 0.7)),
    "merge": ("protect=0.0", "ratio", (0.78, 0.68, 0.45)),
    "kv_prune": ("frames=1,moving=true,first_frame=false,query_merge=1", "grid", ("[4,5]", "[3,3]", "[2,2]")),
    "frame_subset": ("", "stride", (4, 3, 2)),
}
GSA_STUDENT = ROOT / "lean3r" / "weights" / "nano-gsa-fp8.safetensors"
OTHERS = tuple(f"={each[-1][place]}" for each in SETTINGS.values() for place in (0, 2))
FORMATS = ("fp8", "fp8-weight", "int8-dynamic")


def plans() -> dict[str, str]:
    """Row -> the plan of an untrained mechanism, or of a number format."""
    rows = {}
    for name, (fixed, varied, values) in SETTINGS.items():
        for value in values:
            settings = ",".join(filter(None, (fixed, f"{varied}={value}", "dense_below=0")))
            rows[f"{name} {varied}={value}"] = f"{name}:{settings}"
    return rows | {name: name for name in FORMATS}


def rows_of(sla: Path | None) -> dict[str, list[str]]:
    """Row -> what tells `lean3r evaluate` its model."""
    found: dict[str, list[str]] = {"dense": [], "bfloat16": ["--dtype", "bfloat16"]}
    found |= {name: ["--plan", plan] for name, plan in plans().items()}
    files = {"student gsa-fp8": GSA_STUDENT} | ({"student sla-fp8": sla} if sla else {})
    found |= {name: ["--weights", str(path)] for name, path in files.items()}
    return found | {"dense, refined": ["--refine", "auto"]}


def evaluate(folder: Path, words: list[str], photos: Path, processes: int) -> Run:
    """The run of one row: what is not there yet is evaluated."""
    world = ["--root", f"synthetic={folder.parent / 'world'}"]
    jobs = [([f"synthetic@{views}"], ["--limit", str(count), *world]) for views, count in SCENES.items()]
    jobs += [(list(PHOTOS), ["--root", str(photos)])]
    for benchmarks, data in jobs:
        run = folder / benchmarks[0].partition("@")[0] / benchmarks[0]
        if not all((run / name / "scores.json").is_file() for name in benchmarks):
            usual = ["--dtype", "float32"] if "--dtype" not in words else []
            command = ["evaluate", *benchmarks, *data, *words, *usual, "--device", "cpu", "-o", str(run)]
            if lean3r_main([*command, "--processes", str(processes), "--quiet", "--json"]):
                sys.exit(f"lean3r {' '.join(command)} failed")
    runs = read_runs([folder / names[0].partition("@")[0] / names[0] for names, _ in jobs])
    scores = {name: each for run in runs for name, each in run.scores.items()}
    return dataclasses.replace(runs[0], name=folder.name, scores=scores)


def densities(words: list[str]) -> dict[str, float]:
    """Views -> the share of pairs of tokens that global attention attends to."""
    given = dict(zip(words[::2], words[1::2], strict=True))
    model = lean3r.load("nano", weights=given.get("--weights"), plan=given.get("--plan"), device="cpu").eval()
    return {str(count): density_of(model, Views(first_scene(count))) for count in SCENES}


@cache
def first_scene(views: int) -> Tensor:
    """Pictures [1, views, 3, 240, 240] of the first scene."""
    return SyntheticWorld(seed=HELD_OUT_SEED).batch(0, 1, views=views, height=240, width=240).images


def bench(rows: dict[str, list[str]], folder: Path) -> dict[str, dict[str, Any]]:
    """Row -> views -> what the network costs, by `lean3r bench`; a student costs what its plan costs."""
    texts = {}
    for name, words in rows.items():
        given = dict(zip(words[::2], words[1::2], strict=True))
        if "--weights" in given:
            with safe_open(given["--weights"], "pt") as opened:
                (folder / "plans").mkdir(exist_ok=True)
                texts[name] = str(folder / "plans" / f"{name.replace(' ', '_')}.json")
                Path(texts[name]).write_text(opened.metadata()["plan"])
        elif given.keys() <= {"--plan"}:
            texts[name] = given.get("--plan", "dense")
    file = folder / "bench.json"
    usual = ["--views", f"{min(SCENES)}..{max(SCENES)}", "--resolution", "240", "--dtype", "float32", "--device", "cpu"]
    command = ["bench", "--plans", ",".join(texts.values()), *usual, "--repeats", "3", "-o", str(file), "--resume"]
    if lean3r_main([*command, "--quiet"]):
        sys.exit(f"lean3r {' '.join(command)} failed")
    measured = {(row["plan"], str(row["views"])): row for row in json.loads(file.read_text())["rows"]}
    return {name: {views: cost_of(measured[text, views]) for views in map(str, SCENES)} for name, text in texts.items()}


def cost_of(row: dict[str, Any]) -> dict[str, float]:
    """Medians of a row of `lean3r bench`."""
    times = {name: row[name]["median"] for name in ("seconds", "cpu_seconds")}
    return times | {name: row[name] for name in ("peak_mb", "activation_mb")}


def figures_of(scores: Scores) -> dict[str, Any]:
    """Pooled figures of a benchmark, and what an item costs."""
    spent = costs(scores.rows, ("cpu_seconds",))
    return {name: scores.figures.get(name) for name in FIGURES} | spent | {"items": len(scores.rows)}


def differences(run: Run, dense: Run) -> dict[str, Any]:
    """Benchmark -> figure -> the difference from dense nano and its interval."""
    return {
        each.benchmark: {
            name: {key: getattr(each.changes[name], key) for key in ("difference", "low", "high")}
            for name in ("auc30", "abs_rel")
        }
        for each in compare([run], dense, pool_resamples, {})
    }


def measure(options: argparse.Namespace) -> None:
    """All rows, one after another."""
    options.runs.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"hardware": hardware(), "scenes": SCENES, "rows": {}}
    rows = rows_of(options.sla)
    measured = bench(rows, options.runs)
    dense = None
    for name, words in rows.items():
        run = evaluate(options.runs / name.replace(" ", "_"), words, options.photos, options.processes)
        dense = dense or run
        told = [Path(word).name if word.startswith("/") else word for word in words]
        found = {n: figures_of(scores) for n, scores in run.scores.items()}
        result["rows"][name] = {"words": told, "density": densities(words), "benchmarks": found}
        if name in measured:
            result["rows"][name]["cost"] = measured[name]
        if run is not dense:
            result["rows"][name]["against_dense"] = differences(run, dense)
        print(write_result("nano_table", result), name, found["synthetic@8"]["auc30"], flush=True)
    draw(result["rows"])


def draw(rows: dict[str, Any]) -> None:
    """AUC@30 against CPU seconds at the most views, of dense nano, the students, and each mechanism at a tenth but
    thu-sla, which untrained is so far below that nothing else could be told apart."""
    shown = [n for n in rows if "cost" in rows[n] and not n.endswith(OTHERS) and not n.startswith("thu-sla")]
    views = str(max(SCENES))
    points = {
        name: (rows[name]["cost"][views]["cpu_seconds"], rows[name]["benchmarks"][f"synthetic@{views}"]["auc30"])
        for name in shown
    }
    svg = pareto(points, f"CPU seconds of the network, {views} views", "AUC@30 (%)", is_higher_better=True)
    (ROOT / "docs" / "images" / "pareto.svg").write_text(svg)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sla", type=Path)
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "table")
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "data" / "scenes")
    parser.add_argument("--processes", type=int, default=2)
    measure(parser.parse_args())
