"""Consecutive views of a video: they overlap with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lean3r.types import Source

AHEAD = (1, 2, 4, 6, 9, 13)  # neighbouring frames that each is matched with; loops are found by appearance


def sequences(sources: Sequence[Source]) -> list[list[int]]:
    """Runs of two or more views that are frames of one video, in the order of time."""
    runs: list[list[int]] = []
    for view, source in enumerate(sources):
        if source.timestamp_s is None:
            continue
        last = sources[view - 1] if view else None
        follows = (
            last is not None
            and last.timestamp_s is not None
            and last.timestamp_s < source.timestamp_s
            and _clip(last) == _clip(source)
        )
        if follows:
            runs[-1].append(view)
        else:
            runs.append([view])
    return [run for run in runs if len(run) > 1]


def pairs_along(runs: Sequence[Sequence[int]]) -> np.ndarray:
    """Pairs [P, 2] of frames that are near each other in their video."""
    pairs = [(run[i], run[i + step]) for run in runs for step in AHEAD for i in range(len(run) - step)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def is_near(runs: Sequence[Sequence[int]], views: int) -> np.ndarray:
    """Whether two views [S, S] are near enough in a video to be matched for that reason."""
    near = np.zeros((views, views), bool)
    for run in runs:
        at = np.arange(len(run))
        near[np.ix_(run, run)] = np.abs(at[:, None] - at) <= AHEAD[-1]
    return near


def _clip(source: Source) -> tuple[str, int, int]:
    return source.name.rpartition("_")[0], source.width, source.height
