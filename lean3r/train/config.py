"""What a training run is: frozen dataclasses that check themselves and go to JSON and back unchanged."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from lean3r.errors import UsageError

# Settings that do not touch the weights: a resumed run may change them.
FREE_ON_RESUME = ("validate_every", "checkpoint_every", "log_every")


def _require(ok: bool, field_name: str, got: object, expected: str) -> None:
    if not ok:
        raise UsageError(f"training config: {field_name} is {got!r}, expected {expected}")


@dataclass(frozen=True)
class Stage:
    """A stretch of steps with one picture size.

    `views` are the numbers of views a scene has, cycled by step; `views_per_step` pictures are used by each
    process in a step, so scenes_at(step) = views_per_step // views_at(step). Parameters whose name starts
    with an entry of `frozen` do not train. `loss` is passed to the loss function as keyword arguments.
    """

    steps: int
    height: int
    width: int
    views: tuple[int, ...]
    views_per_step: int
    frozen: tuple[str, ...] = ()
    loss: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("steps", "height", "width", "views_per_step"):
            _require(getattr(self, name) >= 1, f"stage.{name}", getattr(self, name), "at least 1")
        _require(len(self.views) > 0 and min(self.views) >= 1, "stage.views", self.views, "view counts of at least 1")
        _require(
            max(self.views) <= self.views_per_step,
            "stage.views_per_step",
            self.views_per_step,
            f"at least the largest view count, {max(self.views)}",
        )

    def views_at(self, step: int) -> int:
        """Views of each scene at this step of the run."""
        return self.views[step % len(self.views)]

    def scenes_at(self, step: int) -> int:
        """Scenes that one process sees at this step of the run."""
        return self.views_per_step // self.views_at(step)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW for everything (`lr`), Muon for the matrices of blocks (`muon_lr`; 0 gives them to AdamW).

    Both follow one schedule: linear warm-up, then a cosine down to `final_lr_ratio` at the end of the run.
    Gradients are clipped to a global norm of `clip_norm`; `ema_decay` is that of the averaged weights.
    """

    lr: float = 1e-3
    muon_lr: float = 2e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    final_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        _require(self.lr > 0 and math.isfinite(self.lr), "optim.lr", self.lr, "a positive number")
        _require(self.muon_lr >= 0 and math.isfinite(self.muon_lr), "optim.muon_lr", self.muon_lr, "0 or more")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "optim.betas", self.betas, "two in [0, 1)"
        )
        _require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "0 or more")
        _require(self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "a positive number")
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "a number in [0, 1)")
        _require(0 <= self.final_lr_ratio <= 1, "optim.final_lr_ratio", self.final_lr_ratio, "a number in [0, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. `*_every` count steps; 0 means only at the end, which always counts (not for `log_every`).

    `best_key` names the validation figure that decides which weights are best, by `best_mode`.
    `settings` records, as JSON values, what else decides the weights (model, loss, data), so that a resumed
    run with other settings is refused.
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

    def __post_init__(self) -> None:
        _require(bool(self.name), "name", self.name, "a name")
        _require(len(self.stages) > 0, "stages", self.stages, "at least one stage")
        _require(self.precision in ("bf16", "fp32"), "precision", self.precision, "'bf16' or 'fp32'")
        _require(self.best_mode in ("min", "max"), "best_mode", self.best_mode, "'min' or 'max'")
        for name in ("validate_every", "checkpoint_every"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 (at the end) or a number of steps")
        _require(self.log_every >= 1, "log_every", self.log_every, "at least 1")
        _require(
            self.optim.warmup_steps < self.total_steps or self.total_steps == 1,
            "optim.warmup_steps",
            self.optim.warmup_steps,
            f"fewer than the {self.total_steps} steps of the run",
        )

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_index(self, step: int) -> int:
        """Which stage a step of the run belongs to; IndexError past the end."""
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index
            step -= stage.steps
        raise IndexError(f"the run has {self.total_steps} steps")

    def to_json(self) -> str:
        """Text that `from_json` turns back into an equal config."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read `to_json` text; UsageError on unknown, missing or impossible entries."""
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"training config is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise UsageError(f"training config is a JSON {type(raw).__name__}, expected an object")
        stages = tuple(
            _build(Stage, s | {k: tuple(s[k]) for k in ("views", "frozen") if k in s}) for s in raw.get("stages", ())
        )
        optim = raw.get("optim", {})
        if "betas" in optim:
            optim = optim | {"betas": tuple(optim["betas"])}
        return _build(cls, raw | {"stages": stages, "optim": _build(OptimConfig, optim)})


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
        raise UsageError(f"training config: {cls.__name__} misses {', '.join(missing)}")
    return cls(**values)


def config_diff(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Lines "path: SAVED in the run, CURRENT now" for every differing leaf of two JSON objects."""
    before, now = _leaves(saved), _leaves(current)
    return [
        f"{path}: {before.get(path, 'absent')} in the run, {now.get(path, 'absent')} now"
        for path in sorted(before.keys() | now.keys())
        if before.get(path, "absent") != now.get(path, "absent")
    ]


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: json.dumps(value)}
    out: dict[str, str] = {}
    for key, child in items:
        out |= _leaves(child, f"{path}.{key}" if path else str(key))
    return out
