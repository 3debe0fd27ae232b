"""Pairs of pictures as Lite3R's release draws and prepares them: one of every scene an epoch, any views, centre crops.

Source: Zhang et al. 2026, "Lite3R", its released data code.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from lean3r.data.base import SceneBatch
from lean3r.data.sampling.mixture import MAX_TRIES, BatchShape, join_samples, scene_batch, seed_of
from lean3r.data.sets.formats.maps import zero_unknown
from lean3r.data.sets.scenes import RawView, SceneSet, first_few
from lean3r.errors import InputError
from lean3r.geometry.pose import invert_pose, make_pose

NEAR, FAR = 0.5, 1.5  # known depth lies between these multiples of the range in the camera file
MEDIANS = 5.0  # and is at most so many medians of it
FEWEST, SMALLEST = 100, 1e-3  # known pixels that count for the unit of length, and its lower bound
SetPart = Literal["train", "test", "all"]
HELD_OUT, SHARE = 32, 0.25  # scenes of a set for evaluation, and their largest share of it


class Pairs:
    """One sample of every scene an epoch; can be pickled, so that worker processes hold one each.

    The views of a sample are any of its scene, from one stream of random numbers for all samples, seeded with `seed`.
    `part` selects the scenes of each set: "test" its first scenes, a quarter but at most HELD_OUT, "train" the others;
    "all" is for both in the release. Scenes are shuffled in every epoch, by the seed `order` (None: never). With
    `as_released`, the number of planes in a camera file is taken for the farthest depth.
    """

    def __init__(
        self,
        sets: Sequence[SceneSet],
        *,
        part: SetPart = "train",
        order: int | None = 0,
        seed: int = 0,
        as_released: bool = False,
    ) -> None:
        self.sets, self.order, self.seed, self.as_released = tuple(sets), order, seed, as_released
        self.places = [(s, index) for s, scenes in enumerate(self.sets) for index in selected(len(scenes), part)]
        if not self.places:
            count = sum(len(scenes) for scenes in self.sets)
            raise InputError(f"none of {count} scenes is for {part}; expected a data set of at least four scenes")
        self._start()

    def _start(self) -> None:
        self._lock, self._rng = threading.Lock(), np.random.default_rng(self.seed)
        self._drawn: list[tuple[int, list[int]]] = []

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_rng", "_drawn")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def draw(self, number: int, views: int) -> tuple[int, list[int]]:
        """(place, views) of a sample, counted from the start of training; all samples before it are drawn too."""
        with self._lock:
            while len(self._drawn) <= number:
                epoch, at = divmod(len(self._drawn), len(self.places))
                place = at if self.order is None else int(self._shuffled(epoch)[at])
                try:
                    chosen = draw_views(self._rng, self._views(place), views)
                except InputError:
                    chosen = []  # too few views, or files that cannot be read: `sample` says so
                self._drawn.append((place, chosen))
            return self._drawn[number]

    def batch(self, step: int, shape: BatchShape, rank: int = 0, world_size: int = 1) -> SceneBatch:
        """The samples of one process at one step.

        A sample that cannot be read, or with too little known depth, is replaced by another draw and listed in
        `skipped` with the reason; InputError after MAX_TRIES draws for one sample.
        """
        first = (step * world_size + rank) * shape.scenes
        return join_samples([self._sample(first + n, shape) for n in range(shape.scenes)])

    def sample(self, place: int, views: Sequence[int], height: int, width: int) -> SceneBatch:
        """These views of a scene, as a batch of one; InputError if one cannot be read, or if there are none."""
        scenes, index = self.sets[self.places[place][0]], self.places[place][1]
        if not views:
            raise InputError(f"{scenes.label}/{scenes.scene(index).id} has too few views ({self._views(place)})")
        raws = []
        for view in views:
            raw = scenes.view(index, view)
            raws.append(prepare(raw, scenes.depth_range(index, view, self.as_released), height, width))
        label = f"{scenes.label}/{scenes.scene(index).id}:{','.join(map(str, views))}"
        return scene_batch([raw for raw, _ in raws], scenes, label, unknown=sum(count for _, count in raws))

    def _sample(self, number: int, shape: BatchShape) -> SceneBatch:
        skipped: list[str] = []
        rng = np.random.default_rng(seed_of(self.seed, number, "again"))
        for attempt in range(MAX_TRIES):
            try:
                if attempt:
                    place = int(rng.integers(len(self.places)))
                    views = draw_views(rng, self._views(place), shape.views)
                else:
                    place, views = self.draw(number, shape.views)
                batch = self.sample(place, views, shape.height, shape.width)
                known = int((batch.depth > 0).sum())
                if known < FEWEST:
                    raise InputError(f"{batch.ids[0]} has {known} pixels with known depth, fewer than {FEWEST}")
                return replace(batch, skipped=tuple(skipped))
            except (InputError, OSError) as error:
                skipped.append(str(error))
        raise InputError(
            f"{len(skipped)} of {MAX_TRIES} samples could not be used: {first_few(skipped)}. "
            "This recipe needs depth: check the set with `lean3r data check ROOT`"
        )

    def _views(self, place: int) -> int:
        number, index = self.places[place]
        return self.sets[number].scene(index).views

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(seed_of(self.order, epoch, "order")).permutation(len(self.places))


def selected(scenes: int, part: SetPart) -> range:
    """Indices of the scenes of a set that belong to a part; see Pairs."""
    test = min(HELD_OUT, int(SHARE * scenes))
    return {"train": range(test, scenes), "test": range(test), "all": range(scenes)}[part]


def draw_views(rng: np.random.Generator, total: int, views: int) -> list[int]:
    """One of `total` views, then others, all different; InputError if there are too few."""
    if total < views:
        raise InputError(f"it has {total} views; a sample needs {views}")
    anchor = int(rng.choice(total))
    rest = [view for view in range(total) if view != anchor]
    return [anchor, *(int(v) for v in rng.choice(rest, views - 1, replace=False))] if rest else [anchor]


def prepare(view: RawView, limits: tuple[float, float] | None, height: int, width: int) -> tuple[RawView, int]:
    """A view scaled to cover height x width and cut at its centre, and the number of pixels whose depth is not finite.

    Colours are resized bicubically, depth by the nearest pixel. Depth outside of NEAR and FAR times `limits` is
    unknown, then depth of more than MEDIANS medians. As in the release, intrinsics scale about the centre of the first
    pixel, not its corner.
    """
    from PIL import Image  # not at import: training on the synthetic world runs without it

    rows, columns = view.image.shape[:2]
    scale = max(height / rows, width / columns)
    high, wide = round(scale * rows), round(scale * columns)
    top, left = (high - height) // 2, (wide - width) // 2
    box = slice(top, top + height), slice(left, left + width)
    image = np.asarray(Image.fromarray(view.image).resize((wide, high), Image.Resampling.BICUBIC))[box]
    raw = Image.fromarray(np.ascontiguousarray(view.depth, np.float32))
    depth, unknown = zero_unknown(np.asarray(raw.resize((wide, high), Image.Resampling.NEAREST))[box])
    known = depth > 0
    if limits is not None:
        known &= (depth >= NEAR * limits[0]) & (depth <= FAR * limits[1])
    if known.any():
        known &= depth <= MEDIANS * np.median(depth[known])
    k = view.intrinsics.copy()
    k[:2, 2] -= 0.5
    k[:2] *= scale
    k[:2, 2] += 0.5 - np.array([left, top])
    return RawView(image, np.where(known, depth, 0).astype(np.float32), k, view.cam_from_world), unknown


def in_unit(batch: SceneBatch, *, relative: bool = True) -> SceneBatch:
    """The scenes with their own unit of length: the larger one of the median known depth (0 for at most FEWEST pixels)
    and the longest translation of a camera. With `relative`, the first view's frame is the world before that."""
    pose = batch.cam_from_world
    pose = pose @ invert_pose(pose[:, :1]) if relative else pose
    longest = pose[..., :3, 3].norm(dim=-1).amax(1)
    known = [depth[depth > 0] for depth in batch.depth]
    middle = torch.stack([(d.median() - (-d).median()) / 2 if len(d) > FEWEST else d.new_zeros(()) for d in known])
    unit = torch.maximum(middle.to(longest.dtype), longest).clamp_min(SMALLEST)
    cameras = make_pose(pose[..., :3, :3], pose[..., :3, 3] / unit[:, None, None])
    return replace(batch, depth=batch.depth / unit[:, None, None, None], cam_from_world=cameras)
