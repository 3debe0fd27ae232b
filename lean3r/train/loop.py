"""The training loop, independent of the model. A run that is killed and resumed gives the same bits.

All random generators are seeded at every step from (seed, step, rank). So the step number is the complete state of the
generators and of the data; all other state is in the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lean3r.data import loader
from lean3r.data.loader import Prefetch
from lean3r.errors import LeanError, UsageError
from lean3r.train.checkpoints.disk import require_space
from lean3r.train.checkpoints.resume import Weights
from lean3r.train.checkpoints.shards import RunValues
from lean3r.train.checkpoints.state import (
    checkpoints,
    explain_full_disk,
    lock_folder,
    newest_checkpoint,
    remove_interrupted,
    save_weights,
)
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.distributed import StopSignals, World, catch_stop_signals, current_world
from lean3r.train.freeze import names_of_stage
from lean3r.train.guard import StepGuard
from lean3r.train.logs.watch import Watch
from lean3r.train.optim import Ema, GradientBuffer, Optimizer
from lean3r.train.sharding import Call, ShardedEma, ShardedGradients, checkpointed, is_sharded, shard

LossFn = Callable[..., tuple[Tensor, Mapping[str, Tensor | float]]]
BatchFn = loader.BatchFn[Stage]
Validate = Callable[[nn.Module], Mapping[str, float]]
Draw = Callable[[nn.Module], np.ndarray]


@dataclass(frozen=True)
class FitResult:
    """The result of a run: `step` steps done, including `skipped` steps without an update; `best` is {"value", "step"}
    of the best validation or None; `stopped_by` is the number of the signal received, or None (the signal ended the run
    early or came after the last step); `corrupt` counts the samples that could not be read."""

    step: int
    skipped: int
    best: dict[str, float] | None
    stopped_by: int | None
    corrupt: int = 0

    @property
    def exit_code(self) -> int:
        """0 when done, 130 after SIGINT, 143 after SIGTERM."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one process at one step; different for every triple."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed torch on the CPU and the current GPU, numpy and random."""
    # torch.manual_seed records a stack trace for each absent device type, which is slow and accumulates.
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
    draw: Draw | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> FitResult:
    """Train `model` in place; every process of the group (see `launch`) makes the same call.

    `loss_fn(model, batch, progress, **stage.loss)` returns the scalar to minimise, a mean over the batch, and scalars
    to log; `progress` in [0, 1) is the completed share of the run's steps. It runs under bf16 autocast unless the
    precision is "fp32". `batch_fn(step, stage, rank, world_size)` is a pure function of its arguments.
    `validate(averaged_model)` returns figures, `draw(averaged_model)` a picture [H, W, 3] uint8 of predictions
    (`pictures_every`); both run on rank 0 alone, in evaluation mode, without gradients and without autocast.

    In `out_dir`: config.json, log.csv, validation.csv, events.jsonl, loss.png, tensorboard/, pictures/, checkpoints/,
    best.safetensors and at the end weights.safetensors (averaged weights, float32) and report.md. SIGINT or SIGTERM
    ends the run after the current step with a checkpoint. It ends a validation at once; the resumed run repeats it.
    Raises UsageError if the folder holds a run and `resume` is not set, or if that run had another config; LeanError
    if too many steps are skipped, or all of them, or the disk is full.
    """
    out_dir, world = Path(out_dir), current_world()
    lock = lock_folder(out_dir) if world.is_main else nullcontext()
    with lock, explain_full_disk(out_dir), catch_stop_signals() as signals:
        run = _Run(model, config, out_dir, world, torch.device(device))
        batches = Prefetch(batch_fn, config.workers, after=partial(_batch_after, config, world))
        try:
            run.open(resume)
            if run.unvalidated and validate is not None and config.validate_every:
                run.validate(validate, signals)
                if not run.unvalidated:
                    run.save()
            while run.step < config.total_steps and not run.stopping:
                run.train_step(loss_fn, batches, stop=bool(signals))
                if run.due(config.log_every):
                    run.report()
                if validate is not None and config.validate_every and run.due(config.validate_every):
                    run.validate(validate, signals)
                if draw is not None and config.pictures_every and run.due(config.pictures_every):
                    run.draw(draw)
                if run.stopping or run.due(config.checkpoint_every):
                    run.save()
            if run.stopping and (run.unvalidated or run.step < config.total_steps):
                result = run.stop(signals[0] if signals else int(signal.SIGTERM))
            else:
                result = run.finish()
        finally:
            batches.close()
            run.watch.close()
        # Report a signal that came after the run was done, so that the caller starts nothing else.
        return replace(result, stopped_by=signals[0]) if signals and result.stopped_by is None else result


def _batch_after(
    config: TrainConfig, world: World, step: int, stage: Stage, rank: int, _size: int
) -> loader.Call[Stage] | None:
    """The call for the batch of this process after one: of the same step, else the first of the next; None at the end.
    See `_Run.train_step`."""
    if (rank + 1) % stage.accumulate:
        return step, stage, rank + 1, world.size * stage.accumulate
    later = config.stage_at(step + 1)
    return later and (step + 1, later, world.rank * later.accumulate, world.size * later.accumulate)


class _Run:
    """The mutable state of one run on one process."""

    def __init__(self, model: nn.Module, config: TrainConfig, out_dir: Path, world: World, device: torch.device):
        self.config, self.out_dir, self.world, self.device = config, out_dir, world, device
        self.model = model.to(device).train()
        world.broadcast_(self.model)
        self.trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        for stage in config.stages:
            names_of_stage(self.model, stage, self.trainable)
        if is_sharded(config.shard, self.model, world, device):
            ema = ShardedEma(self.model, config.optim.ema_decay, world, device)
            self.call = shard(self.model, device)
            ema.follow(self.model)
            self.ema: Ema | ShardedEma = ema
        else:
            self.call, self.ema = Call(self.model), Ema(self.model, config.optim.ema_decay)
        self.optimizer = Optimizer(self.model, config.optim, config.total_steps)
        self.weights = Weights(self.model, self.ema, self.optimizer, world)
        self.guard = StepGuard(config)
        self.watch = Watch(config, out_dir, world, device)
        self.step = 0
        self.best: dict[str, float] | None = None
        self.stopping = False
        self.unvalidated = False  # whether the validation of this step is still to be done
        self._stage_index = -1

    def open(self, resume: bool) -> None:
        """Restore the newest checkpoint, or start a new run in an unused folder."""
        folder, main = self.out_dir / "checkpoints", self.world.is_main
        self.world.gather(None)  # no process reads before rank 0 holds the lock
        if not resume and checkpoints(folder):
            raise UsageError(f"'{self.out_dir}' already holds a training run; resume it or choose another folder")
        if main:
            remove_interrupted(folder)
        path = self.world.gather(newest_checkpoint(folder) if resume and main else None)[0]
        if path is not None:
            state = self.weights.restore(path, self.config)
            self.step, self.best = state["step"], state["best"]
            self.guard.restore(state["guard"])
            self.watch.seconds, self.watch.corrupt = state["seconds"], state["corrupt"]
            self.watch.bad_depth = state.get("bad_depth", 0)  # absent from older checkpoints
            self.unvalidated = state.get("unvalidated", False)
        with self.world.together():
            if main and self.step < self.config.total_steps:
                missing = self.config.keep_last + 1 - len(checkpoints(folder))
                size = self.weights.bytes()
                kept = "1 checkpoint" if self.config.keep_last == 1 else f"{self.config.keep_last} checkpoints"
                require_space(self.out_dir, max(1, missing) * size + size, f"a run that keeps {kept}")
        self.watch.open(self.step)

    def due(self, every: int) -> bool:
        """Whether an action with this interval in steps is due now; it always is at the end of the run."""
        return (every > 0 and self.step % every == 0) or self.step == self.config.total_steps

    def _enter_stage(self, index: int) -> None:
        names = names_of_stage(self.model, self.config.stages[index], self.trainable)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
            parameter.grad = None
        sharded = isinstance(self.ema, ShardedEma)
        self.gradients = ShardedGradients(self.model) if sharded else GradientBuffer(self.model.parameters())
        if self.step == sum(stage.steps for stage in self.config.stages[:index]):
            self.guard.forget()
        self._stage_index = index

    def train_step(self, loss_fn: LossFn, batch_fn: BatchFn, stop: bool) -> None:
        """One step on all processes; `stop` on any of them sets `stopping` on all."""
        index = self.config.stage_index(self.step)
        if index != self._stage_index:
            self._enter_stage(index)
        stage, world, count = self.config.stages[index], self.world, self.config.stages[index].accumulate
        progress = self.step / self.config.total_steps
        bf16 = self.config.precision == "bf16"
        start, waited, views = time.perf_counter(), 0.0, 0
        terms: list[dict[str, Tensor | float]] = []
        names: list[str] = []
        total = torch.zeros((), device=self.device)
        self.gradients.zero()
        for part in range(count):
            rank = world.rank * count + part
            seed_everything(step_seed(self.config.seed, self.step, rank))
            before = time.perf_counter()
            batch = batch_fn(self.step, stage, rank, world.size * count)
            waited += time.perf_counter() - before
            batch = batch.to(self.device)
            with (
                torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext(),
                checkpointed(self.model) if stage.checkpointing else nullcontext(),
            ):
                loss, parts = self.call(loss_fn, batch, progress, **stage.loss)
            (loss / count).backward()
            total += loss.detach() / count
            terms.append({"loss": loss.detach(), **parts})
            names += batch.ids
            views += world.size * batch.views
            self.watch.note_damaged(self.step, batch.skipped, batch.unknown)
        norm, mean_loss, self.stopping = self.gradients.reduce(total, stop, world)
        why = self.guard.problem(mean_loss, norm)
        if not why:
            self.gradients.clip(norm, self.config.optim.clip_norm)
            self.optimizer.step(self.step)
            self.ema.update(self.step)
            terms[0]["grad_norm"] = norm
        self.watch.step(self.step + 1, [] if why else terms, mean_loss, views, time.perf_counter() - start, waited)
        if why:
            self._skip(why, names)
        self.step += 1

    def _skip(self, why: str, names: list[str]) -> None:
        samples = [name for part in self.world.gather(names) for name in part]
        if self.world.is_main:
            print(f"warning: step {self.step} skipped, {why}", file=sys.stderr)
        self.watch.event(self.step, "skipped", why=why, samples=samples)
        with self._ended_by_skips():
            self.guard.check_limits(self.step, why)

    @contextmanager
    def _ended_by_skips(self) -> Iterator[None]:
        """Note a LeanError, by which the run ends."""
        try:
            yield
        except LeanError as error:
            self.watch.event(self.step, "ended", why=str(error))
            self.watch.finish("Ended by skipped steps", self.step, self.guard.skipped, self.best)
            raise

    def report(self) -> None:
        """Log the steps since the last report."""
        self.watch.report(self.step, self.config.optim.lr * self.optimizer.factor(self.step - 1), self.guard.skipped)

    def validate(self, validate: Validate, signals: StopSignals) -> None:
        """Validate the averaged weights on rank 0, log the figures, keep the weights if they are the best.

        A signal ends the validation at once; all processes then set `stopping` and `unvalidated` stays set."""
        done = False
        with self.world.together(), self.ema.averaged() as model:
            if model is not None and self.world.is_main:
                seed_everything(step_seed(self.config.seed, -1, 0))
                with torch.no_grad():
                    figures = signals.unless_any(lambda: dict(validate(model)))
                if figures is not None:
                    self._judge(model, figures)
                    done = True
        states = self.world.gather((done, bool(signals)))
        self.unvalidated = not any(is_done for is_done, _ in states)
        self.stopping |= any(is_signalled for _, is_signalled in states)

    def _judge(self, model: nn.Module, figures: Mapping[str, float]) -> None:
        self.watch.validation(self.step, figures)
        key = self.config.best_key
        if not key:
            return
        if key not in figures:
            raise UsageError(f"best_key '{key}' is not a validation figure; expected one of {', '.join(figures)}")
        sign, value = 1.0 if self.config.best_mode == "max" else -1.0, float(figures[key])
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best["value"]):
            self.best = {"value": value, "step": self.step}
            self._save_weights(model, "best.safetensors")

    def draw(self, draw: Draw) -> None:
        """Save a picture of the predictions of the averaged weights."""
        with self.world.together(), self.ema.averaged() as model:
            if model is not None and self.world.is_main:
                seed_everything(step_seed(self.config.seed, -1, 0))
                with torch.no_grad():
                    self.watch.picture(self.step, draw(model))

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self.watch.gather_damaged()
        values = RunValues(
            config=self.config.to_json(),
            guard=self.guard.state(),
            seconds=self.watch.interval_seconds(),
            corrupt=self.watch.corrupt,
            bad_depth=self.watch.bad_depth,
            best=self.best,
            unvalidated=self.unvalidated,
        )
        self.weights.save(self.out_dir / "checkpoints", self.step, values, self.config.keep_last)

    def finish(self) -> FitResult:
        """Write the averaged weights, the final loss curves and the report; LeanError if no step changed anything."""
        with self._ended_by_skips():
            self.guard.check_some(self.step)
        with self.world.together(), self.ema.averaged() as model:
            if model is not None and self.world.is_main:
                self._save_weights(model, "weights.safetensors")
                self.watch.finish("Done", self.step, self.guard.skipped, self.best)
        return self._result(None)

    def stop(self, signal_number: int) -> FitResult:
        """Log why the run ends early."""
        name = signal.Signals(signal_number).name
        self.watch.event(self.step, "stopped", signal=name)
        self.watch.finish(f"Stopped by {name}", self.step, self.guard.skipped, self.best)
        return self._result(signal_number)

    def _result(self, stopped_by: int | None) -> FitResult:
        return FitResult(self.step, self.guard.skipped, self.best, stopped_by, self.watch.corrupt)

    def _save_weights(self, model: nn.Module, name: str) -> None:
        metadata = {"format": "pt", "name": self.config.name, "step": str(self.step), "config": self.config.to_json()}
        save_weights(self.out_dir / name, model.state_dict(), metadata)
