"""What a distillation is: phases in which a student that wears a plan learns from its dense teacher and the truth."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lean3r.compress.plan import CompressionPlan
from lean3r.data.base import SceneBatch
from lean3r.data.synthetic import SyntheticWorld
from lean3r.errors import UsageError
from lean3r.registry import Registry
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.recipes.nano import synthetic_batch

OBJECTIVES = Registry("objective", {"nano": "lean3r.train.distillation:NanoDistillation"})


@dataclass(frozen=True)
class Phase:
    """One run: the student wears `plan`, starts from the averaged weights of the phase before (the first one: from the
    teacher's), and minimises `objective`, a row of OBJECTIVES, with these `settings`.

    Linear layers that the plan quantises are rounded but trainable (compress.quantize.prepare).
    """

    config: TrainConfig
    plan: CompressionPlan
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [name for name in inspect.signature(OBJECTIVES.get(self.objective)).parameters if name != "teacher"]
        for name in self.settings:
            if name not in known:
                raise UsageError(
                    f"phase {self.config.name}: the objective '{self.objective}' has no setting '{name}'. "
                    f"Known: {', '.join(known)}."
                )


@dataclass(frozen=True)
class Distillation:
    """The teacher (a row of MODELS), the phases of its student, the scenes, and how many CPU processes share a step.

    The student is called `name`; it has the teacher's architecture with the last phase's plan.
    """

    name: str
    teacher: str
    phases: tuple[Phase, ...]
    world: SyntheticWorld
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.phases:
            raise UsageError(f"recipe {self.name} has no phases; expected at least one.")
        names = [phase.config.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise UsageError(f"recipe {self.name} has phases of one name ({', '.join(names)}), which share a folder.")
        if self.processes < 1:
            raise UsageError(f"recipe {self.name}: processes is {self.processes}, expected at least 1.")

    @property
    def plan(self) -> CompressionPlan:
        """The plan that the finished student wears."""
        return self.phases[-1].plan

    def config(self, phase: int) -> TrainConfig:
        """The run's whole config: `settings` says what else decides the weights, so that nobody resumes another run."""
        chosen = self.phases[phase]
        settings = {
            "recipe": self.name,
            "teacher": self.teacher,
            "plan": chosen.plan.as_dict(),
            "objective": chosen.objective,
            "objective_settings": dict(chosen.settings),
            "data": data_settings(self.world),
            "after": [earlier.config.name for earlier in self.phases[:phase]],
        }
        return replace(chosen.config, settings=chosen.config.settings | settings)

    def batch(self, phase: int, step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
        """The scenes of one process at one step: a pure function of its arguments."""
        return synthetic_batch(replace(self.world, seed=self.world.seed + phase), step, stage, rank, processes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: everything that the recipe decides."""
        return {
            "name": self.name,
            "teacher": self.teacher,
            "processes": self.processes,
            "phases": [dataclasses.asdict(self.config(index)) for index in range(len(self.phases))],
        }


def data_settings(world: SyntheticWorld) -> dict[str, Any]:
    """What of a world decides its scenes; where they are computed does not."""
    values = dataclasses.asdict(world)
    return {name: value for name, value in values.items() if name not in ("device", "compile")}


def with_steps(recipe: Distillation, steps: Sequence[int]) -> Distillation:
    """The recipe with so many steps in its phases: one number for each, one for all, none for its own."""
    if not steps:
        return recipe
    if len(steps) not in (1, len(recipe.phases)):
        names = ", ".join(phase.config.name for phase in recipe.phases)
        raise UsageError(
            f"got {len(steps)} numbers of steps for {len(recipe.phases)} phases ({names}); one or as many."
        )
    counts = list(steps) * (len(recipe.phases) if len(steps) == 1 else 1)
    phases = tuple(
        replace(phase, config=scaled(phase.config, count)) for phase, count in zip(recipe.phases, counts, strict=True)
    )
    return replace(recipe, phases=phases)


def scaled(config: TrainConfig, steps: int) -> TrainConfig:
    """A config of one stage with another number of steps; the warm-up shrinks with it."""
    (stage,) = config.stages
    warmup = min(config.optim.warmup_steps, steps // 5)
    stages = (replace(stage, steps=steps),)
    return replace(config, stages=stages, optim=replace(config.optim, warmup_steps=warmup))
