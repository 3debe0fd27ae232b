"""The similarity between two windows that share frames, from all points and all poses of these frames.

Both predict the same pixels, so points need no matching. A frame whose pose or depth contradicts the others is found by
voting, a pixel that does by robust weights. Straight from a network, points and poses are weighted by how well each
kind agrees. After bundle adjustment the way of the cameras says it alone, where both windows have the same: the scale
of a network's depth was up to 8 % off on a real walk, that of the ways 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lean3r.stream import sim3

PIXELS = 1500  # of a frame
INDEPENDENT = 12.0  # points of a frame that err independently: errors of neighbouring pixels are alike
ROUNDS = 12
CUT = 2.5  # robust standard deviations
FLOORS = 2e-3, 1e-3, np.deg2rad(0.05)  # least spread of points and centres (of the depth), and of rotations
NEAR = 3.0  # a frame this many times worse than the median frame is left out
WORST_FRAME = 0.25, np.deg2rad(20.0)  # distance of its points (of the depth) and angle of a frame that can be right
GOOD_RESIDUAL, GOOD_ANGLE = 0.15, np.deg2rad(4.0)  # above which a join is bad
SAME_WAY, LEAST_WAY = 0.1, 6  # at most such a share of the way of so many cameras apart: then depth does not matter
LEAST_ADJUSTED = 4  # cameras whose way gives the scale, if depth does not contradict it
LEAST_SHARE = 0.5  # of the shared frames that must agree


@dataclass(frozen=True, eq=False)
class Shared:
    """One frame in two windows: poses cam_from_world [4, 4], depth and confidence [H, W] of both, and the slopes
    [H, W, 2] (x / z, y / z) of the rays of these pixels that both use, NaN where there are none."""

    poses: tuple[np.ndarray, np.ndarray]
    depths: tuple[np.ndarray, np.ndarray]
    confs: tuple[np.ndarray, np.ndarray]
    slopes: np.ndarray


@dataclass(frozen=True, eq=False)
class Join:
    """The similarity [4, 4] from the second window's world to the first one's, and how well it fits.

    `residual`: median distance of the points, as a share of their depth; `angle_rad`: median angle between the poses;
    `spread`: disagreement of the frames on the scale (log); `way`: median distance of the camera centres, as a share of
    their distance from their middle (infinite for few cameras, which any similarity fits); `frames` of `shared` agree.
    `why_bad` is None for a sound join.
    """

    matrix: np.ndarray
    residual: float
    angle_rad: float
    spread: float
    way: float
    frames: int
    shared: int
    why_bad: str | None = None

    @classmethod
    def without_evidence(cls, matrix: np.ndarray, shared: int, why_bad: str) -> Join:
        """A guess."""
        return cls(matrix, 1.0, np.pi, 1.0, np.inf, 0, shared, why_bad)

    @property
    def is_good(self) -> bool:
        """Whether the windows may be joined so."""
        return self.why_bad is None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "scale_ratio": round(sim3.parts(self.matrix)[0], 6),
            "residual": round(self.residual, 5),
            "angle_deg": round(float(np.rad2deg(self.angle_rad)), 4),
            "scale_spread": round(self.spread, 5),
            "way": round(self.way, 5) if np.isfinite(self.way) else None,
            "frames": self.frames,
            "shared": self.shared,
            "bad": self.why_bad,
        }


@dataclass(frozen=True, eq=False)
class _Frame:
    """What one shared frame says: points [N, 3] of both windows and their weights [N] (of mean 1), depths [N] in the
    first, centres and the turn from the second world to the first, and the log scale."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    depth: np.ndarray
    centres: tuple[np.ndarray, np.ndarray]
    turn: np.ndarray
    log_scale: float

    def alone(self) -> np.ndarray:
        """The similarity by this frame alone."""
        scale = float(np.exp(self.log_scale))
        return sim3.make(scale, self.turn, self.centres[0] - scale * self.turn @ self.centres[1])

    def distances(self, matrix: np.ndarray) -> np.ndarray:
        """Of its points [N] after a similarity, as shares of their depth."""
        return np.linalg.norm(sim3.move_points(matrix, self.second) - self.first, axis=1) / self.depth


