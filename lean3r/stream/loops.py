"""Places that a stream has seen before: keyframes that are remembered, and whether one of them comes back.

Candidates are found by the appearance of single pictures (the backbone's own tokens before it compares views), and
confirmed by geometry: old and new keyframes are reconstructed together, and must agree with both windows.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from lean3r.inputs.views import Picture, assemble
from lean3r.models.base import Backbone
from lean3r.stream import sim3
from lean3r.stream.bend import Bend, bent
from lean3r.stream.graph import Edge, off, solve
from lean3r.stream.join import Join, Shared, join
from lean3r.stream.pictures import Keyframe, picture_of
from lean3r.stream.result import Result, camera_state, optics_of, restored_camera
from lean3r.stream.solver import Solver
from lean3r.types import Lens, Source

GROUP = 4  # consecutive keyframes that are kept or forgotten together
LONGEST = 800  # pixels of the longer side of a remembered picture
QUALITY = 90  # of the JPEG file in which it is remembered
PIXEL_BYTES = 0.75  # at most, of a remembered picture
APART = 2  # windows between two that share no frame
LIKE = 0.2  # likeness from which a place may be the same: neighbouring keyframes have some 0.6, others -0.2
TRIES = 2  # places that are checked for a window
AROUND = 2  # keyframes on both sides of a candidate that are reconstructed with it
MEETING, NEAR, STEP = 0.25, 0.1, 4  # share of points that both show, within a share of depth; every so many pixels
LEAST = 2  # keyframes of both sides that must be certain then
LEAST_TIES = 30  # points that hold both sides: 55 to 1,100 in loops of a walk right to 1 cm, 9 in one 40 cm off
ANGLE_RAD, LOG_SCALE, SHARE = np.deg2rad(0.5), 0.01, 0.02  # standard deviations of an edge; lengths as share of depth
ALONG = 0.01  # of the way of a window: how far it bends
PREDICTED, UNSURE = 4.0, 100.0  # times as large, where cameras are not refined, and where a join failed
AGREES = 0.5  # standard deviations below which a loop would change nothing: then it is none
CONTRADICTED = 15.0  # standard deviations by which a loop contradicts the solved graph
DRIFT = 6.0  # standard deviations of the chain of joins that a loop may correct


@dataclass(frozen=True, eq=False)
class Landmark:
    """A keyframe that is remembered: its number among all, its window and pose [4, 4] in it; depth and confidence
    [H / 2, W / 2] float16, and its source, intrinsics [3, 3] and lens (see Result); a picture as JPEG, and its
    appearance [D] float32."""

    number: int
    window: int
    keyframe: Keyframe  # without pixels
    jpeg: np.ndarray
    pose: np.ndarray
    source: Source
    intrinsics: np.ndarray
    lens: Lens | None
    depth: np.ndarray
    conf: np.ndarray
    appearance: np.ndarray

    @classmethod
    def of(cls, number: int, window: int, result: Result, appearance: np.ndarray) -> Landmark:
        """A result of a window, to be remembered."""
        whole = result.keyframe
        factor = max(1, -(-max(whole.pixels.shape) // LONGEST))
        file = io.BytesIO()
        Image.fromarray(whole.pixels).reduce(factor).save(file, "JPEG", quality=QUALITY, subsampling=0)
        keyframe = replace(whole, pixels=np.zeros((0, 0, 3), np.uint8), factor=whole.factor * factor)
        depth, conf = (values[::2, ::2].astype(np.float16) for values in (result.depth, result.conf))
        jpeg = np.frombuffer(file.getvalue(), np.uint8)
        camera = result.source, result.intrinsics.copy(), result.lens
        return cls(number, window, keyframe, jpeg, result.pose, *camera, depth, conf, appearance)

    def picture(self) -> Keyframe:
        """The keyframe with its pixels."""
        with Image.open(io.BytesIO(self.jpeg.tobytes())) as file:
            pixels = np.asarray(file.convert("RGB"))
        return replace(self.keyframe, pixels=pixels)

    @property
    def bytes(self) -> int:
        """Of its arrays."""
        return self.jpeg.nbytes + self.depth.nbytes + self.conf.nbytes + self.appearance.nbytes

    def state(self) -> dict[str, Any]:
        """As arrays and plain values."""
        return {**vars(self), "keyframe": self.keyframe.state(), **camera_state(self.source, self.lens)}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Landmark:
        """From `state`."""
        return cls(**{**state, "keyframe": Keyframe.restored(state["keyframe"]), **restored_camera(state)})


class Loop(NamedTuple):
    """A place that came back: the edge of the pose graph, and the keyframes' numbers in the stream."""

    edge: Edge
    old: int
    new: int

    def as_dict(self, moved: np.ndarray) -> dict[str, Any]:
        """For a report, if closing it moves the last window so [4, 4]."""
        scale, rotation, shift = sim3.parts(moved)
        return {
            "frame": self.new,
            "with": self.old,
            "window": self.edge.first,
            "moved": round(float(np.linalg.norm(shift)), 6),
            "angle_deg": round(float(np.rad2deg(sim3.angle_rad(rotation))), 4),
            "scale_ratio": round(scale, 6),
        }


