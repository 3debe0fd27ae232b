"""Batches from weighted mixtures of data sets; every sample is a pure function of seed, step and its number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from lean3r.data.base import SceneBatch
from lean3r.data.sampling.augment import NONE, Augmentation, augment, draw_scene
from lean3r.data.sampling.choosing import AUTO, Choice, Chooser
from lean3r.data.sets.formats.maps import zero_unknown
from lean3r.data.sets.scenes import RawView, SceneSet, first_few
from lean3r.errors import InputError, UsageError

MAX_TRIES = 50


@dataclass(frozen=True)
class BatchShape:
    """The batch of one process in one step: `scenes` scenes of `views` views of height x width pixels."""

    scenes: int
    views: int
    height: int
    width: int


@runtime_checkable
class World(Protocol):
    """A source that makes batches itself, as the synthetic world does."""

    def batch(
        self, index: int, scenes: int, *, views: int | None = None, height: int | None = None, width: int | None = None
    ) -> SceneBatch:
        """Batch `index` of its stream."""
        ...


@dataclass(frozen=True)
class Part:
    """One source of a mixture: its weight relative to the others, the choice of views and the augmentation.

    `name` labels its samples; by default the label of the set."""

    source: SceneSet | World
    weight: float = 1.0
    choice: Choice = AUTO
    augmentation: Augmentation = NONE
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"the weight of {self.label} is {self.weight}; expected a number of at least 0")

    @property
    def label(self) -> str:
        """The label of its samples."""
        return self.name or (self.source.label if isinstance(self.source, SceneSet) else "synthetic")


def shape_at(
    seed: int,
    step: int,
    views: int | Sequence[int],
    pixels: tuple[int, int],
    aspect: tuple[float, float],
    multiple: int,
    budget: int,
) -> BatchShape:
    """The shape of all batches of a step, the same for every process, so that no process waits for a larger batch.

    views: views per scene, or counts to draw from; pixels: bounds of the area; aspect: bounds of width / height;
    sides are multiples of `multiple`; budget: views per process and step, which sets the number of scenes (at least
    one). Area and aspect are drawn log-uniformly, then rounded to the nearest sides within both bounds. UsageError if
    there are no such sides.
    """
    sides = _sides(tuple(pixels), tuple(aspect), multiple)
    rng = np.random.default_rng(seed_of(seed, step, "shape"))
    count = views if isinstance(views, int) else int(views[int(rng.integers(len(views)))])
    area, ratio = (low * (high / low) ** rng.random() for low, high in (pixels, aspect))
    target = np.log([math.sqrt(area / ratio), math.sqrt(area * ratio)])
    height, width = sides[int(np.abs(np.log(sides) - target).sum(1).argmin())]
    return BatchShape(max(1, budget // count), count, int(height), int(width))


@lru_cache(maxsize=64)
def _sides(pixels: tuple[int, int], aspect: tuple[float, float], multiple: int) -> np.ndarray:
    """All (height, width) within the bounds [N, 2]."""
    if not 0 < pixels[0] <= pixels[1] or not 0 < aspect[0] <= aspect[1] or multiple < 1:
        raise UsageError(
            f"got pixels {pixels}, aspect {aspect}, multiple {multiple}; expected lowest <= highest, all above 0"
        )
    longest = int(math.sqrt(pixels[1] * max(aspect[1], 1 / aspect[0]))) // multiple
    one = np.arange(1, longest + 1) * multiple
    height, width = (side.ravel() for side in np.meshgrid(one, one))
    area, ratio = height * width, width / height
    ok = (area >= pixels[0]) & (area <= pixels[1]) & (ratio >= aspect[0] - 1e-9) & (ratio <= aspect[1] + 1e-9)
    if not ok.any():
        raise UsageError(
            f"no picture size has sides that are multiples of {multiple}, {pixels[0]} to {pixels[1]} pixels and an "
            f"aspect of {aspect[0]} to {aspect[1]}; widen one of the ranges"
        )
    return np.stack([height[ok], width[ok]], 1)


def seed_of(*parts: object) -> int:
    """A 63-bit seed, different for every tuple of numbers and words."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


