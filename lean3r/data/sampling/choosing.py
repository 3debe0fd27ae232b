"""Choice of the views of a sample: views that overlap, consecutive views, or any."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lean3r.data.sets.scenes import Camera, SceneSet, invert
from lean3r.errors import InputError, UsageError

How = Literal["auto", "covisibility", "range", "random"]
_CACHED = 256
_ESTIMATED_VIEWS = 96
_ANCHORS = 8
_GRID = 6
_SHELLS = (0.6, 1.0, 1.7)  # of a scene's typical depth


@dataclass(frozen=True)
class Choice:
    """How views are chosen. "covisibility": each view overlaps with an earlier choice, with a score of at least `least`
    times its best score; "range": from a range of frames, on average `stride` (lowest, highest) frames apart;
    "random": any; "auto": range if the set's frames are ordered and no file has covisibility, else covisibility."""

    how: How = "auto"
    least: float = 0.1
    stride: tuple[int, int] = (1, 12)

    def __post_init__(self) -> None:
        if self.how not in ("auto", "covisibility", "range", "random"):
            raise UsageError(f"choice of views: how is {self.how!r}; expected covisibility, range, random or auto")
        if not 0 <= self.least <= 1 or not 1 <= self.stride[0] <= self.stride[1]:
            raise UsageError(
                f"choice of views: least is {self.least}, expected 0..1; "
                f"stride is {self.stride}, expected 1 <= lowest <= highest"
            )


AUTO = Choice()


