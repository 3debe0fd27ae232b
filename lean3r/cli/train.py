"""`lean3r train`: run the recipes of the shipped weights, from random weights to a file for `load`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lean3r.cli.options import Out, Weights, option
from lean3r.cli.running import Changes, run_quietly, show
from lean3r.train import RECIPES

if TYPE_CHECKING:
    from lean3r.models.base import Backbone
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
    weights: Annotated[
        Weights, option(help="Weights to start from; by default random ones, with --adapters the model's own.")
    ] = None
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
            phase = partial(
                run_phase,
                recipe,
                out=self.out,
                weights=self.weights,
                held_out=held_out,
                resume=self.resume,
                device=self.device,
            )
            phase = partial(run_quietly, phase) if self.quiet else phase
            if code := train_phases(phase, names, self.out, self.resume, recipe.processes):
                sys.exit(code)
            if is_main_process():
                print(publish(recipe, self.out, self.weights, self.separate_adapters))

    def resolve(self) -> Recipe:
        """The recipe with the changes of the options; UsageError if they contradict each other."""
        from lean3r.errors import UsageError
        from lean3r.train import DISTILLATIONS

        if self.recipe in DISTILLATIONS:
            raise UsageError(f"'{self.recipe}' has a teacher: lean3r distill --recipe {self.recipe}")
        recipe: Recipe = RECIPES.get(self.recipe)(textures=None if self.textures is None else str(self.textures))
        processes = self.processes_for(recipe.processes)
        phases = recipe.phases if self.adapters is None else recipe.phases[-1:]  # the others are for random weights
        configs = self.overrides().configs(phases, recipe.processes, processes)
        seed = recipe.world.seed if self.seed is None else self.seed
        return replace(
            recipe,
            world=replace(recipe.world, device=self.device, seed=seed),
            processes=processes,
            phases=tuple(self.with_adapters(configs, [None] * len(configs))),
        )


def start_of(recipe: Recipe, weights: str | None) -> Backbone:
    """The network that a run starts from: with `weights`, or the model's own if adapters train, or random ones."""
    from lean3r.models import MODELS
    from lean3r.pipeline.load import load
    from lean3r.train.adapting import KEY

    if weights is None and KEY not in recipe.phases[0].settings:
        return MODELS.get(recipe.model)()
    return load(recipe.model, weights, "cpu", "float32")


def publish(recipe: Recipe, out: Path, weights: str | None, separate: bool) -> Path:
    """Write the last phase's averaged weights to OUT/MODEL.safetensors, with the model's name in the header, or its
    adapters to OUT/adapters; return the path."""
    from lean3r.models.checkpoint import save_weights
    from lean3r.train.adapting import load_phase, save_separately

    model, last = start_of(recipe, weights), out / recipe.phases[-1].name
    if separate:
        return save_separately(model, last, out)
    load_phase(model, last)
    metadata = {"model": recipe.model, "recipe": " > ".join(phase.name for phase in recipe.phases)}
    path = out / f"{recipe.model}.safetensors"
    save_weights(model.state_dict(), path, metadata)
    return path


def run_phase(
    recipe: Recipe, index: int, out: Path, weights: str | None, held_out: HeldOut, resume: bool, device: str
) -> int:
    """Train one phase in this process, one of several with the same task, and return its exit code."""
    from lean3r.eval.synthetic import validate
    from lean3r.train import OBJECTIVES
    from lean3r.train.adapting import KEY, adapt, load_phase
    from lean3r.train.held_out import SETS, picture
    from lean3r.train.loop import fit, seed_everything
    from lean3r.train.students import only_trains

    phase = recipe.phases[index]
    seed_everything(phase.seed)
    model = start_of(recipe, weights)
    if model.origin.hash:
        phase = replace(phase, settings=phase.settings | {"start_weights": model.origin.hash})
    if index:
        load_phase(model, out / recipe.phases[index - 1].name)
    objective, batch = OBJECTIVES.get(recipe.objective), partial(recipe.batch, index)
    if KEY in phase.settings:
        adapt(model, phase, out / phase.name, batch, objective, device, resume=resume)
        only_trains(model, phase)
    # Without the guided head, training uses half the resolution of validation, and depth at patch centres.
    world, scale = recipe.world, 1 if phase.stages[-1].loss.get("full") else 2
    done = fit(
        model,
        objective,
        batch,
        phase,
        out / phase.name,
        validate=partial(validate, partial(held_out.batches, world, phase.stages[-1], scale), SETS),
        draw=partial(picture, world, phase, scale),
        resume=resume,
        device=device,
    )
    return done.exit_code
