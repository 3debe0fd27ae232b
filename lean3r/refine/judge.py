"""Which poses of a model can be trusted: a small reprojection error alone proves little about the whole.

Views are trusted if they constrain each other. A view is doubted if it lies outside the largest firm group, if most of
its matches contradict its pose, or if it is a jump in a video. (A group connected through a single view or few points
is well oriented, but its scale is poorly constrained.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

LEAST_TIES = 10  # points that a view must share with two others of its part; half as many each way tie two parts
# Points that a photograph must share with others that are trusted. Of 470 views in sets of 2 to 6 photographs, those
# that saw fewer were 4, 7, 69 and 141 degrees off; right ones saw 39 and more, and shared 30. A wrong place of windows
# like others fits some twenty matches, or many with one view that is in doubt itself: 55, and 6 with the others.
LEAST_SEEN = 30
LEAST_FITTING = 0.5  # share of a view's verified matches with its part that must fit
LEAST_MATCHES = 20  # matches needed to judge that
JUMP, NEAR = 5.0, 5  # multiple of the median speed over so many frames to either side
REST = 0.4  # of the speed that a quarter of the frames exceed: lower bound on speeds
SIDESTEP, UNUSUAL = 0.5, 3.0  # offset from the line between neighbours over its length, and over the usual offset
FEW_CONFIRM = "too few points confirm its pose"
BESIDE = "its position lies beside the path of the frames before and after it"
ONE_PLACE, USUAL = 0.02, 0.7  # of this quantile of the distances of cameras: nearer ones are at one place
SOME = 500  # cameras that tell the usual distance; all pairs of thousands take gigabytes
OUTSIDE = 10.0  # multiple of the median distance of the cameras from their centre, or of the points that they see


@dataclass(frozen=True)
class Verdict:
    """Verdict on S views: part [S], 0 for the trusted one, 1 and up for other firm groups, -1 for a view alone; and
    why a view is doubted (None: it is not)."""

    part: tuple[int, ...]
    doubt: tuple[str | None, ...]

    @property
    def trusted(self) -> np.ndarray:
        """Whether the model's pose of each view [S] is trusted."""
        return np.array([reason is None for reason in self.doubt], bool)


def judge(
    cam_from_world: np.ndarray,
    has: np.ndarray,
    seen: np.ndarray,
    fitting: np.ndarray,
    sequences: Sequence[tuple[Sequence[int], np.ndarray]] = (),
    held: np.ndarray | None = None,
) -> Verdict:
    """Judge poses cam_from_world [S, 4, 4] of the views that a model `has` [S].

    seen [P, S] bool: which views observe each point; fitting [S, S] is the share of the verified matches of a
    pair that the poses fit, NaN where there are too few; `sequences` are runs of consecutive views of a video, with
    their times. Views whose poses are known and `held` [S] are not doubted.
    """
    views = len(has)
    part, doubt = np.full(views, -1), np.full(views, None, object)
    for number, members in enumerate(firm_parts(seen, np.flatnonzero(has))):
        part[members] = number
    doubt[(part != 0) & has] = "too few points connect it to the other views"
    doubt[~has] = "it has too few matches with other views"
    main = part == 0
    for view in np.flatnonzero(main):
        shares = fitting[view, main & np.isfinite(fitting[view])]
        if len(shares) and np.median(shares) < LEAST_FITTING:
            doubt[view] = "most of its matches contradict its pose"
    never = np.isin(np.arange(views), [view for run, _ in sequences for view in run])
    if held is not None:
        doubt[held], never = None, never | held
    sure = np.array([reason is None for reason in doubt], bool)
    doubt[sure & ~confirmed(seen, sure, never)] = FEW_CONFIRM
    centres = centres_of(cam_from_world)
    for run, times in sequences:
        sure = np.array([view for view in run if doubt[view] is None], int)
        doubt[sure[~unbroken(centres[sure], times[np.isin(run, sure)])]] = (
            "its position jumps away from those of the frames before and after it"
        )
        sure = np.array([view for view in run if doubt[view] is None], int)
        off = sidesteps(centres[sure], times[np.isin(run, sure)])
        doubt[sure[off]] = BESIDE
    sure = np.array([reason is None for reason in doubt], bool)
    doubt[sure & far_outside(centres, sure)] = "its position is far from all others"
    part[(part == 0) & np.array([reason is not None for reason in doubt], bool)] = -1
    if held is not None:
        doubt[held], part[held] = None, 0
    return Verdict(tuple(part.tolist()), tuple(doubt.tolist()))


