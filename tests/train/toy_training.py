"""A tiny model, loss and data for the trainer's tests, and a program that trains them in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from lean3r.data.base import SceneBatch
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.distributed import World, current_world, launch
from lean3r.train.loop import FitResult, fit


class Killed(Exception):
    """Stands for a crash."""


class Toy(nn.Module):
    def __init__(self, width: int = 8, dropout: float = 0.1):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.blocks = nn.ModuleList([nn.Linear(width, 2 * width), nn.Linear(2 * width, width)])
        self.head = nn.Linear(width, 1)
        self.unused = nn.Linear(2, 2)
        self.dropout = dropout

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.movedim(2, -1))
        for block in self.blocks:
            x = torch.relu(block(x))
        # Dropout: random numbers in the loss must not harm exact resume.
        return self.head(nn.functional.dropout(x, self.dropout, self.training)).squeeze(-1)


def toy_model(dropout: float = 0.1) -> Toy:
    torch.manual_seed(0)
    return Toy(dropout=dropout)


def toy_loss(
    model: nn.Module, batch: SceneBatch, progress: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    error = (model(batch.images).float() - batch.depth).square().mean()
    return scale * error, {"error": error}


def make_batch(seeds: list[int], views: int, height: int = 4, width: int = 5) -> SceneBatch:
    """One scene for each seed."""
    images = torch.stack(
        [torch.rand(views, 3, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    eye = torch.eye(4).expand(len(seeds), views, 4, 4)
    return SceneBatch(images, 2 * images[:, :, 0] - images[:, :, 1] ** 2, eye[..., :3, :3], eye)


def toy_batch(step: int, stage: Stage, rank: int, world_size: int) -> SceneBatch:
    """Scenes of a step are numbered over all processes."""
    count = stage.scenes_at(step)
    seeds = [1000 * step + rank * count + i for i in range(count)]
    return make_batch(seeds, stage.views_at(step), stage.height, stage.width)


def toy_config(steps: int = 24, **changes) -> TrainConfig:
    half = steps // 2
    values = {
        "name": "toy",
        "seed": 3,
        "stages": (Stage(half, 4, 5, (2, 3), 6, frozen=("stem",)), Stage(steps - half, 5, 3, (1, 4), 8)),
        "optim": OptimConfig(warmup_steps=4, ema_decay=0.9, lr=1e-2),
        "validate_every": 8,
        "checkpoint_every": 5,
        "log_every": 4,
        "best_key": "error",
        "best_mode": "min",
    }
    return TrainConfig(**values | changes)


def toy_validate(model: nn.Module) -> dict[str, float]:
    assert not model.training
    return {"error": toy_loss(model, make_batch([10**6, 10**6 + 1], 2))[0].item()}


def train_toy(out: Path, resume: bool = False, steps: int = 24, dies_at: int = -1) -> FitResult:
    """Train the toy; raise Killed when data for step `dies_at` are asked for."""

    def batch_fn(step, stage, rank, world_size):
        if step == dies_at:
            raise Killed
        return toy_batch(step, stage, rank, world_size)

    return fit(toy_model(), toy_loss, batch_fn, toy_config(steps), out, validate=toy_validate, resume=resume)


def plain_config(views_per_step: int) -> TrainConfig:
    """Float32, so that only the order of sums differs between one and several processes."""
    return toy_config(8, stages=(Stage(8, 4, 5, (2,), views_per_step),), precision="fp32")


def several_runs(out: Path) -> World:
    """On each process of a group: a whole run, a run that crashes and is resumed, a run without dropout."""
    train_toy(out / "whole")
    try:
        train_toy(out / "killed", dies_at=13)
    except Killed:
        train_toy(out / "killed", resume=True)
    fit(toy_model(dropout=0.0), toy_loss, toy_batch, plain_config(4), out / "plain")
    return current_world()


def refuse(message: str) -> None:
    """Fail as a user's mistake on every process."""
    from lean3r.errors import UsageError

    raise UsageError(message)


if __name__ == "__main__":
    # toy_training.py OUT PROCESSES STEPS
    torch.set_num_threads(1)
    sys.exit(launch(int(sys.argv[2]), train_toy, Path(sys.argv[1]), False, int(sys.argv[3])).exit_code)
