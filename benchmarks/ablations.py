"""The papers' ablations on nano: short trainings that differ in one setting, scored on the same held-out scenes.

    python benchmarks/ablations.py [--steps 100] [--seeds 3] [--scenes 40] [--only base no-selection ...]
        [--work DIR] [--resume]

Speed3R: no compressed value, no selection, top-k 8, 16, 32, 64, no distillation. Lite3R: gamma 0, 0.1, 0.2, 0.5. Every
variant starts from nano and trains the sparse phase of its recipe with a shorter schedule, once for each seed (of the
training scenes and of the gates). Differences from dense nano and from "base" are means over seeds and scenes, with
95 per cent intervals. Writes benchmarks/results/nano_ablations.json after every run, all variants of a seed in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accuracy import check_scoring, held_out
from common import RESULTS, hardware, write_result
from paired import KEYS, density_of, difference, per_scene
from torch import Tensor, nn

import lean3r
from lean3r.attention.coarse_fine import Gsa
from lean3r.compress.plan import CompressionPlan
from lean3r.compress.presets import gsa
from lean3r.data.base import SceneBatch
from lean3r.models.base import Backbone
from lean3r.train.loop import fit, seed_everything
from lean3r.train.recipes.distilled import OBJECTIVES, Phase, with_steps
from lean3r.train.recipes.nano_students import nano_gsa_fp8, nano_sla_fp8
from lean3r.train.students import only_trains, student_of
from lean3r.types import Views

VIEWS = 8
NO_TEACHER = {"labels": 0.0, "tokens": 0.0, "gamma_from": 0.0, "gamma_to": 0.0}


def coarse_alone(model: nn.Module) -> None:
    """Make gsa use its compressed branch only, in training and evaluation."""

    def fixed(mechanism: Gsa, x: Tensor) -> Tensor:
        gates = x.new_zeros(x.shape[0], mechanism.heads, x.shape[1], 2)
        gates[..., 0] = 1.0
        return gates

    for module in model.modules():
        if isinstance(module, Gsa):
            module.gate = None
            module.gates = partial(fixed, module)  # type: ignore[method-assign]


Edit = Callable[[nn.Module], None]
Variant = tuple[CompressionPlan, dict[str, Any], Edit | None]


def variants() -> dict[str, Variant]:
    """Name -> plan, settings of the objective, and a change to the student."""
    base = gsa(dense_below=0, top_k=12)
    linear = nano_sla_fp8().phases[1].plan
    gammas = {"0": 0.0, "0.1": 0.1, "0.2": 0.2, "0.5": 0.5}
    rows: dict[str, Variant] = {
        "base": (base, {}, None),
        "no-compressed-value": (gsa(dense_below=0, top_k=12, gate="none"), {}, None),
        "no-selection": (base, {}, coarse_alone),
        **{f"top-{k}": (gsa(dense_below=0, top_k=k), {}, None) for k in (8, 16, 32, 64)},
        "no-distillation": (base, NO_TEACHER, None),
    }
    return rows | {
        f"sla-gamma-{name}": (linear, {"gamma_from": g, "gamma_to": g / 10, "labels": 0.0, "tokens": 0.0}, None)
        for name, g in gammas.items()
    }


def phase_of(name: str, plan: CompressionPlan, settings: dict[str, Any], steps: int) -> Phase:
    """The recipe's phase that trains trunk and heads, mechanisms included, shortened."""
    phase = nano_gsa_fp8().phases[1]
    config = replace(with_steps(phase.config, steps), name=name, validate_every=steps, checkpoint_every=100)
    return Phase(replace(config, best_key=""), plan, phase.objective, settings)


def trained(
    dense: Backbone, name: str, seed: int, steps: int, work: Path, batches: list[SceneBatch], resume: bool
) -> dict[str, Any]:
    """Density, seconds and figures by scene of one variant, trained with one seed: of its scenes and its gates."""
    plan, settings, edit = variants()[name]
    phase, data = phase_of(name, plan, settings, steps), nano_gsa_fp8().data
    config = replace(phase.config, seed=phase.config.seed + 1_000 * seed)
    seed_everything(config.seed)
    student = student_of(dense, plan)
    if edit is not None:
        edit(student)
    only_trains(student, config)
    objective = OBJECTIVES.get(phase.objective)(copy.deepcopy(dense), **phase.settings)
    start, folder = time.perf_counter(), work / f"{name}-{seed}"
    fit(student.train(), objective, partial(data.batch, config.seed), config, folder, resume=resume)
    seconds = time.perf_counter() - start
    student = averaged(student, folder).eval()
    density = density_of(student, Views(batches[0].images))
    return {"density": density, "seconds": seconds, "scenes": per_scene(student, batches)}


def compared(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean differences of `runs` from `others` with their intervals."""
    return {key: difference([r["scenes"][key] for r in runs], [o["scenes"][key] for o in others]) for key in KEYS}


def averaged(student: Backbone, folder: Path) -> Backbone:
    """The student with the averaged weights of its run."""
    from lean3r.models.checkpoint import read_tensors

    student.load_state_dict(read_tensors(folder / "weights.safetensors")[0])
    return student


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=list(variants()), default=list(variants()))
    parser.add_argument("--work", type=Path, help="folder for the runs; by default a temporary one")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier call with this --work has done")
    parser.add_argument("--out", default="nano_ablations")
    options = parser.parse_args()
    check_scoring()
    torch.set_grad_enabled(True)
    dense = lean3r.load("nano").eval()
    batches = held_out(VIEWS, options.scenes)
    path = RESULTS / f"{options.out}.json"
    old = json.loads(path.read_text()) if options.resume and path.exists() else {}
    result: dict[str, Any] = {"hardware": hardware(), "steps": options.steps, "scenes": options.scenes, "views": VIEWS}
    result |= {"dense": {"scenes": per_scene(dense, batches)}, "runs": old.get("runs", {}), "against_dense": {}}
    result |= {"against_base": {}}
    runs = result["runs"]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for seed, name in product(range(options.seeds), options.only):
            done = runs.setdefault(name, [])
            if len(done) <= seed:
                done.append(trained(dense, name, seed, options.steps, work, batches, options.resume))
            result["against_dense"][name] = compared(done, [result["dense"]])
            result["against_base"][name] = compared(done, runs["base"]) if "base" in runs else {}
            shown = ("dense", result["against_dense"][name]), ("base", result["against_base"][name])
            print(seed, f"{name:20s}", *(f"{n}: {row['auc30']}" for n, row in shown if row), flush=True)
            write_result(options.out, result)
    print(path)


if __name__ == "__main__":
    main()
