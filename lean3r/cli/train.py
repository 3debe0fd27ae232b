"""`lean3r train`: run the recipes of the shipped weights, from random weights to a file for `load`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lean3r.cli.options import Out, option
from lean3r.cli.running import Changes, run_quietly, show
from lean3r.train import RECIPES

if TYPE_CHECKING:
    from lean3r.train.held_out import HeldOut
    from lean3r.train.recipes import Recipe


@dataclass
class Train(Changes):
    """Train a model by a recipe, such as the one of the shipped nano.

    See docs/how-to/own-weights-and-training.md.
    """

    recipe: Annotated[
        tyro.conf.Positional[str], option("RECIPE", help=f"Name of the recipe: {', '.join(RECIPES)}.")
    ] = "nano"
    out: Annotated[Out, option(help="Folder of the run: log, curves, checkpoints, weights.")] = Path("runs/nano")

    def run(self) -> None:
        """Train all phases; print the path of the weights."""
        from lean3r.train.distributed import is_main_process
        from lean3r.train.held_out import SETS
        from lean3r.train.runs import run_folder, train_phases

        recipe = self.resolve()
        if self.dry_run:
            show(recipe)
            return
        held_out = self.held_out()
        held_out.check(recipe.world, recipe.phases[0].stages[-1], SETS)
        names, weights = [phase.name for phase in recipe.phases], f"{recipe.model}.safetensors"
        with run_folder(self.out, recipe.as_dict(), self.resume, [*names, weights]):
            phase = partial(run_phase, recipe, out=self.out, held_out=held_out, resume=self.resume, device=self.device)
            phase = partial(run_quietly, phase) if self.quiet else phase
            if code := train_phases(phase, names, self.out, self.resume, recipe.processes):
                sys.exit(code)
            if is_main_process():
                publish(recipe, self.out)
                print(self.out / weights)

    def resolve(self) -> Recipe:
        """The recipe with the changes of the options; UsageError if they contradict each other."""
        from lean3r.errors import UsageError
        from lean3r.train import DISTILLATIONS

        if self.recipe in DISTILLATIONS:
            raise UsageError(f"'{self.recipe}' has a teacher: lean3r distill --recipe {self.recipe}")
        recipe: Recipe = RECIPES.get(self.recipe)(textures=None if self.textures is None else str(self.textures))
        processes = self.processes_for(recipe.processes)
        return replace(
            recipe,
            world=replace(recipe.world, device=self.device),
            processes=processes,
            phases=tuple(self.overrides().configs(recipe.phases, recipe.processes, processes)),
        )


def publish(recipe: Recipe, out: Path) -> None:
    """Copy the last phase's averaged weights to OUT/MODEL.safetensors, with the model's name in the header."""
    from lean3r.models import MODELS
    from lean3r.models.checkpoint import load_weights, save_weights

    model = MODELS.get(recipe.model)()
    load_weights(model, out / recipe.phases[-1].name / "weights.safetensors")
    metadata = {"model": recipe.model, "recipe": " > ".join(phase.name for phase in recipe.phases)}
    save_weights(model.state_dict(), out / f"{recipe.model}.safetensors", metadata)


def run_phase(recipe: Recipe, index: int, out: Path, held_out: HeldOut, resume: bool, device: str) -> int:
    """Train one phase in this process, one of several with the same task, and return its exit code."""
    from lean3r.eval.synthetic import validate
    from lean3r.models import MODELS
    from lean3r.models.checkpoint import load_weights
    from lean3r.train import OBJECTIVES
    from lean3r.train.held_out import SETS, picture
    from lean3r.train.loop import fit, seed_everything

    phase = recipe.phases[index]
    seed_everything(phase.seed)
    model = MODELS.get(recipe.model)()
    if index:
        load_weights(model, out / recipe.phases[index - 1].name / "weights.safetensors")
    # Without the guided head, training uses half the resolution of validation, and depth at patch centres.
    world, scale = recipe.world, 1 if phase.stages[-1].loss.get("full") else 2
    done = fit(
        model,
        OBJECTIVES.get(recipe.objective),
        partial(recipe.batch, index),
        phase,
        out / phase.name,
        validate=partial(validate, partial(held_out.batches, world, phase.stages[-1], scale), SETS),
        draw=partial(picture, world, phase, scale),
        resume=resume,
        device=device,
    )
    return done.exit_code
