"""Photos of two places that share one thing, such as a poster, a carpet or a logo, told apart.

All matches between them lie on that thing, and fit one model to perfection, in which one place lies over the other.
What gives that away is what is around it: there, photos of both places show points that those of the other one, from
nearly the same direction and distance, should show too, and they share none. Photos of one place share points all over
what both show.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from lean3r.refine.job import Answer, Job
from lean3r.refine.judge import centres_of
from lean3r.refine.moving import cameras_of, cells_of, share_near

LEAST_SHARED = 30  # points of two photos that tell where they are
MOST_DEG, MOST_RATIO = 30.0, 1.6  # apart in direction and distance, from where photos should show the same points
# Share of what a photo shows of the field of view of another that is near the points that both share: of one place, of
# two, and the lower quarter of the shares of the other side, which has something of its own to show, too. Neighbours
# among photos of seven scenes have 0.8 and more, though other pairs of an office have 0.4; of pairs of two places with
# a poster a third as wide as the photos it was 0.1 to 0.5, with one of 40 % of their width up to 0.7. A rendered place
# of few points has 0.59 and 0.79 in two pairs.
ONE, TWO, OTHER = 0.8, 0.6, 0.75
LEAST_PAIRS, ENOUGH = 3, 4  # of photos that tell; that do so where one side has little besides the thing
SHARED = "it shares one thing, such as a poster, with the other views, and nothing around that"
NOTE = (
    "{} of {} photos seem to show another place than the others: they share one thing with these, such as a poster, a "
    "carpet or a logo, and nothing around it. Reconstruct both apart, or mask what they share (--masks)"
)


class Tie(NamedTuple):
    """What two photos that share points show: the share of what the first shows of the field of view of the second that
    is near the shared points, the same the other way round, and whether both should show the same points."""

    first: float
    second: float
    is_near: bool


def with_places(job: Job, answer: Answer) -> Answer:
    """An answer of photos in which those of other places than the largest are doubted, with a note."""
    others = places_of(job, answer)[1:]
    if not others:
        return answer
    parts = list(answer.report["parts"])
    for number, views in enumerate(others, max(parts) + 1):
        for view in views:
            parts[view] = number
    doubted = [view for views in others for view in views]
    answer = replace(answer, report={**answer.report, "parts": parts}).with_doubts(doubted, SHARED)
    return answer.with_note("shared-thing", NOTE.format(len(doubted), len(job.views)))


def places_of(job: Job, answer: Answer) -> list[list[int]]:
    """The trusted views by the places that they show, the one with the most views first, then with the most points."""
    trusted = answer.has & answer.trusted
    seen = np.zeros((len(answer.xyz), len(trusted)), bool)
    seen[answer.point, answer.view] = True
    seen[:, ~trusted] = False
    whole = seen.astype(np.float32)
    common = (whole.T @ whole).astype(int)
    shown, places = Shown(job, answer, seen), [{int(view)} for view in np.flatnonzero(trusted)]
    ties: dict[tuple[int, int], Tie] = {}
    pairs = [(i, j) for i, j in combinations(np.flatnonzero(trusted).tolist(), 2) if common[i, j] >= LEAST_SHARED]
    for i, j in sorted(pairs, key=lambda pair: -common[pair]):
        one, other = (next(place for place in places if view in place) for view in (i, j))
        if one is not other:
            ties[i, j] = shown.tie(i, j)
            if min(ties[i, j][:2]) >= ONE:
                _join(places, one, other)
    told = {view for pair, tie in ties.items() if tie.is_near for view in pair}
    for place in [place for place in places if not place & told]:  # nothing tells it from others: they may be hundreds
        mine = list(place)
        nearest = int(np.where(np.isin(np.arange(len(common)), mine) | ~trusted, -1, common[mine].max(axis=0)).argmax())
        if len(places) > 1:
            _join(places, next(other for other in places if nearest in other), place)
    while (pair := _one_place(places, ties, common)) is not None:
        _join(places, *pair)
    return sorted(map(sorted, places), key=lambda place: (-len(place), -int(seen[:, place].sum()), place))


def _join(places: list[set[int]], one: set[int], other: set[int]) -> None:
    places.remove(other)
    one |= other


def _one_place(
    places: list[set[int]], ties: dict[tuple[int, int], Tie], common: np.ndarray
) -> tuple[set[int], set[int]] | None:
    """Of places that are not told apart, the two that share the most points; None if there are none."""
    best, most = None, -1
    for one, other in combinations(places, 2):
        count = int(common[np.ix_(list(one), list(other))].max())
        if count > most and not _are_two(one, other, ties):
            best, most = (one, other), count
    return best


def _are_two(one: set[int], other: set[int], ties: dict[tuple[int, int], Tie]) -> bool:
    """Whether photos that should show the same points tell that these are two places."""
    near = {pair: tie for pair, tie in ties.items() if tie.is_near}
    shares = [tie[:2] for (i, j), tie in near.items() if i in one and j in other]
    shares += [tie[1::-1] for (i, j), tie in near.items() if j in one and i in other]
    if len(shares) < LEAST_PAIRS:
        return False
    of_sides = np.array(shares).T
    for mine, others in (of_sides, of_sides[::-1]):
        is_enough = len(shares) >= ENOUGH and min(len(one), len(other)) > 1
        if np.median(mine) < TWO and (is_enough or np.quantile(others, 0.25) < OTHER):
            return True
    return False


class Shown:
    """What the views of an answer show: the points `seen` [P, S] bool."""

    def __init__(self, job: Job, answer: Answer, seen: np.ndarray) -> None:
        self.answer, self.seen = answer, seen
        self.cameras, self.centres = cameras_of(job, answer), centres_of(answer.cam_from_world)
        self.focals = np.array([camera.mean_focal_length() for camera in self.cameras])

    def tie(self, i: int, j: int) -> Tie:
        """That of two views that share points."""
        xyz = self.answer.xyz[self.seen[:, i] & self.seen[:, j]]
        rays = self.centres[[i, j], None] - xyz
        away = np.linalg.norm(rays, axis=2)
        cosine = (rays[0] * rays[1]).sum(1) / away.prod(0)
        ratio = np.log(np.median(away, axis=1) / self.focals[[i, j]])
        is_near = np.median(cosine) > np.cos(np.radians(MOST_DEG)) and abs(ratio[0] - ratio[1]) < np.log(MOST_RATIO)
        return Tie(self._near(i, j), self._near(j, i), bool(is_near))

    def _near(self, i: int, j: int) -> float:
        """The share of the cells of view i with points in the field of view of j that are near those that j shares."""
        mine = np.flatnonzero(self.seen[:, i])
        there = self._within(j, mine)
        shared = self.seen[mine, j] & there
        cells = cells_of(self._project(i, mine), self.cameras[i])
        return share_near(np.unique(cells[there]), np.unique(cells[shared]), self.cameras[i])

    def _within(self, view: int, points: np.ndarray) -> np.ndarray:
        xy, camera = self._project(view, points), self.cameras[view]
        return np.all((xy >= 0) & (xy < (camera.width, camera.height)), axis=1)  # nan is neither

    def _project(self, view: int, points: np.ndarray) -> np.ndarray:
        """Points [N] in a view [N, 2]; nan behind the camera."""
        pose = self.answer.cam_from_world[view]
        cam = self.answer.xyz[points] @ pose[:3, :3].T + pose[:3, 3]
        return np.asarray(self.cameras[view].img_from_cam(cam)).reshape(-1, 2)