def centres_of(cam_from_world: np.ndarray) -> np.ndarray:
    """Camera centres [S, 3] of poses [S, 4, 4]; the refining process has no torch, which geometry/pose.py needs."""
    return -np.einsum("sij,si->sj", cam_from_world[:, :3, :3], cam_from_world[:, :3, 3])


def places(centres: np.ndarray) -> int:
    """How many places the centres [N, 3] lie at: copies of a photo, and a burst, are from one, and confirm nothing. A
    place is what is near its first view, not what small steps lead to."""
    if len(centres) < 2:
        return len(centres)
    some = centres[:: 1 + len(centres) // SOME]
    away = np.linalg.norm(some[:, None] - some, axis=2)[np.triu_indices(len(some), 1)]
    near, count = ONE_PLACE * np.quantile(away, USUAL), 0
    while len(centres):
        centres, count = centres[np.linalg.norm(centres - centres[0], axis=1) > near], count + 1
    return count


def firm_parts(seen: np.ndarray, registered: np.ndarray) -> list[list[int]]:
    """The registered views in parts, the largest first. Each part grows from the pair with the most common points, by
    views that share LEAST_TIES points with two of its views. Parts that fix each other's scale are merged. Single views
    are left out."""
    left, parts = [int(view) for view in registered], []
    while len(left) > 1:
        grown = firm_part(seen[:, left])
        if len(grown) < 2:
            break
        parts.append([left[i] for i in grown])
        left = [view for view in left if view not in parts[-1]]
    while True:
        counts = [seen[:, part].sum(axis=1) for part in parts]
        pairs = [(links(counts[i], counts[j]), i, j) for i, j in combinations(range(len(parts)), 2)]
        most, first, second = max(pairs, default=(0, 0, 0))
        if 2 * most < LEAST_TIES:
            return sorted(parts, key=len, reverse=True)
        parts[first] = sorted(parts[first] + parts.pop(second))


def confirmed(seen: np.ndarray, sure: np.ndarray, never: np.ndarray) -> np.ndarray:
    """Which of the `sure` views [S] are left without those that share too few points with the others of them, alone or
    as a group; those that are `never` [S] doubted for that, such as frames of a video, stay."""
    while (sure & ~never).any():
        views = np.flatnonzero(sure)
        weak = views[hanging(seen[:, views], ~never[views])]
        if not len(weak):
            break
        sure = sure & ~np.isin(np.arange(len(sure)), weak)
    return sure


def hanging(seen: np.ndarray, may: np.ndarray) -> np.ndarray:
    """Of views [S] of points `seen` [P, S] bool the smaller side, [S] bool, of the cut that the fewest points cross, if
    these are fewer than LEAST_SEEN: groups that hold well together may hang on each other by a few wrong matches. Cuts
    whose smaller side has no view that `may` [S] hang do not count, and only such views are told.

    The cuts that are tried are around each view, and those of the tree along which each joins by the most points."""
    views, total = seen.shape[1], seen.sum(axis=1)
    whole = seen.astype(np.float32)
    common = whole.T @ whole
    np.fill_diagonal(common, 0)
    root = int(whole.sum(axis=0).argmax())
    order, parent, ties = [root], np.full(views, root), common[root]
    while len(order) < views:
        outside = ~np.isin(np.arange(views), order)
        order.append(view := int(np.where(outside, ties, -1).argmax()))
        parent[outside & (common[view] > ties)] = view
        ties = np.maximum(ties, common[view])
    sides, counts = np.eye(views, dtype=bool), whole.T.astype(np.int16)
    cuts = list(zip(sides.copy(), counts.copy(), strict=True))
    for view in order[:0:-1]:
        cuts.append((sides[view], counts[view]))
        sides[parent[view]] |= sides[view]
        counts[parent[view]] += counts[view]
    least, weak = LEAST_SEEN, np.zeros(views, bool)
    for side, count in cuts:
        here, there = count > 0, count < total
        if (crossing := np.count_nonzero(here & there)) >= least:
            continue
        is_smaller = (side.sum(), here.sum()) < ((~side).sum(), there.sum()) or side.all()
        smaller = may & (side if is_smaller else ~side)
        if smaller.any():
            least, weak = crossing, smaller
    return weak


def links(first: np.ndarray, second: np.ndarray) -> int:
    """Number of points that fix the scale of two parts relative to each other; the arguments [P] are the number of
    views of each part that see a point. Such a point is seen by two views of one part and by one of the other. The
    weaker direction counts: points of one part in a single view of the other locate that view, but leave the scale of
    its part ambiguous."""
    return min(int(((first > 1) & (second > 0)).sum()), int(((first > 0) & (second > 1)).sum()))


def firm_part(seen: np.ndarray, least_ties: int = LEAST_TIES) -> list[int]:
    """Views of points `seen` [P, S] bool that constrain each other's position; none if no pair shares enough points."""
    whole = seen.astype(np.float32)
    common = whole.T @ whole
    np.fill_diagonal(common, 0)
    if common.max(initial=0) < least_ties:
        return []
    first, second = (int(v) for v in np.unravel_index(common.argmax(), common.shape))
    count, ties = np.zeros(len(seen), np.int64), np.zeros(seen.shape[1], np.int64)
    part: list[int] = []
    view = first
    while True:
        part.append(view)
        count += seen[:, view]
        ties += seen[seen[:, view] & (count == 2)].sum(axis=0)
        if len(part) == 1:
            view = second
            continue
        waiting = np.where(np.isin(np.arange(len(ties)), part), 0, ties)
        if waiting.max(initial=0) < least_ties:
            return sorted(part)
        view = int(waiting.argmax())


def unbroken(centres: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Which of the centres [N, 3] of a video's frames, at `times` [N], lie on the longest path without a jump.

    A step jumps if it is more than JUMP times as fast as the median of its neighbours. The path may skip frames
    that jump away and back.
    """
    count = len(centres)
    if count < 4:
        return np.ones(count, bool)
    speed = np.linalg.norm(np.diff(centres, axis=0), axis=1) / np.diff(times)
    usual = np.array([np.median(speed[max(0, i - NEAR) : i + NEAR + 1]) for i in range(len(speed))])
    usual = np.maximum(usual, REST * np.quantile(speed, 0.75))  # after a rest, any step is many times the previous ones
    cuts = np.flatnonzero(speed > JUMP * np.maximum(usual, 1e-12)) + 1
    runs = np.split(np.arange(count), cuts)
    longest = max(range(len(runs)), key=lambda i: len(runs[i]))
    kept = np.zeros(count, bool)
    kept[runs[longest]] = True
    for direction in (-1, 1):
        end = runs[longest][0 if direction < 0 else -1]
        at = longest + direction
        while 0 <= at < len(runs):
            near = runs[at][-1 if direction < 0 else 0]
            gap = abs(times[near] - times[end])
            if (
                abs(near - end) > 1
                and np.linalg.norm(centres[near] - centres[end]) <= JUMP * gap * usual[min(end, count - 2)]
            ):
                kept[runs[at]] = True
                end = runs[at][0 if direction < 0 else -1]
            at += direction
    return kept


def sidesteps(centres: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Which of the centres [N, 3] of a video's frames, at `times` [N], lie beside the path: off the
    straight line between the frames before and after by SIDESTEP times the usual motion in that time, and by UNUSUAL
    times the offset of the frames around. Cameras take more than one frame to turn a corner."""
    sidesteps = np.zeros(len(centres), bool)
    if len(centres) < 2 * NEAR:
        return sidesteps
    span = np.diff(times)
    share = (span[:-1] / (span[:-1] + span[1:]))[:, None]
    off = np.linalg.norm(centres[1:-1] - (1 - share) * centres[:-2] - share * centres[2:], axis=1)
    step = np.linalg.norm(np.diff(centres, axis=0), axis=1) / span
    for i in range(len(off)):
        near = slice(max(0, i - NEAR), i + NEAR + 1)
        others = np.delete(off[near], i - near.start)
        usual = max(float(np.median(step[near.start : near.stop + 1])), 0.1 * float(np.median(step)))
        sidesteps[i + 1] = off[i] > SIDESTEP * usual * (span[i] + span[i + 1]) and off[i] > UNUSUAL * np.median(others)
    return sidesteps


def far_outside(centres: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Which of the centres [S, 3] lie far outside those of the `sure` [S] views."""
    if sure.sum() < 4:
        return np.zeros(len(sure), bool)
    away = np.linalg.norm(centres - np.median(centres[sure], axis=0), axis=1)
    return away > OUTSIDE * max(float(np.median(away[sure])), 1e-12)
