"""Calibrated plans (`lean3r compress --calibrate`) against uniform ones of equal density, on nano.

    python benchmarks/calibrated.py [--budgets 0.06 0.115] [--scenes 24] [--calibrations 3] [--by-head]

A uniform plan gives every global layer the same candidate of the calibration (compress/calibrate.py). For each budget:
plans calibrated on several scenes, and every uniform plan within the budget and above 3/4 of it. Scored are other
scenes, of 8 views. Differences (calibrated minus uniform, and minus dense) are means with 95 per cent intervals; each
scene is compared with itself. With --by-head, plans for single heads too, and their differences from those for layers.
Writes benchmarks/results/calibrated.json after every budget.
"""

from __future__ import annotations

import argparse
import functools
from itertools import chain
from typing import Any

import numpy as np
from accuracy import check_scoring, held_out
from common import hardware, write_result
from paired import KEYS, difference, per_scene

import lean3r
from lean3r.compress import CompressionPlan, compress
from lean3r.compress.calibrate import Candidate, calibrate, candidates, choose, steps_of
from lean3r.compress.plan import Step
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.pipeline.calibration import outputs_of
from lean3r.types import Views

SEED = 77  # of the scenes for calibration
VIEWS = 8


def main() -> None:
    """Calibrate, score and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.06, 0.115])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--calibrations", type=int, default=3)
    parser.add_argument("--by-head", action="store_true")
    options = parser.parse_args()
    check_scoring()
    model = lean3r.load("nano").eval()
    batches = held_out(VIEWS, options.scenes)
    world = SyntheticWorld(seed=SEED, height=240, width=240)
    pictures = [Views(world.batch(index, 1, views=VIEWS).images) for index in range(options.calibrations)]
    dense = per_scene(model, batches)
    budgets: dict[str, Any] = {}
    result = {"hardware": hardware(), "views": VIEWS, "scenes": options.scenes, "dense": means([dense])}

    def measured(by_head: bool) -> list[list[Candidate]]:
        largest = max(options.budgets)
        runs = [functools.partial(outputs_of, views=views) for views in pictures]
        return [calibrate(model, run, largest, by_head=by_head)[2] for run in runs]

    every = measured(False)
    by_head = measured(True) if options.by_head else []

    @functools.cache
    def scored(text: str) -> dict[str, list[float]]:
        return per_scene(compress(model, CompressionPlan.from_json(text)).eval(), batches)

    def of_plans(found: list[list[Candidate]]) -> tuple[dict[str, Any], list[dict[str, list[float]]]]:
        plans = [CompressionPlan(steps_of(chosen)) for chosen in found]
        density = float(np.mean([candidate.density for chosen in found for candidate in chosen]))
        ours = [scored(plan.to_json()) for plan in plans]
        return {"density": density, "plans": [str(plan) for plan in plans], **means(ours)}, ours

    for budget in options.budgets:
        figures, ours = of_plans([choose(each, budget) for each in every])
        row = {"calibrated": figures, "minus_dense": minus(ours, dense), "uniform": {}}
        budgets[f"{budget:g}"] = row
        against = shown(figures, row["minus_dense"])
        print(f"{budget:g}: calibrated {figures['density']:.3f}  {against} minus dense", flush=True)
        if by_head:
            figures, theirs = of_plans([choose(each, budget) for each in by_head])
            row["by_head"] = figures | {"minus_dense": minus(theirs, dense), "minus_by_layer": paired(theirs, ours)}
            against = shown(figures, row["by_head"]["minus_by_layer"])
            print(f"  by head {figures['density']:.3f}  {against} minus by layer", flush=True)
        seen = set()
        for mechanism, settings in candidates():
            same = [c.density for c in chain(*every) if (c.mechanism, c.settings) == (mechanism, settings)]
            density = float(np.mean(same))
            if not 0.75 * budget < density <= budget or (mechanism, density) in seen:
                continue
            seen.add((mechanism, density))  # ratios of merge below its floor are one plan
            plan = CompressionPlan((Step("global blocks", mechanism, settings),), mechanism)
            theirs = scored(plan.to_json())
            gap = {"density": density, **means([theirs]), "calibrated_minus": minus(ours, theirs)}
            row["uniform"][str(plan)] = gap
            print(f"  {mechanism:13s} {density:.3f}  {shown(gap, gap['calibrated_minus'])}", flush=True)
        path = write_result("calibrated", result | {"budgets": budgets})
    print(path)


def means(runs: list[dict[str, list[float]]]) -> dict[str, float]:
    """Mean of each figure over runs and scenes."""
    return {key: round(float(np.mean([run[key] for run in runs])), 3) for key in KEYS}


def minus(ours: list[dict[str, list[float]]], theirs: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Mean differences with intervals, for each figure."""
    return paired(ours, [theirs])


def paired(ours: list[dict[str, list[float]]], theirs: list[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """As `minus`, from several runs."""
    return {key: difference([run[key] for run in ours], [run[key] for run in theirs]) for key in KEYS}


def shown(figures: dict[str, Any], gaps: dict[str, dict[str, float]]) -> str:
    """AUC@30 and AbsRel, and the differences."""
    words = []
    for key in ("auc30", "abs_rel"):
        gap = gaps[key]
        words.append(f"{key} {figures[key]:.2f} ({gap['mean']:+.2f}, {gap['low']:+.2f} to {gap['high']:+.2f})")
    return "  ".join(words)


if __name__ == "__main__":
    main()
