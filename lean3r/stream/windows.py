"""The engine for every backbone: overlapping windows of keyframes, each reconstructed as pictures are, then joined.

A window is one `reconstruct` call, with refinement where that applies. It starts with the last keyframes of the window
before, which join both (join.py). The last frames of a window, which fewest others see, get their estimates from the
next one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lean3r.errors import UsageError
from lean3r.inputs.past import Past
from lean3r.models.base import Backbone
from lean3r.stream import sim3
from lean3r.stream.bend import Bend
from lean3r.stream.between import beside, beyond, bridge, camera_at, camera_between, jumps, skips
from lean3r.stream.budget import fit_stream
from lean3r.stream.engine import Estimate, Frame, Settings, place
from lean3r.stream.film import MOST_AT_END, Film
from lean3r.stream.join import Join
from lean3r.stream.looks import Look, Looks, Seen
from lean3r.stream.loops import PREDICTED, Loops
from lean3r.stream.pictures import Keyframe, has_content
from lean3r.stream.result import Result, join_results
from lean3r.stream.solver import SOUND, Solver
from lean3r.stream.turns import Turns
from lean3r.types import Lens

logger = logging.getLogger("lean3r")

MOST_PENDING = 512  # frames without an estimate: then a window is reconstructed though it is not full
MOST_RESTING = 8  # times as many while it has too few keyframes to be sound, as in a film that rests; not of cameras
STILL = 0.05  # of the step between keyframes: a picture that has moved by less shows a camera at rest
MOST_SHARED = 3 / 4  # of a window, with the one before, where half of it holds too few certain cameras
LAST = 3 / 4  # of a window: least size of the last one, if there are as many keyframes


class WindowEngine:
    """See the module and Engine."""

    def __init__(self, model: Backbone, settings: Settings) -> None:
        if settings.window < 2 or not 1 <= settings.overlap < settings.window:
            raise UsageError(
                f"a window of {settings.window} keyframes that shares {settings.overlap} with the one before; expected "
                "at least 2, and an overlap of 1 or more, but smaller."
            )
        self.model, self.settings = model, settings
        self._looks = Looks(settings.step)
        self._ahead: deque[Look] = deque()  # at frames whose turn has not come
        self._unused: deque[Keyframe] = deque()  # of the look whose turn it is
        self._pending: deque[Seen] = deque()  # frames without an estimate
        self._last_known: list[Seen] = []  # the last frame with one
        self._carried: list[Result] = []  # shared with the next window
        self._spare: list[Result] = []  # before these, for the last window
        self._waiting: list[Keyframe] = []
        self._placements: list[np.ndarray] = []
        self._solver = Solver(model, settings)
        self._reports: list[dict[str, Any]] = []
        self._standing: frozenset[str] = frozenset()  # flags of the last window's frames
        self._how: frozenset[str] = frozenset()  # of the window that is being made
        self._way: dict[int, tuple[float, float]] = {}  # way and moving time of the frames that are carried
        self._has_anchor = False
        self._goes_back = False  # whether most keyframes of the next window are shared with the last one
        self._loops = Loops(model, settings.landmarks)
        self.bends: dict[int, Bend] = {}
        self._film = Film(settings.refine.side, MOST_AT_END if self._solver.refines else 0)
        self.version = 0
        self.rejoined: list[list[int]] = []
        self._first: int | None = None  # the first window with a certain camera
        self._apart: set[int] = set()  # windows that nothing joins to the first one

    fit = staticmethod(fit_stream)

    def push(self, frame: Frame) -> list[Estimate]:
        """See Engine."""
        self.look(frame)
        return self.go_on()

    def go_on(self) -> list[Estimate]:
        """See LooksAhead."""
        known = []
        while self._ahead and not known:  # what is known goes out at once
            known = self._take(self._ahead.popleft())
        return known

    @property
    def has_room(self) -> bool:
        """See LooksAhead: for a window of keyframes, or as many frames as may be pending."""
        keyframes = sum(len(look.chosen) for look in self._ahead)
        return keyframes < self.settings.window - self.settings.overlap and len(self._ahead) < MOST_PENDING

    def look(self, frame: Frame) -> None:
        """See LooksAhead."""
        self._ahead.append(self._looks.at(frame))

    def prepare(self) -> None:
        """See LooksAhead."""
        self._solver.prepare([keyframe for look in self._ahead for keyframe in look.chosen])

    def _take(self, look: Look) -> list[Estimate]:
        known = [] if look.ended is None else self._begin_apart(look.ended)
        self._pending.append(look.seen)
        self._unused.extend(look.chosen)
        while self._unused:
            self._waiting.append(self._unused.popleft())
            if len(self._carried) + len(self._waiting) >= self.settings.window:
                known += self._solve()
        if len(self._pending) > self._most_pending:
            known += self._solve() if self._waiting else self._rest(self._settled)
        return known

    @property
    def _most_pending(self) -> int:
        """How many frames may wait for their estimates."""
        keyframes = len(self._carried) + len(self._waiting)
        is_poor = self.settings.waits and self._waiting and keyframes < SOUND * self.settings.window
        return MOST_PENDING * (MOST_RESTING if is_poor else 1)

    @property
    def _settled(self) -> float:
        """The number of the last frame of which it is known whether it is a keyframe."""
        chosen = [*self._unused, *(keyframe for look in self._ahead for keyframe in look.chosen)]
        return min([self._looks.earliest, *(keyframe.index for keyframe in chosen)]) - 1

    def _begin_apart(self, ended: Sequence[Keyframe]) -> list[Estimate]:
        """Nothing connects the next frame with those before, the last keyframes of which have `ended`; only a loop
        can."""
        known = self._end(ended)
        self._carried, self._spare, self._way = [], [], {}
        self._film.begin()
        return known

    def finish(self) -> list[Estimate]:
        """See Engine."""
        known = []
        while self._ahead:
            known += self.go_on()
        return known + self._end(self._looks.end())

    def _end(self, ended: Sequence[Keyframe]) -> list[Estimate]:
        """No frame follows in this film, whose last keyframes these are."""
        self._waiting += ended
        if self._waiting:  # the last window has few frames of its own: more of the earlier ones make it sound
            room = round(LAST * self.settings.window) - len(self._carried) - len(self._waiting)
            self._carried = self._spare[len(self._spare) - max(0, min(room, len(self._spare))) :] + self._carried
        known = self._solve(is_last=True) if self._waiting else []
        return known + self._rest()

    def _solve(self, is_last: bool = False) -> list[Estimate]:
        """Reconstruct the keyframes that wait, join them to the windows before, and give the frames up to the part that
        the next window will know better."""
        keyframes = [result.keyframe for result in self._carried] + self._waiting
        goes_on = self._solver.knows_intrinsics(keyframes)
        past = self._film.past(self._carried, self._placements, keyframes, is_last) if goes_on else None
        results = self._reconstruct(keyframes, past, is_last)
        went_on = results is not None and "past" in self._reports[-1]
        if results is not None and went_on and not join_results(self._pairs(results)).is_good:
            self._reports.pop()
            results = self._reconstruct(keyframes)
        self._waiting = []
        if results is None:
            self._film.begin()
            return self._rest(np.inf if is_last else self._settled)
        self._loops.spread = 1.0 if self._how else PREDICTED
        found = join_results(self._pairs(results)) if self._carried else None
        known = [] if found is None or found.is_good else self._left_behind()
        if found is not None and not found.is_good:
            self._film.begin()
        if self._reports[-1].get("zooms"):
            self._film.end()  # with the last window its keyframes would share one focal length
        shared = [(old, new) for old, new in self._pairs(results) if old.is_certain and new.is_certain]
        standing = self._place(results, found)
        start = keyframes[0].index  # what was before it can be a loop
        poses = self._reports[-1].pop("past", [])
        if is_last and any(pose is not None for pose in poses):
            self._settle(shared, poses)
            start = self._film.first
        if self._first is None and any(result.is_certain for result in results):
            self._first = len(self._placements) - 1
        self._standing = self._close(results, standing, start) | self._how
        for each in self._pending:
            self._way[each.index] = each.travelled, each.moving_s
        for result in results:
            result.travelled, result.moving_s = self._way[result.keyframe.index]
        start = self._start(results)
        last = np.inf if is_last else results[self._cut(results, start)].keyframe.index
        known += self._estimates(results, last)
        self._spare = results[max(0, len(results) - round(LAST * self.settings.window)) : start]
        self._carried = results[start:]
        self._note_ways()
        return known

    def _note_ways(self) -> None:
        kept = [*self._spare, *self._carried]
        self._way = {result.keyframe.index: (result.travelled, result.moving_s) for result in kept}

    def _rest(self, last: float = np.inf) -> list[Estimate]:
        """The estimates of the pending frames up to number `last`, by the windows that there are."""
        if self._carried:
            return self._estimates(self._carried, last)
        if not self._placements:
            self._placements.append(np.eye(4))
        known = []
        while self._pending and self._pending[0].index <= last:
            frame = self._pending.popleft()
            flags = {"lost", "uncertain"} | (set() if frame.has_content else {"no-content"})
            known.append(self._estimate(frame, np.eye(4), (np.full((3, 3), np.nan), None), frozenset(flags)))
        return known

    def _reconstruct(
        self, keyframes: Sequence[Keyframe], past: Past | None = None, is_last: bool = False
    ) -> list[Result] | None:
        """The window's results, in its own world; None if it cannot be reconstructed. See Solver.window."""
        joined = [i for i, result in enumerate(self._carried) if result.is_certain]
        found = self._solver.window(keyframes, joined, past, is_last)
        if found is None:
            return None
        results, report = found
        self._how = frozenset() if report["refinement"] == "kept" else frozenset({"refined"})
        self._reports.append({"window": len(self._placements), **report})
        return results

    def _settle(self, shared: Sequence[tuple[Result, Result]], past: Sequence[np.ndarray | None]) -> None:
        """Put the windows of a film as the last one, which went on from them all, has their keyframes."""
        self._placements, bends = self._film.settled(self._placements, past, shared)
        self.bends |= bends
        self._loops.settle(self._placements, self._film.window, bends)
        self.version += 1

    def _close(self, results: Sequence[Result], standing: frozenset[str], start: int) -> frozenset[str]:
        """Close a loop, if the window shows a place of before keyframe number `start`; the flags of its frames, which
        were `standing`."""
        before = self._placements
        loop = self._loops.search(results, before, self._solver, start)
        placements = None if loop is None else self._loops.solve(before)
        if loop is None or placements is None:
            return standing
        self._placements = placements
        self.version += 1
        met = self._apart & self._loops.joined(len(before), self._first or 0)
        self._apart -= met
        self.rejoined += [[window, window + 1] for window in sorted(met) if window < len(before) - 1]
        self._reports[-1]["loop"] = loop.as_dict(np.linalg.inv(before[-1]) @ self._placements[-1])
        doubts = {"lost"} if len(before) - 1 in self._apart else {"apart", "lost"}
        return standing - doubts | {"joined", "loop"}

    def _pairs(self, results: Sequence[Result]) -> list[tuple[Result, Result]]:
        """What the window before and this one say of the frames that they share."""
        new = {result.keyframe.index: result for result in results}
        return [(old, new[old.keyframe.index]) for old in self._carried]

    def _left_behind(self) -> list[Estimate]:
        """Of the pending frames of a window that the next one contradicts: it knows them as at the end of a film."""
        certain = [result.keyframe.index for result in self._carried if result.is_certain]
        return self._estimates([*self._spare[-1:], *self._carried], max(certain, default=-1))

    def _place(self, results: Sequence[Result], found: Join | None) -> frozenset[str]:
        """Put a window into the world, beside the one before if these are joined; flags of its frames."""
        if found is None:
            # The first keyframe is the world's origin, and what is up there is up here (see pipeline.reconstruct).
            origin = np.eye(4)
            origin[:3, 3] = results[0].pose[:3, :3].T @ results[0].pose[:3, 3]
            self._placements.append(origin)
            self._loops.start(self._placements, results)
            return self._alone()
        pairs = self._pairs(results)
        self._reports[-1]["join"] = found.as_dict()
        if not found.is_good:
            logger.warning("window %d is not joined well: %s", len(self._placements), found.why_bad)
        self._placements.append(self._placements[-1] @ found.matrix)
        way = sim3.centres(np.stack([result.pose for result in results]))
        self._loops.chain(len(self._placements) - 1, found, [new for _, new in pairs], way)
        if found.is_good:
            for old, fresh in pairs:
                if old.is_certain and not fresh.is_certain:
                    fresh.take(old, found.matrix)
        if not found.is_good:
            return self._alone()
        if len(self._placements) - 2 not in self._apart:
            return frozenset({"joined"})
        self._apart.add(len(self._placements) - 1)
        return frozenset({"joined", "apart"})

    def _alone(self) -> frozenset[str]:
        """The flags of a window that nothing joins to the first one, if there is one: apart, until a loop does."""
        if self._first is None:
            return frozenset()
        self._apart.add(len(self._placements) - 1)
        return frozenset({"apart", "lost"})

    def _start(self, results: Sequence[Result]) -> int:
        """The index of the first keyframe that the next window shares: the last certain ones, and those behind them. So
        many, that it gets but a few new ones, never twice in a row."""
        overlap, window = self.settings.overlap, self.settings.window
        certain = [i for i, result in enumerate(results) if result.is_certain]
        start = certain[-overlap] if len(certain) >= overlap else 0
        usual = len(results) - max(overlap, window // 2)
        start = max(start, usual if self._goes_back else len(results) - max(overlap, int(MOST_SHARED * window)))
        self._goes_back = start < usual
        return start

    def _cut(self, results: Sequence[Result], start: int) -> int:
        """The index of the last keyframe up to which frames get their estimates now."""
        certain = [i for i, result in enumerate(results) if result.is_certain]
        last = len(results) - 1
        return max(min(last - self.settings.overlap // 2, certain[-1] if certain else last), start - 1, 0)

    def _estimates(self, results: Sequence[Result], last: float) -> list[Estimate]:
        """Of the pending frames up to number `last`, by the keyframes of the last window."""
        of_frame = {result.keyframe.index: result for result in results}
        cuts = jumps([*self._pending], self.settings.step / 2)
        gaps = [frame.index for frame in self._pending if not frame.has_content] + cuts
        known, given = [], [of_frame[frame.index] for frame in self._pending if frame.index in of_frame]
        self._film.add([result for result in given if result.keyframe.index <= last], len(self._placements) - 1)
        turns = Turns([*self._last_known, *self._pending])
        while self._pending and self._pending[0].index <= last:
            frame = self._pending.popleft()
            self._last_known = [frame]
            result = of_frame.get(frame.index)
            near = beside(results, frame.index, cuts)
            known.append(
                self._of_keyframe(frame, result, results) if result else self._between(frame, near, gaps, turns)
            )
        return known

    def _of_keyframe(self, frame: Seen, result: Result, results: Sequence[Result]) -> Estimate:
        flags, pose = self._standing | {"keyframe"}, result.pose
        if not self._has_anchor:
            self._has_anchor, flags = True, flags | {"anchor"}
        if not result.is_certain:
            flags |= {"uncertain"}
            if not result.is_registered:
                flags, pose = flags | {"lost"}, bridge(result, results)
        scale = sim3.parts(self._placements[-1])[0]
        return replace(
            self._estimate(frame, pose, result.camera, flags),
            image=result.image,
            depth=result.depth * np.float32(scale),
            conf=result.conf,
            source=result.shown,
        )

    def _between(self, frame: Seen, results: Sequence[Result], gaps: Sequence[int], turns: Turns) -> Estimate:
        """The estimate of a frame that is no keyframe; at `gaps` frames show nothing, or the camera jumps."""
        flags = set(self._standing) | ({"between"} if frame.has_content else {"no-content", "lost"})
        registered = [r for r in results if r.is_registered] or list(results)
        for usable in ([r for r in results if r.is_certain] or registered, registered):
            after = next((i for i, r in enumerate(usable) if r.keyframe.index > frame.index), len(usable))
            if 0 < after < len(usable):
                break
            nearest = usable[0] if after == 0 else usable[-1]
            moved = abs(frame.travelled - nearest.travelled)
            is_still = moved < STILL * self.settings.step
            # Between a certain camera and a doubted one, and before the first of all, it is known at rest only; behind
            # the last one, not farther than a keyframe's distance, or it may be anywhere.
            if (nearest.is_certain and is_still) or usable is registered:
                flags |= {"still"} if is_still else set()
                is_near = moved <= (STILL if after == 0 else 1) * self.settings.step
                flags |= set() if is_near and nearest.is_certain else {"uncertain"}
                pose = nearest.pose if is_still or after == 0 else beyond(usable, moved)
                return self._estimate(frame, pose, camera_at(nearest, frame.size), frozenset(flags))
        first, second = usable[after - 1], usable[after]
        if abs(frame.travelled - first.travelled) < STILL * self.settings.step and frame.has_content:
            flags |= {"still"}
        is_firm = first.is_certain and second.is_certain and not skips(first, second, results, gaps)
        if not is_firm:
            flags |= {"uncertain"}
        pose = turns.pose(frame, first, second, usable)
        camera = camera_between(first, second, frame.index, frame.size)
        return self._estimate(frame, pose, camera, frozenset(flags))

    def _estimate(
        self, frame: Seen, pose: np.ndarray, camera: tuple[np.ndarray, Lens | None], flags: frozenset[str]
    ) -> Estimate:
        if "apart" in flags:
            is_doubted = flags & {"uncertain", "no-content"}  # for a reason of its own, which stays
            flags = (flags - {"apart"} if is_doubted else flags) | {"uncertain"}
        (matrix, lens), at = camera, (frame.index, frame.timestamp_s, frame.size, pose)
        placed = place(*at, matrix, flags, self._placements, lens)
        return replace(placed, version=self.version)

    def locate(self, frame: Frame) -> Estimate | None:
        """See Engine."""
        keyframe = Keyframe.of(frame)
        found = self._loops.locate(keyframe, self._solver) if has_content(keyframe) else None
        if found is None:
            return None
        window, pose, (intrinsics, lens) = found
        at = frame.index, frame.timestamp_s, keyframe.size, pose, intrinsics
        flags = frozenset({"apart", "lost", "uncertain"} if window in self._apart else ())
        placed = place(*at, flags, self._placements[: window + 1], lens)
        bend = self.bends.get(window)  # what is remembered has followed it; `revised` would bend the camera once more
        return replace(placed, version=self.version, in_window=pose if bend is None else bend.back(frame.index, pose))

    @property
    def placements(self) -> np.ndarray:
        """See Engine."""
        return np.stack(self._placements) if self._placements else np.zeros((0, 4, 4))

    def take_reports(self) -> list[dict[str, Any]]:
        """See Engine."""
        reports, self._reports = self._reports, []
        return reports

    @property
    def bytes(self) -> int:
        """See Engine."""
        kept = sum(result.bytes for result in [*self._spare, *self._carried]) + sum(
            each.pixels.nbytes for each in [*self._waiting, *(each for look in self._ahead for each in look.chosen)]
        )
        return kept + self._looks.bytes + self._loops.bytes + self._film.bytes

    def state(self) -> dict[str, Any]:
        """See Engine."""
        return {
            "looks": self._looks.state(),
            "ahead": [look.state() for look in self._ahead],
            "pending": [list(each) for each in self._pending],
            "last_known": [list(each) for each in self._last_known],
            "carried": [result.state() for result in self._carried],
            "spare": [result.state() for result in self._spare],
            "waiting": [each.state() for each in self._waiting],
            "placements": self.placements,
            "cameras": [
                [list(size), list(numbers), None if lens is None else [lens.model, list(lens.params)]]
                for size, (numbers, lens) in self._solver.cameras.items()
            ],
            "standing": sorted(self._standing),
            "has_anchor": self._has_anchor,
            "goes_back": self._goes_back,
            "loops": self._loops.state(),
            "film": self._film.state(),
            "bends": [[window, bend.state()] for window, bend in self.bends.items()],
            "version": self.version,
            "first": self._first,
            "apart": sorted(self._apart),
            "rejoined": self.rejoined,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Engine."""
        self._looks.restore(state["looks"])
        self._ahead = deque(Look.restored(each) for each in state["ahead"])
        self._pending = deque(Seen.restored(each) for each in state["pending"])
        self._last_known = [Seen.restored(each) for each in state["last_known"]]
        self._carried = [Result.restored(each) for each in state["carried"]]
        self._spare = [Result.restored(each) for each in state["spare"]]
        self._waiting = [Keyframe.restored(each) for each in state["waiting"]]
        self._placements = list(state["placements"])
        self._solver.cameras = {
            (w, h): (tuple(numbers), lens and Lens(lens[0], tuple(lens[1])))
            for (w, h), numbers, lens in state["cameras"]
        }
        self._standing, self._has_anchor = frozenset(state["standing"]), state["has_anchor"]
        self._goes_back = state["goes_back"]
        self._loops.restore(state["loops"])
        self._film.restore(state["film"])
        self.bends = {window: Bend.restored(each) for window, each in state["bends"]}
        self.version, self._first, self._apart = state["version"], state["first"], set(state["apart"])
        self.rejoined = [list(each) for each in state["rejoined"]]
        self._note_ways()
