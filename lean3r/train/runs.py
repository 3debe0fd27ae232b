"""The folder of a training run: its lock, its recipe, and running its phases in order."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lean3r.errors import UsageError
from lean3r.train.checkpoints.state import lock_folder, write_atomically
from lean3r.train.config import OptimConfig, config_diff
from lean3r.train.distributed import is_main_process, launch

RECIPE_FILE = "recipe.json"

logger = logging.getLogger("lean3r")


@contextmanager
def run_folder(out: Path, recipe: Mapping[str, Any], resume: bool, writes: Sequence[str]) -> Iterator[None]:
    """Reserve OUT for this run: write its recipe, keep other runs out, and refuse files in `writes` that no run wrote.

    Under torchrun only rank 0 does this."""
    if not is_main_process():
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"'{out}' cannot be the folder of a run: {error.strerror}. Use another -o.") from error
    with lock_folder(out, patience_s=0):
        for leftover in out.glob(f".{RECIPE_FILE}.*.partial"):
            leftover.unlink()
        if read_recipe(out) is None and (taken := [name for name in (RECIPE_FILE, *writes) if (out / name).exists()]):
            raise UsageError(f"'{out}' contains {taken[0]}, which is not from a training run; choose another folder")
        keep_recipe(out, recipe, resume)
        yield


def train_phases(
    run_phase: Callable[[int], int], names: Sequence[str], out: Path, resume: bool, processes: int = 1
) -> int:
    """Call run_phase(number) on `processes` processes for each phase in `names`; when resuming, skip phases that have
    weights in OUT. Return the exit code of a phase that was stopped, or 0 when all are done."""
    for index, name in enumerate(names):
        if resume and (out / name / "weights.safetensors").exists():
            continue
        if stopped := launch(processes, run_phase, index):
            return stopped
    return 0


def read_recipe(out: Path) -> dict[str, Any] | None:
    """The recipe of the run in a folder; None if there is no valid recipe file."""
    try:
        recipe = json.loads((out / RECIPE_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) and {"phases", "processes"} <= recipe.keys() else None


def keep_recipe(out: Path, recipe: Mapping[str, Any], resume: bool) -> None:
    """Write OUT/recipe.json; UsageError if the folder holds a run and `resume` is not set, or a run of another recipe.

    Recipes that differ only in the number of processes are the same recipe if they have the same batches per step.
    """
    path, now = out / RECIPE_FILE, json.loads(json.dumps(recipe))
    if not resume and any(out.glob("*/checkpoints/step-*")):
        raise UsageError(f"'{out}' already holds a training run; resume it or choose another folder")
    before = read_recipe(out)
    if resume and before is None:  # a restarted job may have ended before it wrote anything; a mistyped name shows
        logger.warning("'%s' holds no run to resume; a new one starts.", out)
    if resume and before is not None:
        lines = config_diff(_on_one_process(before), _on_one_process(now))
        if lines:
            shown = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
            raise UsageError(f"'{out}' holds a run of another recipe; cannot resume: {shown}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(now, indent=2)))


def _on_one_process(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as JSON, with all batches of a step on one process; an older one gets defaults for newer entries."""
    processes, optim = recipe["processes"], dataclasses.asdict(OptimConfig())
    phases = [
        phase
        | {"stages": [s | {"accumulate": s["accumulate"] * processes} for s in phase["stages"]]}
        | {"optim": optim | phase.get("optim", {})}
        for phase in recipe["phases"]
    ]
    return {**recipe, "processes": 1, "phases": phases}