class Chooser:
    """Chooses views of the scenes of one set; keeps the covisibility of recent scenes."""

    def __init__(self, scenes: SceneSet, choice: Choice) -> None:
        self.scenes, self.choice = scenes, choice
        self._scores: OrderedDict[int, np.ndarray | None] = OrderedDict()

    def choose(self, rng: np.random.Generator, scene: int, views: int) -> list[int]:
        """Numbers of distinct views in random order; InputError if the scene has too few that overlap."""
        total = self.scenes.scene(scene).views
        if total < views:
            raise InputError(f"it has {total} views; a sample needs {views}")
        how = self.choice.how
        if how == "auto":
            how = "range" if self.scenes.is_ordered and self._read_scores(scene) is None else "covisibility"
        if how == "random" or views == 1:
            return [int(v) for v in rng.permutation(total)[:views]]
        if how == "range":
            return self._choose_in_range(rng, total, views)
        return self._choose_covisible(rng, scene, views)

    def _choose_in_range(self, rng: np.random.Generator, total: int, views: int) -> list[int]:
        low, high = self.choice.stride
        most = max(1, min(high, (total - 1) // (views - 1)))
        stretch = min(total, 1 + (views - 1) * int(rng.integers(min(low, most), most + 1)))
        start = int(rng.integers(total - stretch + 1))
        return [start + int(v) for v in rng.permutation(stretch)[:views]]

    def _choose_covisible(self, rng: np.random.Generator, scene: int, views: int) -> list[int]:
        score = self._read_scores(scene)
        if score is None:
            score = self._estimate_scores(scene)
        score = score.astype(np.float64) * (1 - np.eye(len(score)))
        share = score / np.maximum(score.max(1, keepdims=True), 1e-12)
        share = np.where((share >= self.choice.least) & (share > 0), share, 0)
        for anchor in rng.permutation(len(share))[:_ANCHORS]:
            chosen, reach = [int(anchor)], share[anchor].copy()
            while len(chosen) < views:
                reach[chosen] = 0
                if not reach.any():
                    break
                chosen.append(int(rng.choice(len(reach), p=reach / reach.sum())))
                reach = np.maximum(reach, share[chosen[-1]])
            if len(chosen) == views:
                return [chosen[i] for i in rng.permutation(views)]
        raise InputError(f"it has fewer than {views} views that overlap; ask for fewer views")

    def _read_scores(self, scene: int) -> np.ndarray | None:
        return self._cache_scores(scene, lambda: self.scenes.covisibility(scene), stated=True)

    def _estimate_scores(self, scene: int) -> np.ndarray:
        score = self._cache_scores(scene, lambda: estimate(self.scenes, scene), stated=False)
        assert score is not None
        return score

    def _cache_scores(self, scene: int, make: Callable[[], np.ndarray | None], stated: bool) -> np.ndarray | None:
        key = 2 * scene + stated
        try:
            return self._scores[key]
        except KeyError:
            score = self._scores[key] = make()
            while len(self._scores) > _CACHED:
                self._scores.popitem(last=False)
            return score

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_scores": OrderedDict()}


def estimate(scenes: SceneSet, scene: int) -> np.ndarray:
    """Overlap [V, V] of each pair of views, estimated from their cameras and the typical depth of the scene.

    Points are distributed over each view's frustum, around the median depth of three views (without depth: twice the
    median distance between cameras). The score is the share of one view's points that are visible in the other
    from a direction less than 60 degrees away; the smaller one of both directions. Occlusion is ignored. In long scenes
    only every n-th view is scored, and its neighbours get the same scores.
    """
    total = scenes.scene(scene).views
    step = -(-total // _ESTIMATED_VIEWS)
    near = np.arange(total) // step
    cameras, views = _cameras(scenes, scene, range(0, total, step))
    if len(views) < 2:
        return np.zeros((total, total), np.float32)
    k = np.stack([c.intrinsics for c in cameras])
    pose = np.stack([c.cam_from_world for c in cameras])
    world = np.stack([invert(p) for p in pose])
    size = np.array([(c.width, c.height) for c in cameras], np.float64)
    depth = _typical_depth(scenes, scene, views, world[:, :3, 3])
    x, y = np.meshgrid((np.arange(_GRID) + 0.5) / _GRID, (np.arange(_GRID) + 0.5) / _GRID)
    pixels = np.stack([x.ravel(), y.ravel()], 1) * size[:, None]
    rays = (pixels - k[:, None, :2, 2]) / k[:, None, [0, 1], [0, 1]]
    rays = np.concatenate([rays, np.ones_like(rays[..., :1])], 2)
    points = np.concatenate([rays * depth * shell for shell in _SHELLS], 1)
    points = points @ world[:, :3, :3].swapaxes(1, 2) + world[:, None, :3, 3]
    towards = points - world[:, None, :3, 3]
    seen = np.zeros((len(views), len(views)), np.float32)
    for other in range(len(views)):
        there = points @ pose[other, :3, :3].T + pose[other, :3, 3]
        z = np.maximum(there[..., 2], 1e-9)
        spot = there[..., :2] / z[..., None] * k[other, [0, 1], [0, 1]] + k[other, :2, 2]
        inside = (there[..., 2] > 0.1 * depth) & ((spot > 0) & (spot < size[other])).all(-1)
        aside = points - world[other, :3, 3]
        cosine = (aside * towards).sum(-1) / (np.linalg.norm(aside, axis=-1) * np.linalg.norm(towards, axis=-1) + 1e-9)
        seen[:, other] = (inside & (cosine > 0.5)).mean(1)
    score = np.zeros((near[-1] + 1, near[-1] + 1), np.float32)
    at = [v // step for v in views]
    score[np.ix_(at, at)] = np.minimum(seen, seen.T)
    return score[np.ix_(near, near)]


def _cameras(scenes: SceneSet, scene: int, views: Iterable[int]) -> tuple[list[Camera], list[int]]:
    """The valid cameras, and the numbers of their views."""
    cameras, valid = [], []
    for v in views:
        with suppress(InputError):  # reading the view raises the error; here it has no overlap
            cameras.append(scenes.camera(scene, v))
            valid.append(v)
    return cameras, valid


def _typical_depth(scenes: SceneSet, scene: int, views: list[int], centres: np.ndarray) -> float:
    if scenes.has_depth:
        depths = []
        for v in dict.fromkeys((views[0], views[len(views) // 2], views[-1])):
            depth = scenes.view(scene, v).depth
            depths.append(depth[np.isfinite(depth) & (depth > 0)])
        known = np.concatenate(depths)
        if len(known):
            return float(np.median(known))
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1)
    return 2 * float(np.median(apart)) or 1.0
