"""Train a sparse FP8 student of nano for a few steps: the teacher is the dense nano, the data the synthetic world.

The real run is `lean3r distill --recipe nano-gsa-fp8`; this is the same in Python, with one phase and few steps.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import lean3r
from lean3r.attention.base import recording
from lean3r.compress import convert
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train import DISTILLATIONS
from lean3r.train.loop import fit
from lean3r.train.losses.distillation import NanoDistillation
from lean3r.train.recipes.distilled import with_steps
from lean3r.train.students import only_trains, student_of
from lean3r.types import Views

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("examples_out/09"))
parser.add_argument("--weights", type=Path, help="weights of the teacher")
parser.add_argument("--steps", type=int, default=3)


def main() -> None:
    """Train, save, load again, and print the density of the student's attention."""
    options = parser.parse_args()
    recipe = DISTILLATIONS.get("nano-gsa-fp8")(None)
    recipe = replace(recipe, data=replace(recipe.data, world=SyntheticWorld(seed=7, tiles=32, tile_size=32)))
    config = with_steps(recipe.config(2), options.steps)
    config = replace(config, stages=(replace(config.stages[0], views=(2,), views_per_step=2),), best_key="")

    teacher = lean3r.load("nano", weights=options.weights, device="cpu")
    student = only_trains(student_of(teacher, recipe.plan), config)
    objective = NanoDistillation(teacher, gamma_from=0.1, gamma_to=0.01)
    done = fit(student, objective, partial(recipe.batch, 2), config, options.out / "run")

    path = lean3r.save(convert(student), options.out / "student.safetensors", overwrite=True)
    loaded = lean3r.load("nano", weights=path, device="cpu")
    with recording() as log, torch.no_grad():
        loaded(Views(torch.rand(1, 8, 3, 240, 240)))
    density = sum(record.density or 0 for record in log) / len(log)
    print(f"{done.step} steps; {path} has {path.stat().st_size / 1e6:.1f} MB")
    print(f"of 8 views, a patch looks at {density:.0%} of the tokens")


if __name__ == "__main__":
    main()
