"""`lean3r train`: the recipes behind the shipped weights, from nothing to a file that `load` takes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lean3r.cli.options import option

if TYPE_CHECKING:
    from lean3r.train.recipes import Recipe


@dataclass
class Train:
    """Train a model by a recipe, such as the one behind the shipped nano."""

    recipe: Annotated[tyro.conf.Positional[str], option("RECIPE")] = "nano"
    """Which recipe (nano)."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR", aliases=["-o"])] = Path("runs/nano")
    """Folder of the run: log, curves, checkpoints, weights."""

    textures: Annotated[Path | None, option("DIR")] = None
    """Folder of photo crops (.jpg) that join the procedural textures."""

    processes: Annotated[int | None, option("N")] = None
    """CPU processes that share each step; by default the recipe's."""

    device: Annotated[str, option("NAME")] = "cpu"
    """cpu or cuda."""

    resume: Annotated[bool, option()] = False
    """Go on where the run in the folder stopped."""

    verbose: Annotated[bool, option(None, "-v")] = False
    """Show the traceback of an unexpected error."""

    def run(self) -> None:
        """Train all phases; print the path of the weights."""
        from lean3r.train.distributed import launch
        from lean3r.train.recipes import RECIPES

        recipe: Recipe = RECIPES.get(self.recipe)(textures=None if self.textures is None else str(self.textures))
        recipe = replace(recipe, world=replace(recipe.world, device=self.device))
        processes = self.processes or (recipe.processes if self.device == "cpu" else 1)
        for index, phase in enumerate(recipe.phases):
            folder = self.out / phase.name
            if (folder / "weights.safetensors").exists() and self.resume:
                continue
            stopped = launch(processes, run_phase, recipe, index, self.out, self.resume, self.device)
            if stopped:
                sys.exit(stopped)
        publish(recipe, self.out)
        print(self.out / f"{recipe.model}.safetensors")


def publish(recipe: Recipe, out: Path) -> None:
    """Copy the last phase's averaged weights to OUT/MODEL.safetensors, with the model's name in the header."""
    from lean3r.models import MODELS
    from lean3r.models.checkpoint import load_weights, save_weights

    model = MODELS.get(recipe.model)()
    load_weights(model, out / recipe.phases[-1].name / "weights.safetensors")
    metadata = {"model": recipe.model, "recipe": " > ".join(phase.name for phase in recipe.phases)}
    save_weights(model.state_dict(), out / f"{recipe.model}.safetensors", metadata)


def run_phase(recipe: Recipe, index: int, out: Path, resume: bool, device: str) -> int:
    """Train one phase in this process (one of several alike) and return its exit code."""
    from lean3r.models import MODELS
    from lean3r.models.checkpoint import load_weights
    from lean3r.train.loop import fit, seed_everything
    from lean3r.train.nano import nano_loss

    phase = recipe.phases[index]
    seed_everything(phase.seed)
    model = MODELS.get(recipe.model)()
    if index:
        load_weights(model, out / recipe.phases[index - 1].name / "weights.safetensors")
    done = fit(
        model,
        nano_loss,
        partial(recipe.batch, index),
        phase,
        out / phase.name,
        validate=partial(validate, recipe, phase),
        resume=resume,
        device=device,
    )
    return done.exit_code


def validate(recipe: Recipe, phase: Any, model: Any) -> dict[str, float]:
    """Figures on a fixed set of held-out scenes at the last stage's picture size: 40 scenes of 2 and of 8 views.

    While the guided head does not train, depth is judged on patch centres.
    """
    from lean3r.eval.synthetic import score_scenes
    from lean3r.train.recipes import HELD_OUT_SEED

    stage = phase.stages[-1]
    world = replace(recipe.world, seed=HELD_OUT_SEED, textures=None, compile=False)
    scale = 1 if stage.loss.get("full") else 2
    figures: dict[str, float] = {}
    for views, scenes in ((2, 10), (8, 4)):
        batches = (
            world.batch(i, scenes, views=views, height=stage.height * scale, width=stage.width * scale)
            for i in range(40 // scenes)
        )
        for name, value in score_scenes(model, batches).items():
            figures[f"{name}_{views}"] = value
    return figures | {"auc30": figures["auc30_8"]}
