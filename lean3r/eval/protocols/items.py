"""What a benchmark asks for: pictures of one scene, with the truth that scores their reconstruction."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image

from lean3r import __version__
from lean3r.data.base import SceneBatch
from lean3r.data.sampling.lite3r import Pairs
from lean3r.data.sampling.mixture import seed_of
from lean3r.data.sets.formats.maps import no_depth
from lean3r.data.sets.scenes import RawView, SceneSet, first_few
from lean3r.data.world.synthetic import HELD_OUT_SEED, SyntheticWorld
from lean3r.errors import InputError, UsageError
from lean3r.scratch import atomic_file

KEPT = ("image", "depth", "intrinsics", "cam_from_world")
Chosen = Mapping[str, Sequence[int]]  # scene -> numbers of its views, from a file of the user


@dataclass(frozen=True, eq=False, kw_only=True)
class Item(ABC):
    """One scene of a benchmark: `id` is unique and a relative path, `names` are those of its pictures, and `group` is
    what the protocol averages over first, such as a category. It holds paths but no pictures, and can be pickled."""

    id: str
    names: tuple[str, ...]
    group: str = ""

    @abstractmethod
    def read(self) -> tuple[RawView, ...]:
        """Pictures, depth and cameras of all views; InputError if one cannot be read."""

    @property
    def times_s(self) -> np.ndarray | None:
        """Timestamps [S] of the views in seconds; None if the set has none."""
        return None

    def gaps(self) -> list[str]:
        """Sentences for what the scene's files lack; the views are those that are there."""
        return []

    def cloud(self) -> np.ndarray | None:
        """True points [N, 3] of the world, None if the set has none."""
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class SceneItem(Item):
    """Some views of a scene of a data set."""

    scenes: SceneSet
    scene: int
    views: tuple[int, ...]

    def read(self) -> tuple[RawView, ...]:
        """See Item."""
        return tuple(self.scenes.view(self.scene, view) for view in self.views)

    @property
    def times_s(self) -> np.ndarray | None:
        """See Item."""
        times = [self.scenes.time_s(self.scene, view) for view in self.views]
        return None if any(time is None for time in times) else np.array(times, np.float64)

    def gaps(self) -> list[str]:
        """See Item."""
        return self.scenes.gaps(self.scene)

    def cloud(self) -> np.ndarray | None:
        """See Item."""
        return self.scenes.cloud(self.scene)


@dataclass(frozen=True, eq=False, kw_only=True)
class UnusableItem(Item):
    """A scene without pictures to reconstruct, and the reason."""

    reason: str

    def read(self) -> tuple[RawView, ...]:
        """Raises InputError."""
        raise InputError(self.reason)


def scene_item(scenes: SceneSet, scene: int, views: Sequence[int], group: str = "") -> Item:
    """The item of these views of a scene; without views, that which says what is wrong with the scene."""
    place = path_of(scenes.scene_id(scene))
    if not views:
        return UnusableItem(id=place, names=(), group=group, reason=_unusable(scenes, scene))
    names = tuple(scenes.view_name(scene, view) for view in views)
    return SceneItem(id=place, names=names, group=group, scenes=scenes, scene=scene, views=tuple(views))


def pair_item(pairs: Pairs, place: int, views: Sequence[int], side: int) -> Item:
    """The same for `Pairs`, whose place is that of the scene there."""
    which, scene = pairs.places[place]
    item = scene_item(pairs.sets[which], scene, views)
    if not isinstance(item, SceneItem):
        return item
    return PairItem(**{f.name: getattr(item, f.name) for f in fields(item)}, pairs=pairs, place=place, side=side)


def path_of(scene: str) -> str:
    """The id of a scene as a relative path: characters that file systems refuse become "_"."""
    parts = [re.sub(r"[^\w.+-]", "_", part) for part in re.split(r"[/\\]", scene)]
    return "/".join(part for part in parts if part.strip(".")) or "scene"


@lru_cache(maxsize=1)
def _world() -> SyntheticWorld:
    return SyntheticWorld(seed=HELD_OUT_SEED)


@dataclass(frozen=True, eq=False, kw_only=True)
class WorldItem(Item):
    """A scene of the synthetic world, of the stream that no recipe trains on; kept in a folder, if there is one, after
    it was drawn."""

    index: int
    height: int
    width: int
    folder: Path | None = None

    def read(self) -> tuple[RawView, ...]:
        """See Item."""
        size = {"views": len(self.names), "height": self.height, "width": self.width}
        if self.folder is None:
            return raw_views(_world().batch(self.index, 1, **size))
        file = self.folder / f"{__version__}-{HELD_OUT_SEED}-{self.index}-{'x'.join(map(str, size.values()))}.npz"
        if not file.exists():
            drawn = raw_views(_world().batch(self.index, 1, **size))
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(UsageError), atomic_file(file) as part, part.open("wb") as opened:  # unless another writes it
                np.savez(
                    opened,
                    allow_pickle=False,
                    **{name: np.stack([getattr(view, name) for view in drawn]) for name in KEPT},
                )
            return drawn
        try:
            with np.load(file) as kept:
                return tuple(RawView(*view) for view in zip(*(kept[name] for name in KEPT), strict=True))
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise InputError(f"{file} cannot be read: {error}. Delete it: the scene is then drawn again.") from error


