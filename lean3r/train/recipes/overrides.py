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

    - `steps`, `lr`: one number for each phase, or one for all (the rate of Muon changes in proportion).
    - `views`: numbers of views per scene; `batch`: pictures in a batch of a process; `accumulate`: batches of a process
      in a step.
    - `train`: roles of the parameters to train (train/freeze.py).
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
        """The configs of all phases with these overrides, converted from `written_for` to `processes` processes.

        A step keeps its number of batches, by a different accumulation, unless `accumulate` sets the batches of each
        process. UsageError if values contradict each other.
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
        stage = drop_none(
            views=self.views or None,
            train=self.train or None,
            views_per_step=self.batch,
            accumulate=self.accumulate,
        )
        run = drop_none(
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


def drop_none(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def spread(option: str, values: Sequence[T], configs: Sequence[TrainConfig]) -> list[T | None]:
    """One value for each phase, from one per phase, one for all, or none (all None); UsageError otherwise."""
    if len(values) not in (0, 1, len(configs)):
        names = ", ".join(config.name for config in configs)
        raise UsageError(
            f"{option} has {len(values)} numbers for {len(configs)} phases ({names}); expected one, or one per phase."
        )
    return list(values) if len(values) == len(configs) else [values[0] if values else None] * len(configs)


def with_configs(recipe: Distillation, configs: Sequence[TrainConfig]) -> Distillation:
    """The recipe with other configs, one per phase."""
    phases = (replace(phase, config=config) for phase, config in zip(recipe.phases, configs, strict=True))
    return replace(recipe, phases=tuple(phases))


def with_gamma(recipe: Distillation, highest: float, lowest: float | None = None) -> Distillation:
    """The recipe with another weight of attention-output distillation, which falls to `lowest` at the end.

    `lowest` is a tenth of `highest` by default. Phases that the recipe runs without this distillation do not change;
    UsageError if all are such phases.
    """
    lowest = highest / 10 if lowest is None else lowest
    if not 0 <= lowest <= highest:
        raise UsageError(f"gamma goes from {highest} to {lowest}; expected a weight of at least 0 that falls or stays.")
    weights = {"gamma_from": highest, "gamma_to": lowest}

    def without(phase: Phase) -> bool:
        return phase.settings.get("gamma_from") == 0 or phase.objective == "speed3r"

    if all(map(without, recipe.phases)):
        raise UsageError(f"--gamma: the recipe {recipe.name} has no attention-output distillation. Leave it out.")
    phases = (p if without(p) else replace(p, settings={**p.settings, **weights}) for p in recipe.phases)
    return replace(recipe, phases=tuple(phases))


def with_plan(recipe: Distillation, plan: CompressionPlan) -> Distillation:
    """The recipe for a student with another plan, which is sparse at every sequence length while it trains.

    The last phase has the whole plan. Earlier phases have its mechanisms and gaps and, if the plan quantises, their own
    quantisation. Earlier phases are left out if the plan has no mechanisms, or if they quantise and the plan does not.
    With mechanisms the student has the teacher's form, not one of its own.
    """
    if plan.exchanges:
        recipe = replace(recipe, student="")
    plan = always_sparse(plan)
    structure = CompressionPlan(plan.structure, plan.name) if plan.exchanges else None
    phases: list[Phase] = []
    for phase in recipe.phases[:-1]:
        own = phase.plan.quantizes if phase.plan else ()
        if structure is None or (own and not plan.quantizes):
            continue
        phase_plan = structure + CompressionPlan(own, own[0].quantize) if own else structure
        phases.append(replace(phase, plan=phase_plan))
    last = recipe.phases[-1]
    sparse_alone = bool(phases) and not plan.quantizes and last.plan is not None and last.plan.quantizes
    if not sparse_alone:  # otherwise the previous phase has this plan, and the last would only add quantisation
        phases.append(replace(last, plan=plan))
    name = f"{recipe.student or recipe.teacher}-{plan.name}"
    phases = [
        replace(phase, config=replace(phase.config, name=f"{name}-{number}" if number < len(phases) else name))
        for number, phase in enumerate(phases, start=1)
    ]
    return replace(recipe, name=name, phases=tuple(phases))


def always_sparse(plan: CompressionPlan) -> CompressionPlan:
    """The plan with `dense_below` 0: training sequences are short, and mechanisms learn only where they run."""
    steps = (replace(step, dense_below=0) if isinstance(step, Step) else step for step in plan.steps)
    return CompressionPlan(tuple(steps), plan.name)


def recipe_name_for(teacher: str, plan: CompressionPlan | None) -> str:
    """The name of the recipe for a teacher and the plan of its student; UsageError if there is none."""
    mechanisms = {step.mechanism for step in plan.exchanges} if plan else set()
    linear = bool(mechanisms & {"sla", "thu-sla"})
    known = {
        "nano": ("nano-gsa-fp8", "nano-sla-fp8"),
        "pi3": ("speed3r-pi3", "speed3r-pi3"),
        "speed3r-pi3": ("speed3r-pi3", "speed3r-pi3"),
        "pi3x": ("speed3r-pi3x", "speed3r-pi3x"),
        "vggt": ("speed3r-vggt", "lite3r-vggt"),
        **dict.fromkeys(("da3-small", "da3-base", "da3-large", "da3-giant"), ("lite3r-da3", "lite3r-da3")),
    }
    if teacher not in known:
        raise UsageError(
            f"no recipe has the teacher {teacher}. Use one of {', '.join(known)}, or choose a recipe with --recipe."
        )
    return known[teacher][linear]
