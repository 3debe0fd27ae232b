"""One real optimiser step of the distillation recipes: seconds and peak memory, full-size models, random weights.

    python benchmarks/gpu/one_step.py --out DIR [--recipes speed3r-pi3 lite3r-vggt] [--views 2 8 24] [--steps 3]
                                      [--data NAME=ROOT] [--device cuda]

For every phase of a recipe: teacher and student of full size with seeded random weights made on the device (speed does
not depend on them), scenes of the synthetic world or of a data set, the recipe's batches, accumulation and
checkpointing. Verified first: loss and gradient are finite, what the recipe trains moves, and nothing else does. Then
medians over --steps steps after that one: data, forward, backward, optimiser, in seconds. --views: counts to measure
where the recipe varies them (by default its fewest, and its most). Kernels run in the configurations that part "layer"
found. On a CPU models and pictures are tiny.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rows import TINY_WORLD, Rows
from torch import nn
from tuning import found_before, pinned

from lean3r.models import MODELS
from lean3r.models.pi3 import Pi3
from lean3r.models.speed3r import from_pi3
from lean3r.train import DISTILLATIONS
from lean3r.train.config import Stage
from lean3r.train.loop import seed_everything
from lean3r.train.optim import Ema, GradientBuffer, Optimizer
from lean3r.train.recipes.distilled import OBJECTIVES, Distillation
from lean3r.train.recipes.sources import Source
from lean3r.train.sharding import Call, checkpointed
from lean3r.train.students import only_trains, student_of

PARTS = ("data", "forward", "backward", "optimizer")


def main() -> None:
    """Measure every phase of every recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["speed3r-pi3", "lite3r-vggt"], choices=list(DISTILLATIONS))
    parser.add_argument("--views", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    rows, tiny = Rows(options.out, "one_step", options.device), options.device == "cpu"
    with pinned(found_before([row for row in rows.all if row["part"] == "layer"])):
        for name in options.recipes:
            recipe: Distillation = DISTILLATIONS.get(name)(None)
            sources = tuple(Source.parse(text) for text in options.data)
            few = TINY_WORLD if tiny else {}
            world = replace(recipe.data.world, device="cpu" if sources else options.device, **few)
            recipe = replace(recipe, data=replace(recipe.data, sources=sources, world=world))
            teacher = random_model(recipe.teacher, tiny, options.device)
            for phase, chosen in enumerate(recipe.phases):
                stage = chosen.config.stages[0]
                wanted = options.views or sorted({min(stage.views), max(stage.views)})[: 1 if tiny else 2]
                for views in [count for count in wanted if count <= stage.views_per_step]:
                    fixed = replace(stage, views=(views,), **(small(stage, views) if tiny else {}))

                    steps, device = 1 if tiny else options.steps, torch.device(options.device)
                    run = partial(measure, recipe, phase, teacher, fixed, steps, device)
                    rows.take(f"{chosen.config.name}, {views} views", run)


def random_model(name: str, tiny: bool, device: str) -> nn.Module:
    """The teacher with seeded random weights that give depth and points of moderate size."""
    seed_everything(1)
    kind = MODELS.get(name)
    with torch.device(device):
        model = kind(kind.SMALLEST) if tiny else kind()
    return model.to(device).eval()


def small(stage: Stage, views: int) -> dict:
    """Few pictures of few patches."""
    side = stage.multiple
    sizes: dict = {"height": side, "width": 2 * side, "views_per_step": views, "accumulate": min(2, stage.accumulate)}
    return sizes | ({"pixels": (2 * side**2, 2 * side**2)} if stage.pixels else {})


def measure(
    recipe: Distillation, phase: int, teacher: nn.Module, stage: Stage, steps: int, device: torch.device
) -> dict:
    """One row: a first step that is verified, then the medians of `steps` more."""
    chosen = recipe.phases[phase]
    config = replace(chosen.config, stages=(stage,))
    # An objective freezes its teacher: the next student must not be born frozen.
    start = from_pi3(teacher) if recipe.student and isinstance(teacher, Pi3) else teacher
    student = only_trains(student_of(start.requires_grad_(True), chosen.plan), config).to(device).train()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not name.startswith(stage.frozen))
    trained = [p for p in student.parameters() if p.requires_grad]
    objective = OBJECTIVES.get(chosen.objective)(teacher, **chosen.settings)
    gradients = GradientBuffer(trained)
    optimizer = Optimizer(student, config.optim, config.total_steps)
    ema = Ema(student, config.optim.ema_decay)
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    taken: list[dict[str, float]] = []
    for step in range(steps + 1):
        clock = Clock(device)
        gradients.zero()
        total, shape = 0.0, torch.Size()
        for part in range(stage.accumulate):
            batch = recipe.batch(phase, step, stage, part, stage.accumulate).to(device)
            shape = batch.images.shape
            clock.lap("data")
            bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
            with bf16, checkpointed(student) if stage.checkpointing else torch.enable_grad():
                loss, _ = Call(student)(objective, batch, step / config.total_steps, **stage.loss)
            clock.lap("forward")
            (loss / stage.accumulate).backward()
            clock.lap("backward")
            total += float(loss.detach()) / stage.accumulate
        norm = float(gradients.norm())
        gradients.clip(norm, config.optim.clip_norm)
        optimizer.step(max(step, config.optim.warmup_steps))
        ema.update(step)
        clock.lap("optimizer")
        if step == 0:
            assert math.isfinite(total) and math.isfinite(norm) and norm > 0, (total, norm)
            for name, value in student.named_parameters():
                assert value.requires_grad or torch.equal(value, before[name]), f"{name} is frozen and moved"
            moved = sum(not torch.equal(value, before[name]) for name, value in student.named_parameters())
            assert moved > 0, "nothing moved"
            before.clear()
            if device.type == "cuda":  # the copy for the check does not count
                torch.cuda.reset_peak_memory_stats(device)
        else:
            taken.append(clock.seconds)
    seconds = {part: statistics.median(row[part] for row in taken) for part in PARTS}
    return {
        "scenes_views_height_width": [shape[0], shape[1], *shape[3:]],
        "batches": stage.accumulate,
        "parameters": sum(p.numel() for p in student.parameters()),
        "trained": sum(p.numel() for p in trained),
        "seconds": round(sum(seconds.values()), 4),
        "of_it": {part: round(value, 4) for part, value in seconds.items()},
    }


class Clock:
    """Adds up the seconds between laps, by name; waits for the device at each."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, dict.fromkeys(PARTS, 0.0)
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Count the time since the last lap as this part's."""
        now = self._now()
        self.seconds[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


if __name__ == "__main__":
    main()