@dataclass(frozen=True, eq=False, kw_only=True)
class NoiseItem(Item):
    """Smooth random pictures without truth, to measure costs."""

    seed: int
    height: int
    width: int

    def read(self) -> tuple[RawView, ...]:
        """See Item."""
        noise = np.random.default_rng(self.seed).integers(0, 256, (len(self.names), 8, 8, 3), np.uint8)
        k = np.array([[self.width, 0, self.width / 2], [0, self.width, self.height / 2], [0, 0, 1.0]])
        size, depth = (self.width, self.height), no_depth(self.height, self.width)
        pictures = (np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BICUBIC)) for each in noise)
        return tuple(RawView(picture, depth, k, np.eye(4)) for picture in pictures)


@dataclass(frozen=True, eq=False, kw_only=True)
class PairItem(SceneItem):
    """Views of a scene, prepared as in Lite3R's release: squares of `side` pixels."""

    pairs: Pairs
    place: int
    side: int

    def read(self) -> tuple[RawView, ...]:
        """See Item."""
        return raw_views(self.pairs.sample(self.place, self.views, self.side, self.side))


def raw_views(batch: SceneBatch) -> tuple[RawView, ...]:
    """The views of a batch of one scene, with pictures of 8 bits."""
    pictures = (batch.images[0].movedim(1, -1) * 255).round().to(torch.uint8).numpy()
    parts = (batch.depth[0].numpy(), batch.intrinsics[0].double().numpy(), batch.cam_from_world[0].double().numpy())
    return tuple(RawView(*view) for view in zip(pictures, *parts, strict=True))


def random_views(scenes: SceneSet, count: int, seed: int = 42) -> list[tuple[int, list[int]]]:
    """(scene, views): `count` random views of each scene that has as many, in random order as in VGGT's evaluation; no
    views of a scene that cannot be read.

    The draw depends on the seed and the scene's name alone.
    """
    found = []
    for scene, total in _view_counts(scenes):
        if total >= count:
            rng = np.random.default_rng(seed_of(seed, scenes.scene_id(scene), count))
            found.append((scene, rng.choice(total, count, replace=False).tolist()))
        elif not total:
            found.append((scene, []))
    return check_any(found, scenes, count)


def spread_views(scenes: SceneSet, most: int) -> list[tuple[int, list[int]]]:
    """(scene, views): all views, or `most` at equal steps, of each scene; none if it has not two."""
    found = []
    for scene, total in _view_counts(scenes):
        views = np.linspace(0, total - 1, min(total, most)).round().astype(int).tolist()
        found.append((scene, views if total >= 2 else []))
    return check_any(found, scenes, 2)


def strided_views(scenes: SceneSet, most: int, *, stride: int = 1, first: int = 0) -> list[tuple[int, list[int]]]:
    """(scene, views): every `stride`-th view from number `first` on, at most `most`, of each scene with two of them; no
    views of a scene that cannot be read, or has only one."""
    found = []
    for scene, total in _view_counts(scenes):
        views = list(range(first, total, stride))[:most]
        if total < 2 or len(views) >= 2:
            found.append((scene, views if total >= 2 else []))
    return check_any(found, scenes, first + stride + 1)


def stated_views(scenes: SceneSet, chosen: Chosen) -> list[tuple[int, list[int]]]:
    """(scene, views) as a file of the user states them; InputError for scenes or views that the set does not have."""
    numbers = {path_of(scenes.scene_id(scene)): scene for scene in range(len(scenes))}
    chosen = {path_of(name): views for name, views in chosen.items()}
    absent = [name for name in chosen if name not in numbers]
    if absent:
        raise InputError(
            f"{len(absent)} stated scenes are not in the data: {first_few(absent)}; it has {first_few(list(numbers))}"
        )
    for name, views in chosen.items():
        total = scenes.scene(numbers[name]).views
        if not all(type(v) is int and 0 <= v < total for v in views) or len(set(views)) < max(2, len(views)):
            raise InputError(
                f"the stated views of {name} are {first_few(views)}; expected two or more different ones from 0 to "
                f"{total - 1}"
            )
    return [(numbers[name], list(views)) for name, views in chosen.items()]


def check_any(found: list[tuple[int, list[int]]], scenes: SceneSet, least: int) -> list[tuple[int, list[int]]]:
    """The list itself; InputError if no scene of it has views."""
    if any(views for _, views in found):
        return found
    why = f". {scenes.scene_id(found[0][0])}: {_unusable(scenes, found[0][0])}" if found else ""
    raise InputError(f"none of {len(scenes)} {scenes.title} scenes has {least} views, which this benchmark needs{why}")


def _view_counts(scenes: SceneSet) -> Iterator[tuple[int, int]]:
    """(scene, number of its views), 0 if its files cannot be read."""
    for scene in range(len(scenes)):
        try:
            yield scene, scenes.scene(scene).views
        except InputError:
            yield scene, 0


def _unusable(scenes: SceneSet, scene: int) -> str:
    try:
        return f"the number of its views is {scenes.scene(scene).views}, too few for this benchmark"
    except InputError as error:
        return str(error)
