"""Rolling shutters: most phones and cameras read a frame row by row, and turn meanwhile.

A walk whose frames are read in a quarter of the time between them comes out with cameras 40 cm off (10 without), and
as if its lens zoomed: a pinhole can only bend to fit. How fast a camera turns is known from the frames beside; so where
the matches agree on how long a frame takes to be read, and in which direction, features are moved to where a shutter
would have them that opens everywhere at once, in the middle of that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lean3r.colmap_library import pycolmap
from lean3r.refine.features import camera_of
from lean3r.refine.job import Answer, Job
from lean3r.refine.matching import image_ids
from lean3r.refine.separate import FIRST, adjusted_px, model_of

PROBE_S, MOST_S = 0.016, 0.04  # to read a frame; phones take 8 to 30 ms
LEAST_PX = 1.0  # that a feature moves during that, in the usual frame of those that turn fastest: else nothing is lost
PERHAPS, LEFT = 0.985, 0.96  # share of the error: 0.94 where a quarter of the time is read, 0.986 without
MEASURED = 6000  # measurements that tell the time well enough
NOTE = (
    "the frames are read row by row while the camera turns (a rolling shutter, of {:.0f} ms a frame): its cameras are "
    "those of the middle of each, and depth is less sure where it turns fast"
)


class Readout(NamedTuple):
    """How long after the first column the last one is read, and the last row after the first one; one of them is 0."""

    across_s: float
    down_s: float

    @property
    def whole_s(self) -> float:
        """From the first to the last."""
        return abs(self.across_s) + abs(self.down_s)


def readout(job: Job, answer: Answer) -> Readout | None:
    """How the frames of a video were read, if its matches fit clearly better so than all at once; else None."""
    rates = turning(job, answer)
    if rates is None:
        return None
    fast = np.quantile(np.linalg.norm(rates[answer.has], axis=1), 0.75)
    if fast * PROBE_S / 2 * np.median([params[0] for params in answer.params]) < LEAST_PX:
        return None
    few = thinned(answer)

    def error(across_s: float, down_s: float) -> float:
        moved = replace(few, xy=_moved(job, few, rates, Readout(across_s, down_s)))
        return adjusted_px(shared_model(job, moved), FIRST)

    whole = error(0, 0)
    ways = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    probed = [error(x * PROBE_S, y * PROBE_S) for x, y in ways]
    best = int(np.argmin(probed))
    if probed[best] > PERHAPS * whole:
        return None
    x, y = ways[best]
    times_s = PROBE_S * np.arange(0.5, MOST_S / PROBE_S + 0.1, 0.5)
    errors = [probed[best] if time_s == PROBE_S else error(x * time_s, y * time_s) for time_s in times_s]
    at = int(np.argmin(errors))
    if errors[at] > LEFT * whole:
        return None
    time_s = times_s[at]
    if 0 < at < len(errors) - 1:  # between the times that were tried, the error is nearly a parabola
        before, here, after = errors[at - 1 : at + 2]
        time_s += PROBE_S / 4 * (before - after) / (before - 2 * here + after)
    return Readout(x * float(time_s), y * float(time_s))


def turning(job: Job, answer: Answer) -> np.ndarray | None:
    """The rates [S, 3] at which the views of videos turn, as rotation vectors a second in their own frames, by the
    registered views beside them; None if their times are not known."""
    rates = np.zeros((len(job.views), 3))
    for run in job.sequences:
        times_s = np.array([job.views[view].timestamp_s for view in run], float)
        at = np.flatnonzero(answer.has[list(run)])
        if len(at) < 3 or not np.isfinite(times_s).all() or (np.diff(times_s[at]) <= 0).any():
            return None
        turns = answer.cam_from_world[np.array(run)[at], :3, :3]
        before, after = np.maximum(np.arange(len(at)) - 1, 0), np.minimum(np.arange(len(at)) + 1, len(at) - 1)
        known = _vectors(turns[after] @ turns[before].transpose(0, 2, 1))
        known /= (times_s[at[after]] - times_s[at[before]])[:, None]
        rates[list(run)] = np.stack([np.interp(times_s, times_s[at], known[:, axis]) for axis in range(3)], 1)
    return rates


def straighten(job: Job, answer: Answer, found: Readout, database: Path) -> None:
    """Move the features in a database to where a shutter would have them that opens everywhere at once."""
    rates = turning(job, answer)
    assert rates is not None
    cameras = _cameras(job, answer)
    ids = image_ids(job, database)
    with pycolmap.Database.open(database) as opened:
        for view, image_id in ids.items():
            keypoints = np.array(opened.read_keypoints(image_id), np.float32)
            if len(keypoints):
                keypoints[:, :2] = at_once(keypoints[:, :2].astype(float), cameras[view], rates[view], found)
                opened.update_keypoints(image_id, keypoints)


def at_once(xy: np.ndarray, camera: pycolmap.Camera, rate: np.ndarray, found: Readout) -> np.ndarray:
    """Where features at xy [N, 2] of a frame whose camera turns at this rate [3] are in the middle of its time."""
    since_s = (xy / [camera.width, camera.height] - 0.5) @ [found.across_s, found.down_s]
    rays = np.asarray(camera.cam_from_img(xy)).reshape(-1, 2)
    turned = _turned(np.column_stack([rays, np.ones(len(rays))]), -rate * since_s[:, None])
    moved = np.asarray(camera.img_from_cam(turned)).reshape(-1, 2)
    return np.where(np.isfinite(moved), moved, xy)


def _vectors(turns: np.ndarray) -> np.ndarray:
    """Rotations [N, 3, 3] by less than half a turn as vectors [N, 3] along their axes, as long as their angles."""
    axes = (turns - turns.transpose(0, 2, 1))[:, (2, 0, 1), (1, 2, 0)] / 2
    sine = np.linalg.norm(axes, axis=1)
    angle = np.arctan2(sine, (np.trace(turns, axis1=1, axis2=2) - 1) / 2)
    return axes * (angle / np.maximum(sine, np.finfo(float).tiny))[:, None]


def _turned(rays: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rays [N, 3] turned about vectors [N, 3] by as much as these are long (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=1, keepdims=True)
    axis = vectors / np.maximum(angle, np.finfo(float).tiny)
    along = (axis * rays).sum(1, keepdims=True) * axis
    return along + (rays - along) * np.cos(angle) + np.cross(axis, rays) * np.sin(angle)


def _moved(job: Job, answer: Answer, rates: np.ndarray, found: Readout) -> np.ndarray:
    cameras, xy = _cameras(job, answer), answer.xy.copy()
    for view in np.unique(answer.view).tolist():
        mine = answer.view == view
        xy[mine] = at_once(xy[mine], cameras[view], rates[view], found)
    return xy


def _cameras(job: Job, answer: Answer) -> Sequence[pycolmap.Camera]:
    return [
        camera_of(
            replace(job.groups[view.group], model=answer.models[mine], params=answer.params[mine]), view.group + 1
        )
        for view, mine in zip(job.views, answer.camera, strict=True)
    ]


def shared_model(job: Job, answer: Answer) -> pycolmap.Reconstruction:
    """The points and views of an answer as a model, with the cameras that views share."""
    cameras = _cameras(job, answer)
    return model_of(answer, {view: cameras[view] for view in np.flatnonzero(answer.has).tolist()})


def thinned(answer: Answer) -> Answer:
    """An answer with a part of its points, evenly taken."""
    step = max(1, len(answer.point) // MEASURED)
    kept = np.arange(len(answer.xyz)) % step == 0
    seen = kept[answer.point]
    number = np.cumsum(kept) - 1
    return replace(
        answer,
        xyz=answer.xyz[kept],
        error_px=answer.error_px[kept],
        point=number[answer.point[seen]].astype(answer.point.dtype),
        view=answer.view[seen],
        xy=answer.xy[seen],
    )
