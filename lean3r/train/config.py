"""The configuration of a training run: frozen dataclasses that validate themselves and convert to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from lean3r.errors import UsageError
from lean3r.json_text import parse_json

# Settings that do not affect the weights: a resumed run may change them.
_FREE = (
    "validate_every",
    "checkpoint_every",
    "log_every",
    "pictures_every",
    "keep_last",
    "workers",
    "shard",
    "skip_limit",
    "skip_limit_in_row",
    "root",  # of a data set: the same files may lie elsewhere
)

_TUPLES = ("views", "frozen", "train", "pixels", "aspect")


def _require(ok: bool, field_name: str, got: object, expected: str) -> None:
    if not ok:
        raise UsageError(f"training config: {field_name} is {got!r}, expected {expected}")


@dataclass(frozen=True)
class Stage:
    """A sequence of steps with the same kind of batch.

    `views` lists the numbers of views per scene, cycled by step. Each process uses `views_per_step` pictures in a
    batch, so scenes_at(step) = views_per_step // views_at(step). Pictures are `height` x `width`. If `pixels` (lowest,
    highest area) and `aspect` (lowest, highest width / height) are set, the size varies from batch to batch, with
    sides that are multiples of `multiple`; height x width is then the size for validation.

    `train` lists the roles of the parameters to train (see train/freeze.py; empty: all). Parameters whose name starts
    with an entry of `frozen` stay frozen. The gradient of a step is the mean over `accumulate` batches per process,
    drawn as if by that many processes: 1 process x 4 batches is the same run as 4 x 1. `checkpointing` recomputes the
    blocks in the backward pass instead of keeping their activations. `loss` holds keywords for the loss function.
    """

    steps: int
    height: int
    width: int
    views: tuple[int, ...]
    views_per_step: int
    frozen: tuple[str, ...] = ()
    loss: dict[str, float] = field(default_factory=dict)
    train: tuple[str, ...] = ()
    pixels: tuple[int, int] | None = None
    aspect: tuple[float, float] | None = None
    multiple: int = 14
    accumulate: int = 1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "height", "width", "views_per_step", "multiple", "accumulate"):
            _require(getattr(self, name) >= 1, f"stage.{name}", getattr(self, name), "at least 1")
        _require(len(self.views) > 0 and min(self.views) >= 1, "stage.views", self.views, "view counts of at least 1")
        _require(
            max(self.views) <= self.views_per_step,
            "stage.views_per_step",
            self.views_per_step,
            f"at least the largest view count, {max(self.views)}",
        )
        for name in ("frozen", "train"):
            names = getattr(self, name)
            _require(isinstance(names, tuple) and all(names), f"stage.{name}", names, "a tuple of names")
        for name in ("pixels", "aspect"):
            span = getattr(self, name)
            ok = span is None or (len(span) == 2 and 0 < span[0] <= span[1] < math.inf)
            _require(ok, f"stage.{name}", span, "(lowest, highest), both positive, or None")
        _require(
            self.aspect is None or self.pixels is not None,
            "stage.aspect",
            self.aspect,
            "None unless stage.pixels is set (without stage.pixels every picture is height x width)",
        )
        if self.pixels is not None:
            _require(
                self.pixels[0] >= self.multiple**2,
                "stage.pixels",
                self.pixels,
                f"areas of at least one cell of {self.multiple} x {self.multiple} pixels (stage.multiple)",
            )

    def views_at(self, step: int) -> int:
        """Views of each scene at this step of the run."""
        return self.views[step % len(self.views)]

    def scenes_at(self, step: int) -> int:
        """Scenes that one process sees at this step of the run."""
        return self.views_per_step // self.views_at(step)


@dataclass(frozen=True)
class OptimConfig:
    """Muon for the matrices in blocks (`muon_lr`; 0: AdamW instead), AdamW for all other parameters (`lr`).

    Both follow one schedule: linear warm-up, then a cosine or a straight line down to `final_lr_ratio` at the end of
    the run. With "linear", Lite3R's, the first step of the warm-up has rate 0, and a run may end within its warm-up.
    Gradients are clipped to a global norm of `clip_norm`; `ema_decay` is the decay of the averaged weights. Parameters
    of less than two dimensions, and those whose name contains an entry of `undecayed`, have no weight decay.
    """

    lr: float = 1e-3
    muon_lr: float = 2e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    final_lr_ratio: float = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    undecayed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.lr > 0 and math.isfinite(self.lr), "optim.lr", self.lr, "a positive number")
        _require(self.muon_lr >= 0 and math.isfinite(self.muon_lr), "optim.muon_lr", self.muon_lr, "0 or more")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "optim.betas",
            self.betas,
            "two numbers in [0, 1)",
        )
        _require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "0 or more")
        _require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "a positive number")
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "a number in [0, 1)")
        _require(0 <= self.final_lr_ratio <= 1, "optim.final_lr_ratio", self.final_lr_ratio, "a number in [0, 1]")
        _require(self.schedule in ("cosine", "linear"), "optim.schedule", self.schedule, "'cosine' or 'linear'")
        names = self.undecayed
        _require(isinstance(names, tuple) and all(names), "optim.undecayed", names, "a tuple of parts of names")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. The `*_every` intervals are in steps; each action also happens at the end of the run. 0 means never,
    except for `checkpoint_every` (0: only at the end) and `log_every` (at least 1).

    `best_key` names the validation figure that selects the best weights, and `best_mode` says whether higher or lower
    is better. The newest `keep_last` checkpoints are kept. A step is skipped if its loss or gradient is not finite, or
    if its gradient norm exceeds `explode_factor` times the running median (0: no such limit); the run ends after
    `skip_limit_in_row` skipped steps in a row or `skip_limit` in total. `workers` prepare batches ahead (0: none).
    `shard` spreads parameters, gradients and optimiser state over the processes ("full"), copies them to each process
    ("none"), or decides by memory ("auto"). `settings` records everything else that affects the weights (model, loss,
    data) as JSON values; a run cannot be resumed with other settings.
    """

    name: str
    seed: int
    stages: tuple[Stage, ...]
    optim: OptimConfig = OptimConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    validate_every: int = 500
    checkpoint_every: int = 500
    log_every: int = 50
    best_key: str = ""
    best_mode: Literal["min", "max"] = "max"
    settings: dict[str, Any] = field(default_factory=dict)
    pictures_every: int = 0
    keep_last: int = 2
    explode_factor: float = 100.0
    skip_limit: int = 1000
    skip_limit_in_row: int = 20
    workers: int = 0
    shard: Literal["auto", "none", "full"] = "auto"

    def __post_init__(self) -> None:
        _require(bool(self.name), "name", self.name, "a name")
        _require(len(self.stages) > 0, "stages", self.stages, "at least one stage")
        _require(self.precision in ("bf16", "fp32"), "precision", self.precision, "'bf16' or 'fp32'")
        _require(self.best_mode in ("min", "max"), "best_mode", self.best_mode, "'min' or 'max'")
        _require(self.shard in ("auto", "none", "full"), "shard", self.shard, "'auto', 'none' or 'full'")
        _require(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every, "0 (at the end) or more")
        for name in ("validate_every", "pictures_every", "workers"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 (none) or more")
        for name in ("log_every", "keep_last", "skip_limit", "skip_limit_in_row"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(
            self.explode_factor == 0 or 1 < self.explode_factor < math.inf,
            "explode_factor",
            self.explode_factor,
            "0 (no limit) or a number above 1",
        )
        _require(
            self.best_mode == "max" or bool(self.best_key), "best_mode", self.best_mode, "'max' if best_key is empty"
        )
        _require(
            self.optim.schedule == "linear" or self.optim.warmup_steps < self.total_steps or self.total_steps == 1,
            "optim.warmup_steps",
            self.optim.warmup_steps,
            f"fewer than the {self.total_steps} steps of the run",
        )

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_index(self, step: int) -> int:
        """Index of the stage that contains this step; IndexError past the end."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index
            step -= stage.steps
        raise IndexError(f"the run has {self.total_steps} steps")

    def stage_at(self, step: int) -> Stage | None:
        """The stage of a step of the run; None past the end."""
        return self.stages[self.stage_index(step)] if step < self.total_steps else None

    def to_json(self) -> str:
        """Text that `from_json` turns back into an equal config."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read `to_json` text; UsageError on unknown, missing or impossible entries."""
        try:
            raw = parse_json(text)
        except ValueError as error:
            raise UsageError(f"training config is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise UsageError(f"training config is a JSON {type(raw).__name__}, expected an object")
        try:
            stages = tuple(
                _build(Stage, s | {k: tuple(s[k]) for k in _TUPLES if s.get(k) is not None})
                for s in raw.get("stages", ())
            )
            optim = raw.get("optim", {})
            optim = optim | {name: tuple(optim[name]) for name in ("betas", "undecayed") if name in optim}
            return _build(cls, raw | {"stages": stages, "optim": _build(OptimConfig, optim)})
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UsageError(f"training config: an entry has a value of the wrong type: {error}") from error


def _build(cls: type, values: dict[str, Any]) -> Any:
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; perhaps {near[0]!r}" if near else f"; known: {', '.join(known)}"
            raise UsageError(f"training config: {cls.__name__} has no entry {name!r}{hint}")
    absent = dataclasses.MISSING
    missing = [n for n, f in known.items() if n not in values and f.default is absent and f.default_factory is absent]
    if missing:
        raise UsageError(f"training config: {cls.__name__} lacks the required entries {', '.join(missing)}")
    return cls(**values)


def config_diff(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Lines "path: SAVED in the run, CURRENT now" for every differing leaf of two JSON objects that affects weights."""
    before, now = _leaves(saved), _leaves(current)
    return [
        f"{path}: {before.get(path, 'absent')} in the run, {now.get(path, 'absent')} now"
        for path in sorted(before.keys() | now.keys())
        if before.get(path, "absent") != now.get(path, "absent") and path.split(".")[-1] not in _FREE
    ]


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: json.dumps(value)}
    out: dict[str, str] = {}
    for key, child in items:
        out |= _leaves(child, f"{path}.{key}" if path else str(key))
    return out


def on_processes(config: TrainConfig, written_for: int, processes: int) -> TrainConfig:
    """The same run on another number of processes: accumulation changes so that each step keeps its batches.

    UsageError if the batches of a step cannot be divided evenly.
    """
    stages = []
    for stage in config.stages:
        accumulate, rest = divmod(stage.accumulate * written_for, processes)
        _require(
            rest == 0,
            "processes",
            processes,
            f"a divisor of the {stage.accumulate * written_for} batches per step of {config.name} "
            f"({written_for} processes x stage.accumulate {stage.accumulate}); or set the batches per process and step "
            "(--accumulate), which changes the run",
        )
        stages.append(dataclasses.replace(stage, accumulate=accumulate))
    return dataclasses.replace(config, stages=tuple(stages))
