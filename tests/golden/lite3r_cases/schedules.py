"""schedules: learning rate and weight of the distillation, by step."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lean3r.compress.distill import gamma
from lean3r.train.optim import lr_factor
from lean3r.train.recipes.lite3r import optim
from lite3r_cases import Golden, compare


def check_schedules(path: Path) -> None:
    """Every series lr_total{N}_warm{W} and gamma_total{N}_{from}_{to}, with its steps."""
    case, checked = Golden(path), 0
    for name, expected in case.arrays.items():
        if rate := re.fullmatch(r"lr_total(\d+)_warm(\d+)", name):
            total, config = int(rate[1]), optim(warmup_steps=int(rate[2]))
            found = [config.lr * lr_factor(step, total, config) for step in steps_of(case, total, len(expected))]
        elif weight := re.fullmatch(r"gamma_total(\d+)_(\d+)_(\d+)", name):
            total, highest, lowest = int(weight[1]), *(float(f"{t[0]}.{t[1:]}") for t in weight.groups()[1:])
            steps = steps_of(case, total, len(expected))
            found = [gamma(step, total, highest=highest, lowest=lowest) for step in steps]
        else:
            continue
        compare(found, expected, 1e-12, name)
        checked += 1
    assert checked


def steps_of(case: Golden, total: int, count: int) -> list[int]:
    """The steps of a run of this length: its own list, the common one, or for short runs the first steps."""
    own = case.arrays.get(f"steps_{total}", case["steps"])
    return own.tolist() if own.max() <= total and len(own) == count else np.arange(count).tolist()


CASES = {"schedules": check_schedules}
