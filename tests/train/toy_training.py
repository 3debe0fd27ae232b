"""A tiny model, loss and data for the trainer's tests, and a program that trains them in a process of its own."""

from __future__ import annotations

import math
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.models.nano import Nano, NanoConfig
from lean3r.train.checkpoints.state import load_checkpoint
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.distributed import World, current_world, launch
from lean3r.train.logs.log import read_csv
from lean3r.train.loop import FitResult, fit
from lean3r.train.losses.nano import nano_loss


class Killed(Exception):
    """Stands for a crash."""


class Toy(nn.Module):
    def __init__(self, width: int = 8, dropout: float = 0.1):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.blocks = nn.ModuleList([nn.Linear(width, 2 * width), nn.Linear(2 * width, width)])
        self.head = nn.Linear(width, 1)
        self.unused = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.ones(()))  # a sharded model keeps it whole
        self.dropout = dropout

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.movedim(2, -1))
        for block in self.blocks:
            x = torch.relu(block(x))
        # Dropout: random numbers in the loss must not harm exact resume.
        return self.gain * self.head(nn.functional.dropout(x, self.dropout, self.training)).squeeze(-1)


def toy_model(dropout: float = 0.1) -> Toy:
    torch.manual_seed(0)
    return Toy(dropout=dropout)


def toy_loss(
    model: nn.Module, batch: SceneBatch, progress: float = 0.0, scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    error = (model(batch.images).float() - batch.depth).square().mean()
    return scale * error, {"error": error}


def make_batch(seeds: list[int], views: int, height: int = 4, width: int = 5) -> SceneBatch:
    """One scene for each seed, named after it."""
    images = torch.stack(
        [torch.rand(views, 3, height, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    eye = torch.eye(4).expand(len(seeds), views, 4, 4)
    depth = 2 * images[:, :, 0] - images[:, :, 1] ** 2
    return SceneBatch(images, depth, eye[..., :3, :3], eye, ids=tuple(f"toy/{seed}" for seed in seeds))


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


def plain_config(**changes) -> TrainConfig:
    """Float32, so that only the order of sums differs between one and several processes; every step is logged."""
    stages = (Stage(4, 4, 5, (2,), 4, frozen=("stem",)), Stage(6, 5, 3, (1, 2), 4))
    changes = {"stages": stages, "precision": "fp32", "checkpoint_every": 3, "log_every": 1} | changes
    return toy_config(10, **changes)


def train_plain(
    out: Path, dies_at: int = -1, resume: bool = False, dropout: float = 0.0, bad_at: int = -1, **changes
) -> FitResult:
    """A run of `plain_config`; raise Killed when data for step `dies_at` are asked for; on step `bad_at` the last
    process has a loss that is no number."""

    def batch_fn(step, stage, rank, world_size):
        if step == dies_at:
            raise Killed
        return toy_batch(step, stage, rank, world_size)

    def loss_fn(model, batch, progress):
        loss, terms = toy_loss(model, batch)
        bad = round(progress * config.total_steps) == bad_at and world.rank == world.size - 1
        return loss * (math.nan if bad else 1.0), terms

    config, world = plain_config(**changes), current_world()
    return fit(toy_model(dropout), loss_fn, batch_fn, config, out, validate=toy_validate, resume=resume)


def no_curves() -> None:
    """In a process of its own: leave out the pictures of the curves, which take longer than the runs."""
    from lean3r.train.logs import watch

    watch.draw_curves = lambda *_: None


def nano_batch(step: int, stage: Stage, rank: int, world_size: int) -> SceneBatch:
    """Scenes of the synthetic world."""
    world = SyntheticWorld(64, 64, 2, seed=7, tiles=32, tile_size=32, compile=False)
    size = 64 * (2 if stage.loss else 1)
    return world.batch(step * world_size + rank, stage.scenes_at(step), height=size, width=size)


def train_nano(out: Path, accumulate: int, shard: Literal["none", "full"]) -> FitResult:
    """Two steps of a small nano, whose objective calls parts of the model past its forward."""
    torch.manual_seed(0)
    model = Nano(NanoConfig(width=32, heads=2, pairs=2))
    stage = Stage(1, 64, 64, (2,), 2, accumulate=accumulate, checkpointing=shard == "full")
    stages = (stage, replace(stage, loss={"full": 1.0}))
    config = TrainConfig("nano", 1, stages, OptimConfig(warmup_steps=1), "fp32", log_every=1, shard=shard)
    return fit(model, nano_loss, nano_batch, config, out)


def several_runs(out: Path) -> World:
    """On each process of a group: a whole run, one that crashes and is resumed, and runs without randomness, copied
    and sharded, that crash as the one and go on as the other."""
    no_curves()
    train_toy(out / "whole")
    with suppress(Killed):
        train_toy(out / "killed", dies_at=13)
    train_toy(out / "killed", resume=True)
    train_plain(out / "copied", shard="none")
    train_plain(out / "sharded", shard="full")
    again = tuple(replace(stage, checkpointing=True) for stage in plain_config().stages)
    train_plain(out / "again", shard="full", stages=again)
    for first, then in (("none", "full"), ("full", "none"), ("full", "full")):
        with suppress(Killed):
            train_plain(out / f"{first}-{then}", dies_at=8, shard=first)
        train_plain(out / f"{first}-{then}", resume=True, shard=then)
    with suppress(Killed):
        train_plain(out / "to-one", dies_at=8, shard="full")
    for how in ("none", "full"):
        train_plain(out / f"bad-{how}", bad_at=6, shard=how)
    train_nano(out / "nano", 1, shard="full")
    return current_world()


def dies_while_writing(out: Path) -> None:
    """On each process of a group: a sharded run, all of it killed within its second checkpoint."""
    from lean3r.train.checkpoints import shards

    seal, calls, others = shards._seal, [], current_world().gather(os.getpid())[1:]

    def killed(beside: Path, path: Path, values: dict) -> None:
        calls.append(path)
        if len(calls) == 2:
            for process in (*others, os.getpid()):
                os.kill(process, signal.SIGKILL)
        seal(beside, path, values)

    shards._seal = killed
    train_plain(out, shard="full")


def final_state(out: Path) -> dict:
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    return state


def assert_same_run(one: Path, other: Path) -> None:
    a, b = final_state(one), final_state(other)
    for part in ("model", "ema"):
        for name in a[part]:
            assert torch.equal(a[part][name], b[part][name]), (part, name)
    for part in a["optimizer"]:
        for index, values in a["optimizer"][part]["state"].items():
            for name, value in values.items():
                assert torch.equal(value, b["optimizer"][part]["state"][index][name])
    assert [a[k] for k in ("step", "best", "guard", "corrupt")] == [b[k] for k in ("step", "best", "guard", "corrupt")]
    for name in ("weights.safetensors", "best.safetensors"):
        others = load_file(other / name)
        assert all(torch.equal(value, others[key]) for key, value in load_file(one / name).items())
    for name in ("log.csv", "validation.csv"):
        assert [row["step"] for row in read_csv(one / name)] == [row["step"] for row in read_csv(other / name)]


def refuse(message: str) -> None:
    """Fail as a user's mistake on every process."""
    from lean3r.errors import UsageError

    raise UsageError(message)


if __name__ == "__main__":
    # toy_training.py OUT PROCESSES STEPS
    torch.set_num_threads(1)
    sys.exit(launch(int(sys.argv[2]), train_toy, Path(sys.argv[1]), False, int(sys.argv[3])).exit_code)
