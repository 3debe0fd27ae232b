"""Held-out scenes: never trained on, used for validation and for pictures of predictions."""

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
"""For each part of a validation: views per scene, scenes per batch, scenes in total."""

SETS: Sets = ((2, 10, 40), (8, 4, 40))
FEW: Sets = ((2, 2, 8), (8, 1, 4))  # for slow models


@dataclass(frozen=True)
class HeldOut:
    """Scenes for validation: data sets on disk (none: the synthetic world), and the largest number of scenes."""

    sources: tuple[Source, ...] = ()
    scenes: int | None = None

    def batches(
        self, world: SyntheticWorld, stage: Stage, scale: int, views: int, scenes: int, total: int
    ) -> Iterator[SceneBatch]:
        """Yield the same batches at every call, of `scenes` scenes each and `total` in total.

        Pictures have `scale` times the size of the stage's pictures.
        """
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
        """Raise InputError before training if no scene on disk has enough views."""
        for views, _, _ in sets if self.sources else ():
            next(self.batches(world, stage, 1, views, 1, 1))


def picture(world: SyntheticWorld, config: TrainConfig, scale: int, model: nn.Module) -> np.ndarray:
    """[H, W, 3] uint8: views of a held-out scene with predicted and true depth."""
    stage = config.stages[-1]
    world = replace(world, seed=HELD_OUT_SEED, textures=None, compile=False)
    batch = world.batch(0, 1, views=4, height=stage.height * scale, width=stage.width * scale)
    return draw_depth(batch)(model)
