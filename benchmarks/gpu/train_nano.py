"""Train nano on one GPU within a time limit and leave weights, log and figures in a folder.

    python benchmarks/gpu/train_nano.py --out DIR [--minutes 8] [--textures DIR] [--width 256] [--device cuda]

The recipe is the CPU one with larger steps; how many steps fit is measured first, so that the learning rate
reaches its end in time. Verified before it trains: the loss is finite and falls on one fixed batch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import hardware

from lean3r.eval.synthetic import validate
from lean3r.models.checkpoint import load_weights, save_weights
from lean3r.models.nano import Nano, NanoConfig
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.held_out import SETS, HeldOut
from lean3r.train.loop import fit, seed_everything
from lean3r.train.losses.nano import nano_loss
from lean3r.train.recipes import Recipe, nano

SHARES = (0.4, 0.25, 0.35)  # of the time, for the three phases of the recipe


def seconds_a_step(recipe: Recipe, model: Nano, phase: int, device: str, steps: int = 8) -> float:
    """Median-free mean over a few steps, data included, after two to warm up."""
    stage = recipe.phases[phase].stages[0]
    for step in range(steps + 2):
        if step == 2:
            _wait(device)
            start = time.perf_counter()
        batch = recipe.batch(phase, step, stage, 0, 1).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss, _ = nano_loss(model, batch, **stage.loss)
        loss.backward()
        model.zero_grad()
    _wait(device)
    return (time.perf_counter() - start) / steps


def verify(recipe: Recipe, model: Nano, device: str) -> None:
    """A few steps on one batch must lower a finite loss."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    batch = recipe.batch(0, 0, replace(recipe.phases[0].stages[0], views_per_step=16), 0, 1).to(device)
    losses = []
    for _ in range(30):
        loss, _ = nano_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses


def fitted(recipe: Recipe, model: Nano, minutes: float, device: str) -> Recipe:
    """The recipe with as many steps in each phase as its share of the time holds."""
    phases: list[TrainConfig] = []
    for index, (phase, share) in enumerate(zip(recipe.phases, SHARES, strict=True)):
        steps = max(20, int(60 * minutes * share * 0.9 / seconds_a_step(recipe, model, index, device)))
        stage: Stage = replace(phase.stages[0], steps=steps)
        warmup = min(phase.optim.warmup_steps, steps // 5)
        every = max(1, steps // 4)
        optim = replace(phase.optim, warmup_steps=warmup)
        phases.append(replace(phase, stages=(stage,), optim=optim, validate_every=every, checkpoint_every=every))
    return replace(recipe, phases=tuple(phases))


def main() -> None:
    """Verify, size the run, train, bring everything back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--textures")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--views-per-step", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    base = nano(options.textures)
    scale = options.views_per_step / base.phases[0].stages[0].views_per_step
    phases = tuple(
        replace(p, stages=(replace(p.stages[0], views_per_step=int(p.stages[0].views_per_step * scale)),))
        for p in base.phases
    )
    compiled = options.device == "cuda"
    recipe = replace(base, phases=phases, world=replace(base.world, device=options.device, compile=compiled))
    config = NanoConfig(width=options.width, heads=options.width // 32)
    verify(recipe, Nano(config).to(options.device), options.device)
    recipe = fitted(recipe, Nano(config).to(options.device), options.minutes, options.device)
    seed_everything(recipe.phases[0].seed)
    model, work = Nano(config), options.out / "run"
    shutil.rmtree(work, ignore_errors=True)
    start = time.perf_counter()
    for index, phase in enumerate(recipe.phases):
        scale = 1 if phase.stages[-1].loss.get("full") else 2
        judge = partial(validate, partial(HeldOut().batches, recipe.world, phase.stages[-1], scale), SETS)
        fit(
            model,
            nano_loss,
            partial(recipe.batch, index),
            phase,
            work / phase.name,
            validate=judge,
            device=options.device,
        )
        load_weights(model, work / phase.name / "weights.safetensors")
        for name in ("log.csv", "validation.csv"):
            shutil.copyfile(work / phase.name / name, options.out / f"{phase.name}-{name}")
    save_weights(model.state_dict(), options.out / "nano.safetensors", {"model": "nano"})
    report = {
        "hardware": hardware(),
        "minutes": (time.perf_counter() - start) / 60,
        "steps": [p.total_steps for p in recipe.phases],
        "views_per_step": [p.stages[0].views_per_step for p in recipe.phases],
        "width": options.width,
    }
    (options.out / "nano_training.json").write_text(json.dumps(report, indent=2) + "\n")
    shutil.rmtree(work)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
