"""Changes to a recipe from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lean3r.compress.plan import CompressionPlan, Step
from lean3r.errors import UsageError
from lean3r.train.config import TrainConfig, on_processes
from lean3r.train.recipes.distilled import Distillation, Phase, with_steps

T = TypeVar("T")


@dataclass(frozen=True)
class Overrides:
    """Overrides of a recipe; None or empty keeps the value of the recipe.

    steps and lr hold one number for each phase, or one for all (the rate of Muon changes in proportion); views are the
    numbers of views a scene has, batch the pictures of a process in a batch, accumulate its batches in a step, train
    the roles of the parameters that train (train/freeze.py).
    """

    steps: tuple[int, ...] = ()
    lr: tuple[float, ...] = ()
    views: tuple[int, ...] = ()
    train: tuple[str, ...] = ()
    batch: int | None = None
    accumulate: int | None = None
    seed: int | None = None
    workers: int | None = None
    validate_every: int | None = None
    checkpoint_every: int | None = None
    pictures_every: int | None = None
    keep_last: int | None = None
    precision: str | None = None
    shard: str | None = None
    explode_factor: float | None = None
    skip_limit: int | None = None
    skip_limit_in_row: int | None = None

    def configs(self, configs: Sequence[TrainConfig], written_for: int, processes: int) -> list[TrainConfig]:
        """The configs of all phases, of a recipe written for so many processes, with these changes and on `processes`.

        A step keeps its batches, which accumulation shares out, unless `accumulate` says what each process gets.
        UsageError where something does not fit together.
        """
        steps = spread("--steps", self.steps, configs)
        rates = spread("--lr", self.lr, configs)
        if self.accumulate is None:
            configs = [on_processes(config, written_for, processes) for config in configs]
        return [self._config(config, count, lr) for config, count, lr in zip(configs, steps, rates, strict=True)]

    def _config(self, config: TrainConfig, steps: int | None, lr: float | None) -> TrainConfig:
        if steps is not None:
            config = with_steps(config, steps)
        if lr is not None:
            muon = config.optim.muon_lr * lr / config.optim.lr
            config = replace(config, optim=replace(config.optim, lr=lr, muon_lr=muon))
        stage = given(
            views=self.views or None,
            train=self.train or None,
            views_per_step=self.batch,
            accumulate=self.accumulate,
        )
        run = given(
            seed=self.seed,
            workers=self.workers,
            validate_every=self.validate_every,
            checkpoint_every=self.checkpoint_every,
            pictures_every=self.pictures_every,
            keep_last=self.keep_last,
            precision=self.precision,
            shard=self.shard,
            explode_factor=self.explode_factor,
            skip_limit=self.skip_limit,
            skip_limit_in_row=self.skip_limit_in_row,
        )
        return replace(config, stages=tuple(replace(s, **stage) for s in config.stages), **run)


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def spread(option: str, values: Sequence[T], configs: Sequence[TrainConfig]) -> list[T | None]:
    """One value for each phase: as many as given, the same one for all, or None."""
    if len(values) not in (0, 1, len(configs)):
        names = ", ".join(config.name for config in configs)
        raise UsageError(f"{option} got {len(values)} numbers for {len(configs)} phases ({names}); give one, or each.")
    return list(values) if len(values) == len(configs) else [values[0] if values else None] * len(configs)


def with_configs(recipe: Distillation, configs: Sequence[TrainConfig]) -> Distillation:
    """The recipe with other configs, one a phase."""
    phases = (replace(phase, config=config) for phase, config in zip(recipe.phases, configs, strict=True))
    return replace(recipe, phases=tuple(phases))


def with_gamma(recipe: Distillation, highest: float, lowest: float | None = None) -> Distillation:
    """The recipe with another weight of attention-output distillation, down to `lowest` (a tenth) at the end.

    Phases that do without it on purpose still do.
    """
    lowest = highest / 10 if lowest is None else lowest
    if not 0 <= lowest <= highest:
        raise UsageError(f"gamma goes from {highest} to {lowest}; expected a weight of at least 0 that falls or stays.")
    weights = {"gamma_from": highest, "gamma_to": lowest}

    def changed(phase: Phase) -> Phase:
        without = phase.settings.get("gamma_from") == 0 or phase.objective == "speed3r"
        return phase if without else replace(phase, settings={**phase.settings, **weights})

    return replace(recipe, phases=tuple(changed(phase) for phase in recipe.phases))


def with_plan(recipe: Distillation, plan: CompressionPlan) -> Distillation:
    """The recipe with a student that wears another plan, sparse at every length while it trains.

    The last phase gets the plan whole. Phases before it get its mechanisms, with their own rounding where the plan
    rounds, too; without, they are left out.
    """
    plan = always_sparse(plan)
    mechanisms = CompressionPlan(plan.exchanges, plan.name) if plan.exchanges else None
    phases: list[Phase] = []
    for phase in recipe.phases[:-1]:
        own = phase.plan.quantizes
        if mechanisms is None or (own and not plan.quantizes):
            continue
        worn = mechanisms + CompressionPlan(own, own[0].quantize) if own else mechanisms
        phases.append(replace(phase, plan=worn))
    last = recipe.phases[-1]
    sparse_alone = bool(phases) and not plan.quantizes and last.plan.quantizes
    if not sparse_alone:  # else the phase before has that plan, and the last one only adds rounding
        phases.append(replace(last, plan=plan))
    name = f"{recipe.teacher}-{plan.name}"
    phases = [
        replace(phase, config=replace(phase.config, name=f"{name}-{number}" if number < len(phases) else name))
        for number, phase in enumerate(phases, start=1)
    ]
    return replace(recipe, name=name, phases=tuple(phases))


def always_sparse(plan: CompressionPlan) -> CompressionPlan:
    """The plan without lengths below which blocks stay dense: on short training sequences nothing else would learn."""
    steps = (replace(step, dense_below=0) if isinstance(step, Step) else step for step in plan.steps)
    return CompressionPlan(tuple(steps), plan.name)


def recipe_name_for(teacher: str, plan: CompressionPlan | None) -> str:
    """The recipe that teaches such a student; UsageError where there is none."""
    mechanisms = {step.mechanism for step in plan.exchanges} if plan else set()
    linear = bool(mechanisms & {"sla", "thu-sla"})
    known = {
        "nano": ("nano-gsa-fp8", "nano-sla-fp8"),
        "pi3": ("speed3r-pi3", "speed3r-pi3"),
        "pi3x": ("speed3r-pi3", "speed3r-pi3"),
        "vggt": ("speed3r-vggt", "lite3r-vggt"),
        **dict.fromkeys(("da3-small", "da3-base", "da3-large", "da3-giant"), ("lite3r-da3", "lite3r-da3")),
    }
    if teacher not in known:
        raise UsageError(f"no recipe teaches from {teacher}. Teachers: {', '.join(known)}; or name a --recipe.")
    return known[teacher][linear]