def join(shared: Sequence[Shared], are_adjusted: bool = False) -> Join | None:
    """The join of two windows by the frames that they share; None if these have no depth in common. In both their
    cameras may be adjusted to matches."""
    frames = [frame for each in shared if (frame := _frame(each)) is not None]
    if not frames:
        return None
    matrix, kept = _vote(frames)
    for _ in range(ROUNDS):
        matrix = _fit(kept, matrix)
    if are_adjusted and len(kept) >= LEAST_ADJUSTED:
        by_way = _fit_way(kept)
        matrix = by_way if _way_apart(kept, by_way, LEAST_ADJUSTED) < SAME_WAY else matrix
    distances = [float(np.median(frame.distances(matrix))) for frame in kept]
    _, rotation, _ = sim3.parts(matrix)
    angles = sim3.angle_rad(np.stack([frame.turn @ rotation.T for frame in kept]))
    scales = np.array([frame.log_scale for frame in kept]) - np.log(sim3.parts(matrix)[0])
    found = Join(
        matrix,
        float(np.median(distances)),
        float(np.median(angles)),
        float(np.median(np.abs(scales))),
        _way_apart(frames, matrix, LEAST_WAY),
        len(kept),
        len(shared),
    )
    return Join(**{**vars(found), "why_bad": _why_bad(found)})


def _way_apart(frames: Sequence[_Frame], matrix: np.ndarray, least: int) -> float:
    if len(frames) < least:
        return float("inf")
    first, second = (np.stack([frame.centres[side] for frame in frames]) for side in (0, 1))
    length = np.linalg.norm(first - first.mean(0), axis=1).mean()
    return float(np.median(np.linalg.norm(sim3.move_points(matrix, second) - first, axis=1)) / max(length, 1e-30))


def _why_bad(found: Join) -> str | None:
    if found.angle_rad > GOOD_ANGLE:
        return f"the poses differ by {np.rad2deg(found.angle_rad):.1f} degrees"
    if found.way < SAME_WAY:
        return None
    if found.residual > GOOD_RESIDUAL:
        return f"the points differ by {found.residual:.0%} of their depth"
    if found.frames < LEAST_SHARE * found.shared or found.frames < min(2, found.shared):
        return f"only {found.frames} of {found.shared} shared frames agree"
    return None


