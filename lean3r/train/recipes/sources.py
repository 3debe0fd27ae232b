"""Where a recipe's scenes come from: the synthetic world, data sets on disk, or a mixture of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, get_args

from lean3r.data import DATASETS
from lean3r.data.base import SceneBatch
from lean3r.data.sampling.augment import USUAL
from lean3r.data.sampling.lite3r import Pairs
from lean3r.data.sampling.mixture import BatchShape, Mixture, Part, shape_at
from lean3r.data.sets.scenes import SceneSet
from lean3r.data.world.synthetic import SyntheticWorld
from lean3r.errors import UsageError
from lean3r.train.config import Stage

SYNTHETIC = "synthetic"
Drawn = Literal["mixture", "pairs", "pairs-as-released"]
_FORM = re.compile(r"(?P<name>[\w-]+)(?:=(?P<root>.+?))?(?::(?P<weight>\d*\.?\d+))?")


@dataclass(frozen=True)
class Source:
    """A row of DATASETS, its folder, and its relative weight in the draw of scenes."""

    name: str
    root: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        DATASETS.check(self.name)
        if bool(self.root) == (self.name == SYNTHETIC):
            other = "synthetic has no folder" if self.root else f"{self.name}={{folder}} expected"
            raise UsageError(f"data set '{self.name}' has root '{self.root}': {other}.")
        if not self.weight > 0:
            raise UsageError(f"data set '{self.name}' has weight {self.weight}; expected a positive number.")

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read NAME=ROOT[:WEIGHT] or synthetic[:WEIGHT]; UsageError for anything else."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise UsageError(f"data '{text}' cannot be read; expected NAME=ROOT or NAME=ROOT:WEIGHT.")
        return cls(match["name"], match["root"] or "", float(match["weight"] or 1))


@dataclass(frozen=True)
class Data:
    """The scenes of every step, from `sources`, or all from `world` if there are none. The source "synthetic" is
    `world` too.

    After `repeat` steps, if not 0, the same pictures come again, in the same order.
    `drawn`: as a "mixture" with augmentation, or as "pairs" (data/sampling/lite3r.py), for which sources have no weight
    and are on disk; "pairs-as-released" leaves out no scenes for evaluation.
    """

    sources: tuple[Source, ...] = ()
    world: SyntheticWorld = field(default_factory=lambda: SyntheticWorld(seed=101))
    repeat: int = 0
    drawn: Drawn = "mixture"

    def __post_init__(self) -> None:
        if self.repeat < 0:
            raise UsageError(f"pictures repeat after {self.repeat} steps; expected a number above 0, or 0: never.")
        if self.drawn not in get_args(Drawn):
            raise UsageError(f"data: drawn is {self.drawn!r}; expected one of {', '.join(get_args(Drawn))}.")
        wrong = [s.name for s in self.sources if s.name == SYNTHETIC or s.weight != 1]
        if wrong and self.drawn != "mixture":
            raise UsageError(
                f"this recipe takes one sample of every scene of every set; {wrong[0]} cannot be mixed in or weighted. "
                "Name sets on disk without weights, or use its -lean variant."
            )

    def batch(self, seed: int, step: int, stage: Stage, rank: int, processes: int) -> SceneBatch:
        """The scenes of process `rank` out of `processes` at one step; a pure function of its arguments."""
        step = step % self.repeat if self.repeat else step
        shape = shape_of(stage, seed, step)
        if not self.sources:
            world = replace(self.world, seed=self.world.seed + seed)
            return world.batch(
                step * processes + rank, shape.scenes, views=shape.views, height=shape.height, width=shape.width
            )
        scenes = mixture(self, seed) if self.drawn == "mixture" else pairs(self, seed)
        return scenes.batch(step, shape, rank, processes)

    def scenes(self) -> int:
        """Number of scenes in all data sets on disk that are trained on; 0 without any."""
        if self.sources and self.drawn != "mixture":
            return len(pairs(self, 0))
        sets = [_open(source) for source in self.sources if source.name != SYNTHETIC]
        return sum(len(scenes) for scenes in sets)

    def require_depth(self, what: str) -> None:
        """UsageError that names the sets without depth, if there are any, which `what` needs."""
        sets = [source for source in self.sources if source.name != SYNTHETIC]
        without = dict.fromkeys(source.name for source in sets if not _open(source).has_depth)
        if without:
            raise UsageError(
                f"{' and '.join(without)} {'have' if len(without) > 1 else 'has'} no depth, which {what} needs: its "
                "loss compares predictions with the set's depth. Use other sets, or a speed3r- recipe, whose labels "
                "come from the teacher."
            )

    def as_dict(self) -> dict[str, object]:
        """All settings that determine the scenes, JSON-ready; not the device that computes them."""
        world = {k: v for k, v in dataclasses.asdict(self.world).items() if k not in ("device", "compile")}
        more = {"repeat": self.repeat} if self.repeat else {}
        more |= {} if self.drawn == "mixture" else {"drawn": self.drawn}
        return {"sources": [dataclasses.asdict(source) for source in self.sources], "world": world, **more}


def shape_of(stage: Stage, seed: int, step: int) -> BatchShape:
    """The shape of every batch of a step, with the stage's picture size or, if it has ranges, one drawn from them."""
    if stage.pixels is None:
        return BatchShape(stage.scenes_at(step), stage.views_at(step), stage.height, stage.width)
    aspect = stage.aspect or (stage.width / stage.height, stage.width / stage.height)
    return shape_at(seed, step, stage.views_at(step), stage.pixels, aspect, stage.multiple, stage.views_per_step)


@lru_cache(maxsize=4)
def pairs(data: Data, order: int) -> Pairs:
    """The sources of `data` as pairs, shuffled by the seed `order`; opens their folders. InputError as in `mixture`."""
    as_released = data.drawn == "pairs-as-released"
    part = "all" if as_released else "train"
    return Pairs([_open(source) for source in data.sources], part=part, order=order, as_released=as_released)


@lru_cache(maxsize=4)
def mixture(data: Data, seed: int) -> Mixture:
    """The sources of `data` as one mixture; opens their folders. InputError if one holds no scene."""
    parts = []
    for source in data.sources:
        if source.name == SYNTHETIC:
            parts.append(Part(replace(data.world, seed=data.world.seed + seed), source.weight))
        else:
            parts.append(Part(_open(source), source.weight, augmentation=USUAL))
    return Mixture(parts, seed)


def plain_mixture(sources: Sequence[Source], seed: int) -> Mixture:
    """Data sets on disk as one mixture without augmentation; UsageError if one is the synthetic world."""
    if any(source.name == SYNTHETIC for source in sources):
        raise UsageError("the synthetic world is the default without data; expected data sets on disk, NAME=ROOT.")
    return Mixture([Part(_open(source), source.weight) for source in sources], seed)


@lru_cache(maxsize=32)
def _open(source: Source) -> SceneSet:
    scenes: SceneSet = DATASETS.get(source.name)(source.root)
    if not scenes.has_poses:
        raise UsageError(f"{scenes.title} has no poses: it is for scoring depth, not for training")
    return scenes