class Mixture:
    """Draws batches from several sources; can be pickled, so that worker processes can hold one each."""

    def __init__(self, parts: Sequence[Part], seed: int = 0) -> None:
        """UsageError if no part has a weight above 0."""
        if not parts or sum(part.weight for part in parts) <= 0:
            raise UsageError("a mixture needs at least one data set with a weight above 0")
        self.parts, self.seed = tuple(parts), seed
        weights = np.array([part.weight for part in parts], np.float64)
        self._until = np.cumsum(weights / weights.sum())
        self._choosers = [Chooser(p.source, p.choice) if isinstance(p.source, SceneSet) else None for p in parts]

    def batch(self, step: int, shape: BatchShape, rank: int = 0, world_size: int = 1) -> SceneBatch:
        """The batch of one process at one step.

        Sample n of a step does not depend on the process: process r gets those from r * shape.scenes on, so two
        processes of two scenes get the same samples as one process of four. A sample that cannot be read is replaced by
        another draw and listed in `skipped` with the reason; InputError after MAX_TRIES draws for one sample. Normals
        are given if all samples have them; `is_metric` is set if all are metric.
        """
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank}; expected 0 to {world_size - 1} for {world_size} processes")
        drawn = [self._sample(step, rank * shape.scenes + n, shape) for n in range(shape.scenes)]
        return join_samples(drawn)

    def _sample(self, step: int, number: int, shape: BatchShape) -> SceneBatch:
        skipped: list[str] = []
        small: list[str] = []
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng(seed_of(self.seed, step, number, attempt))
            index = int(np.searchsorted(self._until, rng.random(), side="right"))
            part, chooser = self.parts[index], self._choosers[index]
            if chooser is None:
                assert not isinstance(part.source, SceneSet)
                batch = part.source.batch(
                    int(rng.integers(1 << 62)), 1, views=shape.views, height=shape.height, width=shape.width
                )
                return SceneBatch(
                    **{**vars(batch), "ids": (f"{part.label}/{step}.{number}",), "skipped": tuple(skipped)}
                )
            fitting = chooser.scenes.candidates(shape.views, shape.height, shape.width)
            scene = int(rng.choice(len(chooser.scenes) if fitting is None else fitting))
            try:
                if chooser.scenes.scene(scene).views < shape.views:
                    small.append(f"{part.label}/{chooser.scenes.scene(scene).id}")
                    continue
                return _read(chooser, part, rng, scene, shape, tuple(skipped))
            except (InputError, OSError) as error:
                skipped.append(f"{part.label}/{_name(chooser.scenes, scene)} ({error})")
        if len(small) > len(skipped):
            raise InputError(
                f"{len(small)} of {MAX_TRIES} scenes have fewer than {shape.views} views: {first_few(small)}. "
                "Ask for fewer views per scene"
            )
        raise InputError(
            f"{len(skipped)} of {MAX_TRIES} samples could not be read: {first_few(skipped)}. "
            "Check the set with `lean3r data check ROOT`"
        )


def _read(
    chooser: Chooser, part: Part, rng: np.random.Generator, scene: int, shape: BatchShape, skipped: tuple[str, ...]
) -> SceneBatch:
    """Read one sample of a data set on disk."""
    scenes = chooser.scenes
    info = scenes.scene(scene)
    chosen = chooser.choose(rng, scene, shape.views)
    drawn = draw_scene(rng, part.augmentation)
    views, unknown = [], 0
    for v in chosen:
        raw = scenes.view(scene, v)
        depth, count = zero_unknown(raw.depth) if scenes.has_depth else (raw.depth, 0)
        raw = RawView(raw.image, depth, raw.intrinsics, raw.cam_from_world, raw.normals)
        views.append(augment(raw, shape.height, shape.width, part.augmentation, drawn, rng))
        unknown += count
    if scenes.has_depth and not any(view.depth.any() for view in views):
        raise InputError("none of the views has known depth")
    label = f"{part.label}/{info.id}:{','.join(map(str, chosen))}"
    return replace(scene_batch(views, scenes, label, unknown), skipped=skipped)


def scene_batch(views: Sequence[RawView], scenes: SceneSet, label: str, unknown: int) -> SceneBatch:
    """Views of one size, of one scene of a set, as a batch of one; `unknown` as in SceneBatch."""
    height, width = views[0].image.shape[:2]
    normals = [view.normals for view in views if view.normals is not None]
    return SceneBatch(
        images=_pictures([view.image for view in views])[None],
        depth=_tensor([view.depth for view in views])[None].float()
        if scenes.has_depth
        else torch.zeros(1, len(views), height, width),
        intrinsics=_tensor([view.intrinsics for view in views])[None].float(),
        cam_from_world=_tensor([view.cam_from_world for view in views])[None].float(),
        normals=_tensor(normals).permute(0, 3, 1, 2)[None].float() if len(normals) == len(views) else None,
        is_metric=scenes.is_metric,
        ids=(label,),
        unknown=unknown,
    )


def join_samples(samples: Sequence[SceneBatch]) -> SceneBatch:
    """Join samples of one shape into a batch."""
    if len(samples) == 1:
        return samples[0]
    normals = [s.normals for s in samples if s.normals is not None]
    return SceneBatch(
        *(torch.cat([getattr(s, key) for s in samples]) for key in ("images", "depth", "intrinsics", "cam_from_world")),
        normals=torch.cat(normals) if len(normals) == len(samples) else None,
        is_metric=all(s.is_metric for s in samples),
        ids=tuple(name for s in samples for name in s.ids),
        skipped=tuple(name for s in samples for name in s.skipped),
        unknown=sum(s.unknown for s in samples),
    )


def _pictures(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Pictures [S, 3, H, W] in [0, 1] from S arrays [H, W, 3] uint8."""
    height, width = arrays[0].shape[:2]
    planes = np.empty((len(arrays), 3, height, width), np.uint8)
    for place, array in zip(planes, arrays, strict=True):
        place[...] = array.transpose(2, 0, 1)
    return torch.from_numpy(planes).float().div_(255)


def _tensor(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))


def _name(scenes: SceneSet, scene: int) -> str | int:
    """The name of a scene, even if its files cannot be read; its index if the set has no list of names."""
    return getattr(scenes, "ids", range(len(scenes)))[scene]