def _frame(shared: Shared) -> _Frame | None:
    (a, b), (conf_a, conf_b) = shared.depths, shared.confs
    usable = (a > 0) & (b > 0) & (conf_a > 0) & (conf_b > 0) & np.isfinite(a) & np.isfinite(b)
    usable &= np.isfinite(shared.slopes).all(axis=-1)
    at = np.flatnonzero(usable)
    if len(at) < 20:
        return None
    at = at[:: max(1, len(at) // PIXELS)]
    rays = np.concatenate([shared.slopes.reshape(-1, 2)[at], np.ones((len(at), 1))], axis=1)
    depths = [depth.ravel()[at].astype(np.float64) for depth in shared.depths]
    world = [
        (rays * depth[:, None] - pose[:3, 3]) @ pose[:3, :3] for depth, pose in zip(depths, shared.poses, strict=True)
    ]
    weight = np.sqrt(conf_a.ravel()[at].astype(np.float64) * conf_b.ravel()[at])
    ratio = np.log(depths[0] / depths[1])
    turn = shared.poses[0][:3, :3].T @ shared.poses[1][:3, :3]
    both = sim3.centres(shared.poses[0]), sim3.centres(shared.poses[1])
    centre = _weighted_median(ratio, weight)
    return _Frame(world[0], world[1], weight / weight.mean(), depths[0], both, turn, centre)


def _vote(frames: Sequence[_Frame]) -> tuple[np.ndarray, list[_Frame]]:
    """The frame's similarity by which most others fit, and the frames that fit it."""

    def misfits(matrix: np.ndarray) -> np.ndarray:
        _, rotation, _ = sim3.parts(matrix)
        near = np.array([np.median(frame.distances(matrix)) for frame in frames])
        angle = sim3.angle_rad(np.stack([frame.turn @ rotation.T for frame in frames]))
        return np.minimum(near / WORST_FRAME[0] + angle / WORST_FRAME[1], 2.0)

    votes = [misfits(frame.alone()) for frame in frames]
    best = int(np.argmin([float(vote.sum()) for vote in votes]))
    vote = votes[best]
    limit = max(NEAR * float(np.median(vote)), 0.15)
    kept = [frame for frame, off in zip(frames, vote, strict=True) if off <= min(limit, 1.5)]
    return frames[best].alone(), kept or [frames[best]]


def _fit(frames: Sequence[_Frame], matrix: np.ndarray) -> np.ndarray:
    """One round of weighted least squares over points, centres and rotations."""
    scale, rotation, _ = sim3.parts(matrix)
    depth = float(np.median([np.median(frame.depth) for frame in frames]))
    off_points = [frame.distances(matrix) for frame in frames]
    of_centres = np.stack([frame.centres[0] for frame in frames]), np.stack([frame.centres[1] for frame in frames])
    off_centres = np.linalg.norm(sim3.move_points(matrix, of_centres[1]) - of_centres[0], axis=1) / depth
    turns = np.stack([frame.turn for frame in frames])
    off_turns = sim3.angle_rad(turns @ rotation.T)
    # One number per frame for the points: pixels of a frame err together.
    spread_points = max(_spread(np.concatenate(off_points)), FLOORS[0])
    spread_centres, spread_turns = max(_spread(off_centres), FLOORS[1]), max(_spread(off_turns), FLOORS[2])
    # With few frames their spread is not known well: never trust poses more than ten times as much as points.
    spread_centres = max(spread_centres, spread_points / 10)
    spread_turns = max(spread_turns, spread_points / 10)
    source, target, weights = [of_centres[1]], [of_centres[0]], [_influence(off_centres / spread_centres)]
    weights[0] = weights[0] / (spread_centres * depth) ** 2
    for frame, off in zip(frames, off_points, strict=True):
        share = INDEPENDENT / len(off)
        source.append(frame.second)
        target.append(frame.first)
        weights.append(share * frame.weight * _influence(off / spread_points) / (spread_points * frame.depth) ** 2)
    a, b, w = np.concatenate(source), np.concatenate(target), np.concatenate(weights)
    mean_a, mean_b = (w @ a) / w.sum(), (w @ b) / w.sum()
    a, b = a - mean_a, b - mean_b
    covariance = (w[:, None] * b).T @ a
    steady = (_influence(off_turns / spread_turns)[:, None, None] * turns).sum(0) / (2 * spread_turns**2)
    rotation = sim3.nearest_rotation(scale * covariance + steady)
    # Both sides have errors: the ratio of the spreads is not biased by them, a regression is.
    scale = float(np.sqrt((w @ (b**2).sum(1)) / max(w @ (a**2).sum(1), 1e-300)))
    return sim3.make(scale, rotation, mean_b - scale * rotation @ mean_a)


def _fit_way(frames: Sequence[_Frame]) -> np.ndarray:
    """The similarity by the centres and turns of the cameras alone."""
    first, second = (np.stack([frame.centres[side] for frame in frames]) for side in (0, 1))
    turns = np.stack([frame.turn for frame in frames])
    matrix, weights = np.eye(4), np.ones(len(frames))
    for _ in range(ROUNDS):
        rotation = sim3.nearest_rotation((weights[:, None, None] * turns).sum(0))
        means = [weights @ centres / weights.sum() for centres in (first, second)]
        ways = [weights @ ((centres - mean) ** 2).sum(1) for centres, mean in zip((first, second), means, strict=True)]
        scale = float(np.sqrt(ways[0] / max(ways[1], 1e-300)))
        matrix = sim3.make(scale, rotation, means[0] - scale * rotation @ means[1])
        off = np.linalg.norm(sim3.move_points(matrix, second) - first, axis=1)
        weights = _influence(off / max(_spread(off), 1e-30))
    return matrix


def _influence(residual: np.ndarray) -> np.ndarray:
    """Geman and McClure's weights of residuals in standard deviations."""
    return 1 / (1 + (residual / CUT) ** 2) ** 2


def _spread(distances: np.ndarray) -> float:
    """A robust standard deviation (per axis) of distances in three dimensions."""
    return float(np.median(distances)) / 1.54


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
