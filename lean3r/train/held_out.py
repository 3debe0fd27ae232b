"""Scenes that no recipe trains on: what weights are judged on, and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from lean3r.data.base import SceneBatch
from lean3r.data.sampling.mixture import BatchShape
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.train.config import Stage, TrainConfig
from lean3r.train.logs.pictures import draw_depth
from lean3r.train.recipes import HELD_OUT_SEED
from lean3r.train.recipes.sources import Source, plain_mixture

Sets = tuple[tuple[int, int, int], ...]
"""Of each part of a validation: views of a scene, scenes in a batch, scenes in all."""

SETS: Sets = ((2, 10, 40), (8, 4, 40))
FEW: Sets = ((2, 2, 8), (8, 1, 4))  # where each takes long


@dataclass(frozen=True)
class HeldOut:
    """What weights are judged on: sets on disk (none: the synthetic world), and how many scenes at most."""

    sources: tuple[Source, ...] = ()
    scenes: int | None = None

    def batches(
        self, world: SyntheticWorld, stage: Stage, scale: int, views: int, scenes: int, total: int
    ) -> Iterator[SceneBatch]:
        """So many scenes at a time of `total` in all, the same ones always, in pictures of `scale` times the size of a
        stage's."""
        total = min(total, self.scenes or total)
        height, width = stage.height * scale, stage.width * scale
        mixture = plain_mixture(self.sources, HELD_OUT_SEED) if self.sources else None
        world = replace(world, seed=HELD_OUT_SEED, textures=None, compile=False)
        for number, done in enumerate(range(0, total, scenes)):
            count = min(scenes, total - done)
            if mixture is None:
                yield world.batch(number, count, views=views, height=height, width=width)
            else:
                yield mixture.batch(number, BatchShape(count, views, height, width)).to(world.device)

    def check(self, world: SyntheticWorld, stage: Stage, sets: Sets) -> None:
        """InputError where the sets on disk have no scenes of as many views: at once, not after hours."""
        for views, _, _ in sets if self.sources else ():
            next(self.batches(world, stage, 1, views, 1, 1))


def picture(world: SyntheticWorld, config: TrainConfig, scale: int, model: nn.Module) -> np.ndarray:
    """[H, W, 3] uint8: views of a held-out scene, the depth that the model sees in them, and the true one."""
    stage = config.stages[-1]
    world = replace(world, seed=HELD_OUT_SEED, textures=None, compile=False)
    batch = world.batch(0, 1, views=4, height=stage.height * scale, width=stage.width * scale)
    return draw_depth(batch)(model)
