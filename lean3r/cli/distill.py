"""`lean3r distill`: a dense teacher in, a sparse or rounded student out, by a recipe."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lean3r.cli.options import option

if TYPE_CHECKING:
    from lean3r.compress.plan import CompressionPlan
    from lean3r.models.base import Backbone
    from lean3r.train.config import TrainConfig
    from lean3r.train.recipes.distilled import Distillation


@dataclass
class Distill:
    """Train a sparse or FP8 student of a dense model, by a recipe."""

    recipe: Annotated[str, option("NAME")] = "nano-gsa-fp8"
    """Which recipe: nano-gsa-fp8 or nano-sla-fp8."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR", aliases=["-o"])] = Path("runs/distill")
    """Folder of the run: configs, logs, checkpoints, weights."""

    weights: Annotated[str | None, option("FILE")] = None
    """Weights of the teacher; by default its own."""

    textures: Annotated[Path | None, option("DIR")] = None
    """Folder of photo crops (.jpg) that join the synthetic world's textures."""

    steps: Annotated[list[int], option("N [N ...]")] = field(default_factory=list)
    """Steps of the phases: one number for each, or one for all."""

    processes: Annotated[int | None, option("N")] = None
    """CPU processes that share each step; by default the recipe's."""

    device: Annotated[str, option("NAME")] = "cpu"
    """cpu or cuda."""

    resume: Annotated[bool, option()] = False
    """Go on where the run in the folder stopped."""

    dry_run: Annotated[bool, option()] = False
    """Print the whole config as JSON and train nothing."""

    verbose: Annotated[bool, option(None, "-v")] = False
    """Show the traceback of an unexpected error."""

    def run(self) -> None:
        """Train all phases; print the path of the student's weights."""
        from lean3r.train.distributed import launch
        from lean3r.train.recipes import DISTILLATIONS
        from lean3r.train.recipes.distilled import with_steps

        recipe: Distillation = DISTILLATIONS.get(self.recipe)(None if self.textures is None else str(self.textures))
        recipe = replace(recipe, world=replace(recipe.world, device=self.device))
        recipe = with_steps(recipe, self.steps)
        if self.dry_run:
            print(json.dumps(recipe.as_dict(), indent=2))
            return
        processes = self.processes or (recipe.processes if self.device == "cpu" else 1)
        for index, phase in enumerate(recipe.phases):
            if (self.out / phase.config.name / "weights.safetensors").exists() and self.resume:
                continue
            stopped = launch(processes, run_phase, recipe, index, self.out, self.weights, self.resume, self.device)
            if stopped:
                sys.exit(stopped)
        print(publish(recipe, self.out, self.weights))


def student_of(teacher: Backbone, plan: CompressionPlan) -> Backbone:
    """A network with the teacher's weights, in memory of its own, that wears a plan and can be trained.

    UsageError where the plan names blocks that the teacher lacks, and where the teacher is compressed itself.
    """
    from lean3r.compress import compress, prepare

    return (prepare if plan.quantizes else compress)(copy.deepcopy(teacher), plan)


def student_at(recipe: Distillation, phase: int, teacher: Backbone, out: Path) -> Backbone:
    """The student as a phase starts with it: with the teacher's weights, or the averages of the phase before."""
    from lean3r.models.checkpoint import read_tensors

    student = student_of(teacher, recipe.phases[phase].plan)
    if phase:
        before = out / recipe.phases[phase - 1].config.name / "weights.safetensors"
        student.load_state_dict(read_tensors(before)[0])
    return student


def only_trains(student: Backbone, config: TrainConfig) -> Backbone:
    """The student, asking gradients for nothing that no stage trains: neither are they computed nor held."""
    from lean3r.train.freeze import trainable_names

    names = set().union(*(trainable_names(student, stage.train) for stage in config.stages))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in names)
    return student


def run_phase(recipe: Distillation, phase: int, out: Path, weights: str | None, resume: bool, device: str) -> int:
    """Train one phase in this process (one of several alike) and return its exit code."""
    from lean3r.cli.train import validate
    from lean3r.pipeline.load import load
    from lean3r.train.loop import fit, seed_everything
    from lean3r.train.recipes.distilled import OBJECTIVES

    chosen, config = recipe.phases[phase], recipe.config(phase)
    seed_everything(config.seed)
    teacher = load(recipe.teacher, weights, device, "float32")
    student = only_trains(student_at(recipe, phase, teacher, out), config)
    done = fit(
        student.train(),
        OBJECTIVES.get(chosen.objective)(teacher, **chosen.settings),
        partial(recipe.batch, phase),
        config,
        out / config.name,
        validate=partial(validate, recipe, config),
        resume=resume,
        device=device,
    )
    return done.exit_code


def publish(recipe: Distillation, out: Path, weights: str | None) -> Path:
    """Write the finished student to OUT/NAME.safetensors, rounded layers as codes, with its plan; return the path."""
    from lean3r.compress import convert
    from lean3r.models.checkpoint import read_tensors, save_model
    from lean3r.pipeline.load import load

    student = student_of(load(recipe.teacher, weights, "cpu", "float32"), recipe.plan)
    student.load_state_dict(read_tensors(out / recipe.phases[-1].config.name / "weights.safetensors")[0])
    if recipe.plan.quantizes:
        student = convert(student)
    path = out / f"{recipe.name}.safetensors"
    save_model(student, path, {"recipe": " > ".join(phase.config.name for phase in recipe.phases)})
    return path
