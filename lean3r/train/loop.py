"""The training loop: fit a model it knows nothing about, so that being killed and resumed changes no bit.

Everything random is seeded anew at every step from (seed, step, rank), so the step number is the whole state
of the random generators and of the data; the rest is in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lean3r.data.base import SceneBatch
from lean3r.errors import LeanError, MissingExtraError, UsageError
from lean3r.train.config import FREE_ON_RESUME, Stage, TrainConfig, config_diff
from lean3r.train.distributed import World, catch_stop_signals, current_world
from lean3r.train.log import CsvLog, draw_curves, progress_line
from lean3r.train.optim import Ema, GradientBuffer, Optimizer
from lean3r.train.state import (
    checkpoints,
    load_checkpoint,
    lock_folder,
    save_checkpoint,
    save_weights,
    write_atomically,
)

LossFn = Callable[..., tuple[Tensor, Mapping[str, Tensor | float]]]
BatchFn = Callable[[int, Stage, int, int], SceneBatch]
Validate = Callable[[nn.Module], Mapping[str, float]]

MAX_BAD_STEPS = 20
DRAW_EVERY_S = 30.0
_FORMAT = 1


@dataclass(frozen=True)
class FitResult:
    """How a run ended: `step` steps done, of which `skipped` were not finite; `best` is {"value", "step"} of
    the best validation or None; `stopped_by` is the number of the signal that ended it early, or None."""

    step: int
    skipped: int
    best: dict[str, float] | None
    stopped_by: int | None

    @property
    def exit_code(self) -> int:
        """0 when done, 130 after SIGINT, 143 after SIGTERM."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one process at one step; different for every triple."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch on the CPU and the current GPU, numpy and random."""
    # torch.manual_seed notes a stack trace for each absent kind of device: too slow, and it piles up.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def fit(
    model: nn.Module,
    loss_fn: LossFn,
    batch_fn: BatchFn,
    config: TrainConfig,
    out_dir: Path | str,
    *,
    validate: Validate | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> FitResult:
    """Train `model` in place, on every process of the group (see `launch`) alike.

    `loss_fn(model, batch, progress, **stage.loss)` returns the scalar to minimise, a mean over the batch, and scalars
    to log; `progress` in [0, 1) is the share of the run's steps that are done. It runs under bf16 autocast unless the
    precision is "fp32". `batch_fn(step, stage, rank, world_size)` is a pure function of its arguments.
    `validate(averaged_model)` returns figures; it runs on rank 0 alone, in evaluation mode, without gradients and
    without autocast.

    In `out_dir`: config.json, log.csv, validation.csv, loss.png, checkpoints/, best.safetensors and at the
    end weights.safetensors (averaged weights, float32). SIGINT or SIGTERM ends the run after the current step
    with a checkpoint. Raises UsageError if the folder holds a run and `resume` is not set or the run had
    another config, LeanError after MAX_BAD_STEPS steps in a row with a loss or gradient that is not finite.
    """
    out_dir, world = Path(out_dir), current_world()
    with lock_folder(out_dir) if world.is_main else nullcontext(), catch_stop_signals() as signals:
        run = _Run(model, config, out_dir, world, torch.device(device))
        run.open(resume)
        while run.step < config.total_steps:
            run.train_step(loss_fn, batch_fn, stop=bool(signals))
            run.report()
            if validate is not None and run.due(config.validate_every):
                run.validate(validate)
            if run.stopping or run.due(config.checkpoint_every):
                run.save()
            if run.stopping and run.step < config.total_steps:
                return run.result(stopped_by=signals[0] if signals else int(signal.SIGTERM))
        run.finish()
        return run.result(stopped_by=None)


class _Run:
    """The mutable state of one run on one process."""

    def __init__(self, model: nn.Module, config: TrainConfig, out_dir: Path, world: World, device: torch.device):
        self.config, self.out_dir, self.world, self.device = config, out_dir, world, device
        self.model = model.to(device).train()
        world.broadcast_(self.model)
        self.trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = Optimizer(self.model, config.optim, config.total_steps)
        self.ema = Ema(self.model, config.optim.ema_decay)
        for stage in config.stages:
            self._check_frozen(stage)
        self.step = self.skipped = self.bad_in_row = 0
        self.seconds = 0.0
        self.best: dict[str, float] | None = None
        self.stopping = False
        self._stage_index = -1
        self._drawn_at = time.monotonic()
        self._pending: list[dict[str, Tensor | float]] = []
        self._interval_seconds, self._interval_views, self._interval_steps = 0.0, 0, 0

    def _check_frozen(self, stage: Stage) -> None:
        for prefix in stage.frozen:
            if not any(name.startswith(prefix) for name in self.trainable):
                known = sorted({name.split(".")[0] for name in self.trainable})
                raise UsageError(f"no parameter starts with '{prefix}' (frozen); they start with {', '.join(known)}")

    def open(self, resume: bool) -> None:
        """Take up the newest checkpoint, or start a new run in an unused folder."""
        folder = self.out_dir / "checkpoints"
        self.world.gather(None)  # nobody reads before rank 0 holds the lock
        if not resume and checkpoints(folder):
            raise UsageError(f"'{self.out_dir}' already holds a training run; resume it or choose another folder")
        state = load_checkpoint(folder) if resume else None
        if state is not None:
            self._restore(state)
        if len(set(self.world.gather(self.step))) > 1:
            raise LeanError(f"processes found different checkpoints in '{folder}'; they must share one file system")
        if self.world.is_main:
            text = self.config.to_json()
            write_atomically(self.out_dir / "config.json", lambda path: path.write_text(text))
            self.log = CsvLog(self.out_dir / "log.csv", self.step)
            self.validation_log = CsvLog(self.out_dir / "validation.csv", self.step)

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("format") != _FORMAT:
            raise UsageError(f"checkpoint in '{self.out_dir}' has format {state.get('format')}, expected {_FORMAT}")
        saved, current = json.loads(state["config"]), json.loads(self.config.to_json())
        saved["processes"], current["processes"] = state["processes"], self.world.size
        differing = [line for line in config_diff(saved, current) if line.split(":")[0] not in FREE_ON_RESUME]
        if differing:
            raise UsageError(
                f"'{self.out_dir}' was trained with another config; cannot resume: " + "; ".join(differing)
            )
        self.model.load_state_dict(state["model"])
        self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.skipped, self.bad_in_row = state["step"], state["skipped"], state["bad_in_row"]
        self.seconds, self.best = state["seconds"], state["best"]

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the end of the run always counts."""
        return (every > 0 and self.step % every == 0) or self.step == self.config.total_steps

    def _enter_stage(self, index: int) -> None:
        stage = self.config.stages[index]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trainable and not name.startswith(stage.frozen))
            parameter.grad = None
        self.gradients = GradientBuffer(self.model.parameters())
        self._stage_index = index

    def train_step(self, loss_fn: LossFn, batch_fn: BatchFn, stop: bool) -> None:
        """One step on all processes; `stop` on any of them sets `stopping` on all."""
        started = time.perf_counter()
        index = self.config.stage_index(self.step)
        if index != self._stage_index:
            self._enter_stage(index)
        stage, gradients, world = self.config.stages[index], self.gradients, self.world
        seed_everything(step_seed(self.config.seed, self.step, world.rank))
        batch = batch_fn(self.step, stage, world.rank, world.size).to(self.device)
        gradients.zero()
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext():
            loss, terms = loss_fn(self.model, batch, self.step / self.config.total_steps, **stage.loss)
        loss.backward()
        gradients.extra[0] = loss.detach()
        gradients.extra[1] = float(stop)
        world.sum_(gradients.flat)
        if world.size > 1:
            gradients.flat.div_(world.size)
        # The only place where the host waits for the device.
        norm, mean_loss, stopping = torch.cat([gradients.norm()[None], gradients.extra]).tolist()
        if math.isfinite(norm) and math.isfinite(mean_loss):
            gradients.clip(norm, self.config.optim.clip_norm)
            self.optimizer.step(self.step)
            self.ema.update(self.step)
            self.bad_in_row = 0
            scalars: dict[str, Tensor | float] = {"loss": loss.detach(), "grad_norm": norm}
            self._pending.append(scalars | {k: v.detach() if isinstance(v, Tensor) else v for k, v in terms.items()})
        else:
            self._skip(norm, mean_loss)
        self.stopping = stopping > 0
        self.step += 1
        self._interval_views += world.size * batch.images.shape[0] * batch.images.shape[1]
        self._interval_steps += 1
        self._interval_seconds += time.perf_counter() - started

    def _skip(self, norm: float, loss: float) -> None:
        self.skipped += 1
        self.bad_in_row += 1
        if self.world.is_main:
            print(f"warning: step {self.step} skipped: loss {loss}, gradient norm {norm}", file=sys.stderr)
        if self.bad_in_row >= MAX_BAD_STEPS:
            raise LeanError(
                f"{MAX_BAD_STEPS} steps in a row up to step {self.step} had a loss or gradient that is not finite; "
                "look at the loss of this step, or start again with a lower learning rate"
            )

    def report(self) -> None:
        """Every log_every steps: one row in the log, means over the steps since the last one and all processes."""
        if not self.due(self.config.log_every):
            return
        sums: dict[str, tuple[float, int]] = {}
        for name in dict.fromkeys(name for terms in self._pending for name in terms):
            values = [float(terms[name]) for terms in self._pending if name in terms]
            sums[name] = (sum(values), len(values))
        self.seconds += self._interval_seconds
        everywhere = self.world.gather(sums)
        if self.world.is_main:
            per_second = self._interval_views / self._interval_seconds
            lr = self.config.optim.lr * self.optimizer.factor(self.step - 1)
            row: dict[str, float] = {"step": self.step, "seconds": round(self.seconds, 1)}
            for name in dict.fromkeys(name for part in everywhere for name in part):
                if name in row:
                    raise UsageError(f"the loss function returns a term '{name}', which is a column of the log already")
                parts = [part[name] for part in everywhere if name in part]
                row[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
            row |= {"lr": lr, "views_per_s": per_second, "skipped": self.skipped}
            self.log.append(row)
            left = (self.config.total_steps - self.step) * self._interval_seconds / self._interval_steps
            progress_line(self.step, self.config.total_steps, row, left)
        self._pending = []
        self._interval_seconds, self._interval_views, self._interval_steps = 0.0, 0, 0

    def validate(self, validate: Validate) -> None:
        """Judge the averaged weights on rank 0, log the figures, keep the weights if they are the best."""
        if not self.world.is_main:
            return
        seed_everything(step_seed(self.config.seed, -1, 0))
        with torch.no_grad():
            figures = dict(validate(self.ema.model))
        self.validation_log.append({"step": self.step} | figures)
        progress_line(self.step, self.config.total_steps, {f"val.{k}": v for k, v in figures.items()})
        if time.monotonic() - self._drawn_at > DRAW_EVERY_S:
            self._draw()
        key = self.config.best_key
        if not key:
            return
        if key not in figures:
            raise UsageError(f"best_key '{key}' is not among the validation figures {', '.join(figures)}")
        sign = 1.0 if self.config.best_mode == "max" else -1.0
        if self.best is None or sign * figures[key] > sign * self.best["value"]:
            self.best = {"value": float(figures[key]), "step": self.step}
            self._save_weights("best.safetensors")

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        if not self.world.is_main:
            return
        state = {
            "format": _FORMAT,
            "step": self.step,
            "config": self.config.to_json(),
            "processes": self.world.size,
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped,
            "bad_in_row": self.bad_in_row,
            "seconds": self.seconds + self._interval_seconds,
            "best": self.best,
        }
        save_checkpoint(self.out_dir / "checkpoints", self.step, state)

    def finish(self) -> None:
        """Write the averaged weights and the last picture."""
        if self.world.is_main:
            self._save_weights("weights.safetensors")
            self._draw()

    def _save_weights(self, name: str) -> None:
        metadata = {"format": "pt", "name": self.config.name, "step": str(self.step), "config": self.config.to_json()}
        save_weights(self.out_dir / name, self.ema.model.state_dict(), metadata)

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        try:
            draw_curves(self.out_dir / "log.csv", self.out_dir / "validation.csv", self.out_dir / "loss.png")
        except MissingExtraError as error:
            print(f"note: no loss curves: {error}", file=sys.stderr)

    def result(self, stopped_by: int | None) -> FitResult:
        """What `fit` returns."""
        return FitResult(self.step, self.skipped, self.best, stopped_by)
