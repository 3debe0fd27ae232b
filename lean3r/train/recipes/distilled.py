"""Distillation recipes: phases in which a compressed student learns from its dense teacher and ground truth."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lean3r.compress.plan import CompressionPlan
from lean3r.data.base import SceneBatch
from lean3r.errors import UsageError
from lean3r.registry import Registry
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.recipes.sources import Data

OBJECTIVES = Registry(
    "objective",
    {
        "nano": "lean3r.train.losses.distillation:NanoDistillation",
        "speed3r": "lean3r.train.losses.distillation:Speed3rDistillation",
        "lite3r": "lean3r.train.losses.distillation:Lite3rDistillation",
        "lite3r-lean": "lean3r.train.losses.distillation:LeanDistillation",
    },
)


@dataclass(frozen=True)
class Phase:
    """One run of a student with the compression plan `plan` (None: none), which minimises `objective` with `settings`.

    It starts from the averaged weights of the previous phase, the first phase from the teacher's weights. `objective`
    is a row of OBJECTIVES. Linear layers that the plan quantises are rounded but trainable (compress.quantize.prepare).
    `epochs`, if not 0, is the number of passes over all scenes of the data sets; it determines the number of steps.
    """

    config: TrainConfig
    plan: CompressionPlan | None
    objective: str
    settings: Mapping[str, float | str] = field(default_factory=dict)
    epochs: float = 0.0

    def __post_init__(self) -> None:
        known = defaults_of(self.objective)
        for name in self.settings:
            if name not in known:
                raise UsageError(
                    f"phase {self.config.name}: the objective '{self.objective}' has no setting '{name}'. "
                    f"Known: {', '.join(known)}."
                )
        for stage in self.config.stages:
            if stage.train == ("mechanisms",) and self.plan is not None and not self.plan.exchanges:
                raise UsageError(
                    f"phase {self.config.name} trains the parameters of sparse attention, but its plan "
                    f"'{self.plan.name}' has none. Use a plan such as gsa or sla, or train other roles."
                )


@dataclass(frozen=True)
class Distillation:
    """The teacher (a row of MODELS), the phases of its student, the scenes, and the number of processes in a step.

    The student is named `name`; it has the teacher's architecture, or that of `student`, another row of MODELS, with
    the plan of the last phase.
    """

    name: str
    teacher: str
    phases: tuple[Phase, ...]
    data: Data
    processes: int = 1
    student: str = ""

    def __post_init__(self) -> None:
        if not self.phases:
            raise UsageError(f"recipe {self.name} has no phases; expected at least one.")
        names = [phase.config.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise UsageError(
                f"recipe {self.name} has phases with the same name ({', '.join(names)}), but each needs its own folder."
            )
        if self.processes < 1:
            raise UsageError(f"recipe {self.name}: processes is {self.processes}, expected at least 1.")
        if (self.teacher == "nano") != all(phase.objective == "nano" for phase in self.phases):
            objectives = " and ".join(sorted({phase.objective for phase in self.phases}))
            raise UsageError(
                f"the teacher {self.teacher} does not fit the recipe, whose objective is {objectives}. Use the recipes "
                "nano-gsa-fp8 or nano-sla-fp8 for nano, and the speed3r- and lite3r- recipes for other models."
            )

        mixed = {count for phase in self.phases for stage in phase.config.stages for count in stage.views}
        if self.data.drawn != "mixture" and len(mixed) > 1:
            raise UsageError(
                f"recipe {self.name} draws its samples one after the other, all with as many views; got "
                f"{', '.join(map(str, sorted(mixed)))} views, expected one number of them."
            )

        own = any(phase.settings.get("points") == "own" for phase in self.phases)
        if own and self.teacher not in ("pi3", "pi3x", "speed3r-pi3"):
            raise UsageError(
                f"the teacher {self.teacher} does not fit the recipe, which needs the points in camera axes of a Pi3 "
                "model. Use the recipe speed3r-vggt, which computes them from depth."
            )

        if self.student and self.teacher not in ("pi3", self.student):
            raise UsageError(
                f"the teacher {self.teacher} does not fit the recipe, whose student is {self.student}. Use the recipe "
                f"speed3r-{self.teacher}."
            )

    @property
    def plan(self) -> CompressionPlan | None:
        """The compression plan of the finished student."""
        return self.phases[-1].plan

    def config(self, phase: int) -> TrainConfig:
        """The complete config of a phase; its `settings` record everything else that affects the weights."""
        chosen = self.phases[phase]
        settings = {
            "recipe": self.name,
            "teacher": self.teacher,
            "plan": chosen.plan and chosen.plan.as_dict(),
            "objective": chosen.objective,
            "objective_settings": defaults_of(chosen.objective) | dict(chosen.settings),
            "data": self.data.as_dict(),
            "after": [earlier.config.name for earlier in self.phases[:phase]],
        }
        if self.student:
            settings["student"] = self.student
        return replace(chosen.config, settings=chosen.config.settings | settings)

    def batch(self, phase: int, step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
        """The scenes of one process at one step; a pure function of its arguments."""
        return self.data.batch(self.phases[phase].config.seed, step, stage, rank, processes)

    def as_dict(self) -> dict[str, object]:
        """All settings of the recipe, JSON-ready."""
        return {
            "name": self.name,
            "teacher": self.teacher,
            "processes": self.processes,
            "phases": [dataclasses.asdict(self.config(index)) for index in range(len(self.phases))],
        }

    def with_data(self, data: Data, processes: int, epochs: bool = True) -> Distillation:
        """The recipe with other scenes.

        If `epochs` is true, the number of steps of phases with `epochs` follows from the number of scenes. UsageError
        if sets have no depth and the loss of a phase needs it.
        """
        if any(OBJECTIVES.get(phase.objective).needs_depth for phase in self.phases):
            data.require_depth(f"the recipe {self.name}")
        count = data.scenes()  # opens the folders, which raises errors early
        phases = self.phases
        if count and epochs:
            phases = tuple(
                replace(p, config=with_steps(p.config, max(1, round(p.epochs * count / seen_by_step(p, processes)))))
                if p.epochs
                else p
                for p in phases
            )
        return replace(self, data=data, phases=phases)


def defaults_of(objective: str) -> dict[str, float | str]:
    """The settings of an objective, with their default values; phases may change them."""
    parameters = inspect.signature(OBJECTIVES.get(objective)).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "teacher"}


def seen_by_step(phase: Phase, processes: int) -> int:
    """Number of scenes in a step of a phase, for the first entry of `views`."""
    (stage,) = phase.config.stages
    return stage.scenes_at(0) * stage.accumulate * processes


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    """A config of one stage with another number of steps; the warm-up before a cosine is limited to a fifth of them."""
    if len(config.stages) != 1:
        raise UsageError(f"{config.name} has {len(config.stages)} stages; its steps can only be set in Python.")
    stages = (replace(config.stages[0], steps=steps),)
    optim = config.optim
    warmup = optim.warmup_steps if optim.schedule == "linear" else min(optim.warmup_steps, steps // 5)
    return replace(config, stages=stages, optim=replace(optim, warmup_steps=warmup))
