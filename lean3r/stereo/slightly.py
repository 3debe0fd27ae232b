"""Views whose camera is slightly wrong: their depth looks as sure as any, and differs a little from that of the others.

Votes of other views (lean3r.geometry.evidence) forgive a few per cent, which pictures of little texture need.
"""

from __future__ import annotations

import warnings

import numpy as np

from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.evidence import CHECKED, CHECKED_PIXELS, CLOSE

SUREST = 0.5  # of all pixels: what a camera bends is sure, what has no texture is not
LEAST = 100  # pixels of a view that lie in another
HIDDEN = 0.3  # log depth from which places are of different surfaces
# Times the difference between the other views. Of photo scenes with right cameras, only the office has views that
# differ by more than CLOSE, and those by 2.7 times as much. With one camera turned by 0.5 degrees, or moved by 5 % of
# the way to the next, views that differ by more have 5.5 to 21.
TIMES = 4.0
SLIGHTLY = (
    "the surest depth of {} of {} pictures differs from that of the others by more than {:.0%} (median), which "
    "otherwise agree at least {:g} times as well: their cameras are slightly wrong, or their depth is"
)


def slightly_wrong(scene: Scene, conf: np.ndarray) -> np.ndarray:
    """Indices of views whose depth differs from the others'; `scene` is as views measured it without each other's
    depth, conf [S, H, W] says which pixels are sure."""
    apart = _differences(scene, conf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # views that overlap with none, or none that do not
        own = np.array([np.nanmedian([*row, *column]) for row, column in zip(apart, apart.T, strict=True)])
        rest = [np.nanmedian(np.delete(np.delete(apart, view, 0), view, 1)) for view in range(len(apart))]
    return np.flatnonzero((own > CLOSE) & (own > TIMES * np.array(rest)))


def _differences(scene: Scene, conf: np.ndarray) -> np.ndarray:
    """Median difference in log depth [S, S] of the surest pixels of a view and of another; NaN where they share few."""
    apart = np.full((len(scene.depth),) * 2, np.nan)
    known = scene.depth > 0
    if not known.any():
        return apart
    sure = known & (conf >= np.quantile(conf[known], SUREST))
    surest = scene._replace(depth=np.where(sure, scene.depth, 0))  # in which others are sure, too
    step = max(1, round((conf[0].size / CHECKED_PIXELS) ** 0.5))
    for view, others in enumerate(neighbours(scene, CHECKED)):
        rows, cols = step * np.array(np.nonzero(sure[view, ::step, ::step]))
        world = scene.world_points(view, rows, cols)
        for other in others:
            z, depth = surest.seen(other, world)
            with np.errstate(invalid="ignore"):
                difference = np.abs(np.log(np.where(z > 0, z, np.nan) / depth))
            difference = difference[difference < HIDDEN]  # False where one is unknown
            if len(difference) >= LEAST:
                apart[view, other] = np.median(difference)
    return apart
