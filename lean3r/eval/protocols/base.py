"""A benchmark: which views of which data are reconstructed, how they are scored, and how scores become a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, TypedDict

import numpy as np

from lean3r.data.sets.scenes import RawView, SceneSet, first_few
from lean3r.errors import InputError, UsageError
from lean3r.eval.predicted.base import Predicted
from lean3r.eval.protocols.items import Chosen, Item, scene_item, stated_views

LONGEST_DEG = 30
Over = Literal["pairs", "groups", "scenes"]


class AbsentPart(InputError):
    """The predictions lack a part that a measure needs; `figures` are those that it has without, or that count what
    lacks."""

    def __init__(self, reason: str, **figures: float) -> None:
        super().__init__(reason)
        self.figures = figures


class Curve(TypedDict):
    """Numbers of pairs of views: in total, and with an error under, or of at most, 1, 2, ... LONGEST_DEG degrees."""

    pairs: int
    below: list[int]
    at_most: list[int]


@dataclass(frozen=True)
class Score:
    """Figures of one item by name; `curves` and `errors` are what a protocol pools over items instead of averaging
    figures, and `weight` is the item's share in weighted means."""

    figures: Mapping[str, float]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    errors: Mapping[str, list[float]] = field(default_factory=dict)
    weight: float = 1.0


class Row(TypedDict):
    """A row of scores.json; see docs/how-to/evaluate.md."""

    id: str
    group: str
    figures: dict[str, float | None]
    curves: dict[str, Curve]
    errors: dict[str, list[float]]
    weight: float
    seconds: float | None
    network_seconds: float | None
    cpu_seconds: float | None
    peak_memory_mb: float | None
    error: str | None
    problems: list[str]
    picture: str | None


Measure = Callable[[Predicted, Item, tuple[RawView, ...]], Score]
Views = Callable[[SceneSet, int], list[tuple[int, list[int]]]]
Pool = Callable[[Sequence[Row], np.ndarray], dict[str, np.ndarray]]
"""From N rows, and how often each of R resamples has them ([R, N], integers), the figures [R] by name."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One protocol.

    `data` is a row of DATASETS; `views` chooses scenes and at most `count` views of each; `scenes` are the ends of the
    names of the protocol's scenes, with wildcards (None: all; all as well if the data have none of them), `group_of`
    what is averaged over first, `scene_of` the scene of an item by its id, where several items are of one (None: each
    is a scene). `measures` score an item; `pool` makes the figures of the rows. `papers` says who uses it, `notes`
    where references disagree and what is taken; `resolution` is the longest side of the pictures in the papers. `items`
    makes the items itself, for data that are no SceneSet.
    """

    title: str
    data: str
    papers: str
    measures: tuple[Measure, ...]
    pool: Pool
    count: int
    notes: str = ""
    views: Views | None = None
    items: Callable[[SceneSet | None, int], list[Item]] | None = None
    scenes: tuple[str, ...] | None = None
    group_of: Callable[[str], str] | None = None
    scene_of: Callable[[str], str] | None = None
    resolution: int | None = None

    def select(self, scenes: SceneSet | None, chosen: Chosen | None = None) -> list[Item]:
        """The items of the benchmark, with the views of `chosen` if it is given; UsageError if it draws its own."""
        if self.items is not None:
            if chosen is not None:
                raise UsageError(f"--views-from does not go with '{self.title}', whose protocol draws its own views.")
            return self.items(scenes, self.count)
        assert scenes is not None and self.views is not None
        places = self.views(scenes, self.count) if chosen is None else stated_views(scenes, chosen)
        names = {scene: scenes.scene_id(scene) for scene, _ in places}
        if chosen is None:
            places = [place for place in places if self._has(names[place[0]])] or places
        group_of = self.group_of or (lambda name: "")
        return [scene_item(scenes, scene, views, group_of(names[scene])) for scene, views in places]

    def departure(self, items: Sequence[Item]) -> str:
        """A sentence if none of the items is of a scene that the papers score; "" otherwise."""
        if self.scenes is None or any(self._has(item.id) for item in items):
            return ""
        return (
            f"None of the scenes that the papers score is in these data ({first_few(self.scenes)}); scored instead: "
            f"{first_few([item.id for item in items])}. The figures cannot be compared with those of the papers."
        )

    def _has(self, scene: str) -> bool:
        """Whether a scene is one of the protocol's."""
        return self.scenes is None or any(fnmatchcase(scene, f"*{end}") for end in self.scenes)


def curve_of(errors_deg: np.ndarray) -> Curve:
    """Count errors; NaN and infinity are in the total only."""
    bounds = np.arange(1, LONGEST_DEG + 1)
    known = np.sort(errors_deg[np.isfinite(errors_deg)])
    below, at_most = (np.searchsorted(known, bounds, side=side).tolist() for side in ("left", "right"))
    return {"pairs": len(errors_deg), "below": below, "at_most": at_most}


def auc(curve: Curve, threshold_deg: int) -> float:
    """Area under the recall curve in per cent, as `auc_histogram` gives it; NaN without pairs."""
    counts = [*curve["below"][: threshold_deg - 1], curve["at_most"][threshold_deg - 1]]
    return 100 * float(np.mean(counts)) / curve["pairs"] if curve["pairs"] else float("nan")


def share_below(curve: Curve, threshold_deg: int) -> float:
    """Share of errors under a threshold in per cent (RRA, RTA); NaN without pairs."""
    return 100 * curve["below"][threshold_deg - 1] / curve["pairs"] if curve["pairs"] else float("nan")
