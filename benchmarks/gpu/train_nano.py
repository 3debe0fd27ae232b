"""Train nano on one GPU within a time limit and bring its weights back.

    python benchmarks/gpu/train_nano.py --out DIR [--seconds 480] [--textures DIR] [--width 128] [--compile]

The recipe is the CPU one with larger steps; how many steps fit is measured first, so that the learning rate reaches its
end in time. A row before training: the loss is finite and falls on one fixed batch. Then a row for each phase, with its
validation; after each DIR/nano.safetensors holds the weights, matrices in float16, and an interrupted training goes on
behind the last finished phase. --compile compiles the ray caster: faster, after minutes of compiling. On a CPU a few
tiny steps run. Judge the weights like any others: benchmarks/accuracy.py --weights FILE.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rows import TINY_WORLD, Rows

from lean3r.eval.synthetic import validate
from lean3r.models.checkpoint import halved, load_weights, save_weights
from lean3r.models.nano import Nano, NanoConfig
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.held_out import FEW, SETS, HeldOut
from lean3r.train.loop import fit, seed_everything
from lean3r.train.losses.nano import nano_loss
from lean3r.train.recipes import Recipe, nano

SHARES = (0.4, 0.25, 0.35)  # of the time, for the three phases of the recipe
RESERVE = 0.85  # of the time goes into steps, the rest into start and validation
TINY_STEPS = 2
TINY = {"height": 32, "width": 32, "views": (2,), "views_per_step": 4}


def main() -> None:
    """Verify, size the run, train, save after each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--textures")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--views-per-step", type=int, default=512)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device, rows = options.device, Rows(options.out, "train", options.device)
    tiny = device != "cuda"
    width = 32 if tiny else options.width
    start, recipe = time.monotonic(), sized(options)
    config = NanoConfig(width=width, heads=width // 32)
    rows.take("loss falls on one batch", lambda: verify(recipe, Nano(config).to(device), device))
    seed_everything(recipe.phases[0].seed)
    model, weights = Nano(config), options.out / "nano.safetensors"
    finished = [index for index, phase in enumerate(recipe.phases) if "seconds" in rows.done.get(phase.name, {})]
    if finished and weights.exists():
        load_weights(model, weights)
    for index in range(len(finished), len(recipe.phases)):
        left_s = max(options.seconds - (time.monotonic() - start), 1.0)
        share = SHARES[index] / sum(SHARES[index:])

        def phase(index: int = index, seconds: float = left_s * share) -> dict:
            return train_phase(recipe, index, model, seconds, options)

        if "failed" in rows.take(recipe.phases[index].name, phase):
            break


def sized(options: argparse.Namespace) -> Recipe:
    """The recipe with steps of --views-per-step views, on the device; on a CPU tiny ones."""
    base, tiny = nano(options.textures), options.device != "cuda"
    scale = options.views_per_step / base.phases[0].stages[0].views_per_step

    def grown(stage: Stage) -> Stage:
        return replace(stage, **TINY) if tiny else replace(stage, views_per_step=int(stage.views_per_step * scale))

    phases = tuple(replace(phase, stages=(grown(phase.stages[0]),)) for phase in base.phases)
    few = TINY_WORLD if tiny else {}
    world = replace(base.world, device=options.device, compile=options.compile, **few)
    return replace(base, phases=phases, world=world)


def verify(recipe: Recipe, model: Nano, device: str) -> dict:
    """Steps on one batch must lower a finite loss."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    batch = recipe.batch(0, 0, replace(recipe.phases[0].stages[0], views_per_step=16), 0, 1).to(device)
    losses: list[float] = []
    for _ in range(30 if device == "cuda" else 3):
        loss, _ = nano_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    if not losses[-1] < losses[0]:
        return {"failed": f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} on one batch"}
    return {"first_loss": round(losses[0], 4), "last_loss": round(losses[-1], 4)}


def train_phase(recipe: Recipe, index: int, model: Nano, seconds: float, options: argparse.Namespace) -> dict:
    """Train one phase for about so many seconds, save the weights; steps, speed and validation."""
    device, start = options.device, time.monotonic()
    phase = recipe.phases[index]
    if device == "cuda":
        each = seconds_a_step(recipe, Nano(model.config).to(device), index, device)
        phase = with_steps(phase, max(20, int(RESERVE * (seconds - (time.monotonic() - start)) / each)))
    else:
        phase = with_steps(phase, TINY_STEPS)
    stage = phase.stages[-1]
    held_out = HeldOut() if device == "cuda" else HeldOut((), 1)
    scale = 1 if stage.loss.get("full") else 2
    judge = partial(
        validate, partial(held_out.batches, recipe.world, stage, scale), SETS if device == "cuda" else FEW[:1]
    )
    with tempfile.TemporaryDirectory() as work:
        batch = partial(recipe.batch, index)
        fit(model, nano_loss, batch, phase, work, validate=judge, device=device)
        load_weights(model, Path(work) / "weights.safetensors")
        validation = (Path(work) / "validation.csv").read_text().splitlines()
    kept = halved(model.state_dict())
    save_weights(kept, options.out / "nano.safetensors", {"model": "nano"})
    figures = dict(zip(validation[0].split(","), validation[-1].split(","), strict=True))
    return {
        "seconds": round(time.monotonic() - start, 1),
        "steps": phase.total_steps,
        "views_per_step": stage.views_per_step,
        "width": model.config.width,
        "validation": figures,
    }


def with_steps(phase: TrainConfig, steps: int) -> TrainConfig:
    """The phase with as many steps, its warm-up no longer than a fifth of them; validated once, at the end."""
    optim = replace(phase.optim, warmup_steps=min(phase.optim.warmup_steps, steps // 5))
    stages = (replace(phase.stages[0], steps=steps),)
    return replace(phase, stages=stages, optim=optim, validate_every=steps, checkpoint_every=steps)


def seconds_a_step(recipe: Recipe, model: Nano, phase: int, device: str, steps: int = 8) -> float:
    """Mean over a few steps, data included, after two to warm up."""
    stage = recipe.phases[phase].stages[0]
    start = 0.0
    for step in range(steps + 2):
        if step == 2:
            torch.cuda.synchronize()
            start = time.perf_counter()
        batch = recipe.batch(phase, step, stage, 0, 1).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss, _ = nano_loss(model, batch, **stage.loss)
        loss.backward()
        model.zero_grad()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
