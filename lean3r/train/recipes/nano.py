"""The recipe of the shipped nano; variants derive from it by dataclasses.replace."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from lean3r.data.base import SceneBatch
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.config import OptimConfig, Stage, TrainConfig

ASPECTS = (1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3)  # width / height of the pictures, cycled by step


@dataclass(frozen=True)
class Recipe:
    """Phases that run in order, each from the averaged weights of the previous one.

    `world` makes the scenes, `processes` is the number of CPU processes in a step, `objective` is a row of OBJECTIVES.
    """

    model: str
    phases: tuple[TrainConfig, ...]
    world: SyntheticWorld
    processes: int = 1
    objective: str = "nano"

    def as_dict(self) -> dict[str, object]:
        """All settings of the recipe that affect the weights, JSON-ready; not the device that computes scenes."""
        world = {k: v for k, v in asdict(self.world).items() if k not in ("device", "compile")}
        phases = [asdict(phase) for phase in self.phases]
        fixed = {"model": self.model, "objective": self.objective, "processes": self.processes}
        return fixed | {"world": world, "phases": phases}

    def batch(self, phase: int, step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
        """The scenes of one process at one step; a pure function of its arguments."""
        return synthetic_batch(replace(self.world, seed=self.world.seed + phase), step, stage, rank, processes)


def synthetic_batch(world: SyntheticWorld, step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
    """The scenes of process `rank` out of `processes` at a step, in pictures of the stage's area."""
    height, width = picture_size(stage, step)
    return world.batch(
        step * processes + rank, stage.scenes_at(step), views=stage.views_at(step), height=height, width=width
    )


def picture_size(stage: Stage, step: int) -> tuple[int, int]:
    """(height, width) at this step: about the stage's area, multiples of 8 or 16 pixels, with the ASPECTS in turn."""
    cell = 16 if stage.loss.get("full") else 8
    area = stage.height * stage.width / cell**2
    aspect = ASPECTS[step // len(stage.views) % len(ASPECTS)]
    rows = round(math.sqrt(area / aspect))
    return rows * cell, round(area / rows) * cell


def nano(textures: str | None = None) -> Recipe:
    """The shipped nano, for 2 CPU cores: many small pictures (64 patches), then fewer at the default size (225
    patches), then these with the guided head, which uses the full-size pictures."""
    coarse = TrainConfig(
        name="nano-coarse",
        seed=1,
        stages=(Stage(steps=9_000, height=64, width=64, views=(2, 4, 2, 8, 3), views_per_step=32),),
        optim=OptimConfig(lr=1e-3, muon_lr=2e-3, warmup_steps=200, final_lr_ratio=0.2),
        validate_every=1_000,
        checkpoint_every=300,
        best_key="auc30",
    )
    fine = replace(
        coarse,
        name="nano-fine",
        stages=(Stage(steps=1_500, height=120, width=120, views=(2, 4, 2, 8), views_per_step=16),),
        optim=replace(coarse.optim, lr=5e-4, muon_lr=1e-3, warmup_steps=50, final_lr_ratio=0.0, ema_decay=0.995),
        validate_every=500,
        checkpoint_every=100,
    )
    detail = replace(
        fine,
        name="nano-detail",
        stages=(Stage(steps=2_400, height=240, width=240, views=(2, 4, 2, 8), views_per_step=8, loss={"full": 1.0}),),
        validate_every=800,
    )
    return Recipe("nano", (coarse, fine, detail), SyntheticWorld(textures=textures, seed=7, compile=False), processes=2)