class Loops:
    """The memory of a stream, of `most` keyframes (0: none), and the edges of its pose graph.

    When it is full, every second group of consecutive keyframes is forgotten.
    """

    def __init__(self, model: Backbone, most: int) -> None:
        self.model, self.most = model, most if model.SEES else 0
        self.spread = 1.0  # of the joins: larger where cameras are the network's own
        self.edges: list[Edge] = []
        self._landmarks: list[Landmark] = []
        self._number, self._level = 0, 0

    def start(self, placements: Sequence[np.ndarray], results: Sequence[Result]) -> None:
        """A window that nothing joins to the one before, if there is one."""
        if len(placements) > 1:
            guess = np.linalg.inv(placements[-2]) @ placements[-1]
            nothing = Join.without_evidence(guess, 0, "no shared frame")
            self.chain(len(placements) - 1, nothing, results[:1], np.zeros((1, 3)))

    def chain(self, window: int, found: Join, shared: Sequence[Result], way: np.ndarray) -> None:
        """The join of a new window to the one before by `shared` frames; `way` [N, 3] are its cameras' centres."""
        length = ALONG * float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum())
        self.edges.append(_edge(window - 1, window, found, shared, self.spread, length))

    def solve(self, placements: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """The placements with the last loop closed; None, and the loop is forgotten, if the others contradict it."""
        solved = solve(placements, self.edges)
        if float(np.linalg.norm(off(self.edges[-1], solved))) > CONTRADICTED:
            self.edges.pop()
            return None
        return solved

    def settle(self, placements: Sequence[np.ndarray], first: int, bends: Mapping[int, Bend]) -> None:
        """Joins and loops between windows from the `first` on say from now on what their placements do, and what is
        remembered of those that bend now lies where they have it."""
        for number, edge in enumerate(self.edges):
            if edge.first >= first:
                matrix = np.linalg.inv(placements[edge.first]) @ placements[edge.second]
                self.edges[number] = replace(edge, matrix=matrix, is_failed=False)
        self._landmarks = [
            replace(each, pose=bent(bends, each.window, each.keyframe.index, each.pose)) for each in self._landmarks
        ]

    def joined(self, count: int, first: int) -> set[int]:
        """Those of `count` windows that sound joins and loops lead to from window number `first`."""
        part = list(range(count))  # the least number of a window that each is joined to, as far as is known
        for _ in range(count):
            before = list(part)
            for edge in self.edges:
                if not edge.is_failed:
                    part[edge.first] = part[edge.second] = min(part[edge.first], part[edge.second])
            if part == before:
                break
        return {window for window in range(count) if part[window] == part[first]}

    def search(
        self, results: Sequence[Result], placements: Sequence[np.ndarray], solver: Solver, start: int
    ) -> Loop | None:
        """A place of before keyframe number `start` that the keyframes of the last window show again, if there is one;
        then remembers them."""
        if not self.most:
            return None
        window = len(placements) - 1
        sure = [result for result in results if _is_sure(result)]
        seen = self._appearance([Picture(result.source, result.image) for result in sure])
        loop = None
        for old, new in self._candidates(seen, window - APART, start):
            if (loop := self._check(old, sure, new, placements, solver)) is not None:
                break
        if loop is not None and float(np.linalg.norm(off(loop.edge, placements))) < AGREES:
            loop = None
        if loop is not None:
            self.edges.append(loop.edge)
        known = {landmark.keyframe.index for landmark in self._landmarks}
        for result, appearance in zip(sure, seen, strict=True):
            if result.keyframe.index not in known:
                self._remember(Landmark.of(self._number, window, result, appearance))
        return loop

    def _appearance(self, pictures: Sequence[Picture]) -> np.ndarray:
        if not pictures:
            return np.zeros((0, 0), np.float32)
        views = assemble(pictures, self.model.patch)
        parameter = next(self.model.parameters())
        views = views.to(parameter.device)
        with torch.inference_mode():
            return self.model.appearance(views).float().cpu().numpy()

    def _remember(self, landmark: Landmark) -> None:
        self._number += 1
        self._landmarks.append(landmark)
        while len(kept := [each for each in self._landmarks if self._is_kept(each)]) > self.most:
            self._level += 1
        self._landmarks = kept

    def _is_kept(self, landmark: Landmark) -> bool:
        return landmark.number // GROUP % (1 << self._level) == 0

    def _candidates(self, seen: np.ndarray, last: float, start: float) -> list[tuple[int, int]]:
        """Landmarks up to window number `last`, of frames before `start`, and new keyframes, by number, that look most
        alike; places apart from each other."""
        usable = [i for i, each in enumerate(self._landmarks) if each.window <= last and each.keyframe.index < start]
        if not usable or not len(seen):
            return []
        old = np.stack([self._landmarks[i].appearance for i in usable])
        both = np.concatenate([np.stack([each.appearance for each in self._landmarks]), seen])
        centre = both.mean(0)
        alike = _unit(seen - centre) @ _unit(old - centre).T
        found = []
        while len(found) < TRIES and alike.size and float(alike.max()) >= LIKE:
            new, place = np.unravel_index(int(alike.argmax()), alike.shape)
            found.append((usable[place], int(new)))
            alike[:, max(0, place - GROUP) : place + GROUP + 1] = -1
        return found

    def _check(
        self,
        place: int,
        results: Sequence[Result],
        at: int,
        placements: Sequence[np.ndarray],
        solver: Solver,
    ) -> Loop | None:
        """The loop between a landmark and a keyframe, if both are one place."""
        first, window = self._landmarks[place], len(placements) - 1
        new = list(results[max(0, at - AROUND) : at + AROUND + 1])
        old = self._near(place, new[0].keyframe.index)
        both = solver.together([each.picture() for each in old], [each.keyframe for each in new])
        if both is None or both.ties < LEAST_TIES:
            return None
        found = both.results
        if meeting(found[old.index(first)], found[len(old) + new.index(results[at])]) < MEETING:
            return None
        joins, ends = [], []
        for known, fresh in ((old, found[: len(old)]), (new, found[len(old) :])):
            pairs = [(a, b) for a, b in zip(known, fresh, strict=True) if _is_sure(b)]
            joined = _join(pairs) if len(pairs) >= LEAST else None
            if joined is None or not joined.is_good:
                return None
            joins.append(joined)
            ends.append([b for _, b in pairs])
        # By way of the joint reconstruction's world, in which `found` lies.
        edge = _edge(first.window, window, joins[0], ends[1], self.spread)
        scale, centre = sim3.parts(joins[1].matrix)[0], sim3.move_points(joins[1].matrix, edge.centre)
        matrix = joins[0].matrix @ np.linalg.inv(joins[1].matrix)
        edge = replace(edge, matrix=matrix, centre=centre, length=scale * edge.length, is_loop=True)
        if not self._is_plausible(edge, placements):
            return None
        return Loop(edge, first.keyframe.index, results[at].keyframe.index)

    def _near(self, place: int, start: float) -> list[Landmark]:
        """A landmark and its neighbours in its window, of frames before `start`: where a window went back, a later one
        may share frames with it."""
        near = self._landmarks[max(0, place - AROUND) : place + AROUND + 1]
        window = self._landmarks[place].window
        return [each for each in near if each.window == window and each.keyframe.index < start]

    def locate(
        self, keyframe: Keyframe, solver: Solver
    ) -> tuple[int, np.ndarray, tuple[np.ndarray, Lens | None]] | None:
        """A window, a camera's pose [4, 4] in it, and its intrinsics [3, 3] and lens, by a picture of a place that is
        remembered; None if it is not."""
        picture = picture_of(keyframe, solver.settings.resolution or self.model.resolution, self.model.patch)
        for place, _ in self._candidates(self._appearance([picture]), float("inf"), float("inf")):
            first, old = self._landmarks[place], self._near(place, float("inf"))
            both = solver.together([each.picture() for each in old], [keyframe])
            if both is None or not _is_sure(both.results[-1]):
                continue
            found = both.results
            pairs = [(a, b) for a, b in zip(old, found[:-1], strict=True) if _is_sure(b)]
            joined = _join(pairs) if len(pairs) >= min(LEAST, len(old)) else None
            if joined is not None and joined.is_good and meeting(found[old.index(first)], found[-1]) >= MEETING:
                return first.window, sim3.move_poses(joined.matrix, found[-1].pose), found[-1].camera
        return None

    def _is_plausible(self, edge: Edge, placements: Sequence[np.ndarray]) -> bool:
        """Whether the chain of joins can have drifted so far; after a join that failed, anything can be."""
        chain = [e for e in self.edges if not e.is_loop and edge.first < e.second <= edge.second]
        if any(each.is_failed for each in chain):
            return True
        error = np.linalg.inv(placements[edge.first] @ edge.matrix) @ placements[edge.second]
        scale, turn, _ = sim3.parts(error)
        most = DRIFT * np.sqrt(len(chain)) * self.spread
        unit = [sim3.parts(np.linalg.inv(placements[edge.second]) @ placements[e.second])[0] for e in chain]
        bends = float(np.sqrt(sum((a * e.length) ** 2 for a, e in zip(unit, chain, strict=True))))
        origins = sim3.move_points(np.linalg.inv(placements[edge.second]), np.stack([p[:3, 3] for p in placements]))
        reach = float(np.linalg.norm(origins[edge.first : edge.second + 1] - edge.centre, axis=1).max())
        shift = float(np.linalg.norm(sim3.move_points(error, edge.centre) - edge.centre))
        return (
            float(sim3.angle_rad(turn)) < most * ANGLE_RAD
            and abs(np.log(scale)) < most * LOG_SCALE
            and shift < DRIFT * bends + most * ANGLE_RAD * reach
        )

    @property
    def bytes(self) -> int:
        """Of what is remembered."""
        return sum(landmark.bytes for landmark in self._landmarks)

    def state(self) -> dict[str, Any]:
        """See Engine.state."""
        return {
            "edges": [edge.state() for edge in self.edges],
            "landmarks": [landmark.state() for landmark in self._landmarks],
            "number": self._number,
            "level": self._level,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See Engine.restore."""
        self.edges = [Edge.restored(each) for each in state["edges"]]
        self._landmarks = [Landmark.restored(each) for each in state["landmarks"]]
        self._number, self._level = state["number"], state["level"]


def meeting(first: Result, second: Result) -> float:
    """The share of the second picture's points that the first one shows, at the depth that it has there."""
    rows, cols = np.nonzero(second.depth[::STEP, ::STEP])
    rows, cols = STEP * rows, STEP * cols
    if not len(rows):
        return 0.0
    depth = second.depth[rows, cols].astype(np.float64)[:, None]
    relative = first.pose @ np.linalg.inv(second.pose)
    points = np.concatenate([second.slopes[rows, cols] * depth, depth], 1) @ relative[:3, :3].T + relative[:3, 3]
    z = np.maximum(points[:, 2], 1e-9)
    pixels = first.optics.project(0, points)
    height, width = first.depth.shape
    x, y = (np.clip(np.nan_to_num(pixels[:, i]), -1, 1 << 20).astype(int) for i in (0, 1))
    inside = (points[:, 2] > 0) & (pixels[:, :2] >= 0).all(1) & (x < width) & (y < height)
    there = first.depth[y.clip(0, height - 1), x.clip(0, width - 1)]
    return float((inside & (np.abs(there - z) < NEAR * z)).mean())


def landmark_bytes(height: int, width: int, rows: int, cols: int) -> int:
    """At most, of a remembered keyframe of height x width whose network picture is rows x cols."""
    factor = max(1, -(-max(height, width) // LONGEST))
    return round(PIXEL_BYTES * height * width / factor**2) + rows * cols


def _edge(first: int, second: int, found: Join, shared: Sequence[Result], spread: float, length: float = 0.0) -> Edge:
    """The edge of a join by these frames, in the second world; `length` says how far its window bends."""
    centre = sim3.centres(np.stack([result.pose for result in shared])).mean(0)
    depth = float(np.median([np.median(r.depth[r.depth > 0]) for r in shared if (r.depth > 0).any()] or [1.0]))
    times = spread if found.is_good else UNSURE
    spreads = times * ANGLE_RAD, times * float(np.hypot(length, SHARE * depth)), times * LOG_SCALE
    return Edge(first, second, found.matrix, centre, *spreads, is_failed=not found.is_good)


def _is_sure(result: Result) -> bool:
    return result.is_certain and result.is_registered


def _thin(known: Landmark | Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slopes, depth and confidence of every other pixel, which are all that a landmark has."""
    step = 1 if isinstance(known, Landmark) else 2
    depth, conf = (values[::step, ::step].astype(np.float32) for values in (known.depth, known.conf))
    rows, cols = depth.shape
    slopes = optics_of(known.source, known.intrinsics, known.lens).slopes(0, 2 * rows, 2 * cols)
    return slopes[::2, ::2], depth, conf


def _join(pairs: Sequence[tuple[Landmark | Result, Result]]) -> Join | None:
    """The join of a window of before and a joint reconstruction; a stream that refines this one refined that one."""
    return join([_shared(a, b) for a, b in pairs], all(b.is_adjusted for _, b in pairs))


def _shared(known: Landmark | Result, fresh: Result) -> Shared:
    """A keyframe in a window of before and in the joint reconstruction."""
    slopes, depths, confs = zip(_thin(known), _thin(fresh), strict=True)
    return Shared((known.pose, fresh.pose), depths, confs, (slopes[0] + slopes[1]) / 2)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
