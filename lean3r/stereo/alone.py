"""Depth of a scene from stereo alone: no network has seen the pictures, and the depth so far only says where to look.

Small copies of the pictures are matched over a wide range of depths; what is found there is the prior of the
measurement. What no other view confirms, and what does not lie between such places, stays unknown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.evidence import Sightings, weigh
from lean3r.geometry.fusion import with_cloud, without_depth
from lean3r.geometry.gaze import distances
from lean3r.geometry.lens import Optics
from lean3r.refine.depth import sightings
from lean3r.stereo.classical import CHECKED, distance, measure_classically
from lean3r.stereo.dense import filled, posed, rasters, with_report
from lean3r.stereo.posed import Depths
from lean3r.types import Reconstruction, with_warning

SMALLER = 4  # how much smaller pictures are in the first look
WIDE = 128  # planes of the first look
NEARER, FARTHER = 4.0, 10.0  # how far it reaches around the distance at which the cameras look
LEAST_POINTS = 30  # of a view: they say better how far to look
GAP = 0.05  # of the diagonal of a picture: half the width of a gap between measured pixels that is filled
NOTHING = "no views agree on any depth: the cameras are wrong, or the pictures show nothing that can be compared"


def densify_alone(reconstruction: Reconstruction, advanced: Callable[[], None] = lambda: None) -> Reconstruction:
    """The scene with depth that stereo measures between its pictures, and no other.

    Its own depth only says which pixels may have any (> 0); how far to look, cameras and sparse points say. Confidence
    is that of `densify`. `advanced` is called after every view. `info["stereo"]` is as there; "share" of the pixels has
    depth. If nothing can be measured, there is no depth, with a warning.
    """
    started = time.perf_counter()
    may = reconstruction.mask & (reconstruction.depth > 0)
    seen = _sightings(reconstruction)
    prior, is_found = _first_look(reconstruction)
    depth = np.where(may, prior, 0).astype(np.float32)
    points = _widened(rasters(seen, depth.shape), filled(depth), ~is_found)
    found = _measured(reconstruction, depth, points, measure_classically, advanced)
    known = np.stack([between(sure) for sure in found.sure]) & may if found is not None else np.zeros_like(may)
    if found is None or not known.any():
        nothing = with_warning(without_depth(reconstruction), "nothing-measured", NOTHING)
        return with_report(nothing, {"status": "kept", "reason": "no views agree on any depth"}, started)
    measured = np.where(known, found.log_depth.exp().numpy(), 0).astype(np.float32)
    precision = np.where(known, (-found.log_b).exp().numpy(), 0).astype(np.float32)
    certain = np.where(reconstruction.is_certain[:, None, None], measured, 0)
    after = Scene(certain, reconstruction.cam_from_world, Optics.of(reconstruction))
    conf, votes = weigh(precision, reconstruction.mask, after, seen)
    apart = votes.disagreement
    report: dict = {"status": "measured", **({"interrupted": True} if found.interrupted else {})}
    report |= {
        "views": int(known.any((1, 2)).sum()),
        "share": round(float(known.sum() / max(1, may.sum())), 4),
        "disagreement": {
            "before": None,
            "after": None if np.isnan(apart) else round(apart, 5),
        },
    }
    return with_report(with_cloud(replace(reconstruction, depth=measured, conf=conf), certain), report, started)


def between(sure: Tensor) -> np.ndarray:
    """Pixels [H, W] bool that are `sure` [H, W] or in gaps between such pixels (a morphological closing)."""
    reach = GAP * math.hypot(*sure.shape)
    return (distance(distance(sure) > reach) > reach).numpy()


def _sightings(reconstruction: Reconstruction) -> list[Sightings]:
    return [] if reconstruction.sparse is None else sightings(reconstruction, reconstruction.sparse)


def _first_look(reconstruction: Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Depth [S, H, W] everywhere, measured in small copies of the pictures, and the views [S] where any was found."""
    small = smaller(reconstruction, SMALLER)
    log_depth, has = rasters(_sightings(small), small.depth.shape)
    start = distances(torch.from_numpy(reconstruction.cam_from_world)).float().clone()
    enough = has.flatten(1).sum(1) >= LEAST_POINTS
    for view in np.flatnonzero(enough):
        start[view] = log_depth[view][has[view]].median().exp()
    depth = np.where(small.depth > 0, start[:, None, None].numpy(), 0).astype(np.float32)
    points = _widened((log_depth, has), filled(depth), ~enough.numpy())
    found = _measured(small, depth, points, partial(measure_classically, planes_tried=WIDE))
    size = reconstruction.depth.shape[1:]
    if found is None:
        return np.broadcast_to(start[:, None, None], (len(start), *size)), np.zeros(len(start), bool)
    log_depth = F.interpolate(found.log_depth[None], size, mode="bilinear", align_corners=False)[0]
    return log_depth.exp().numpy(), found.sure.flatten(1).any(1).numpy()


def _widened(points: tuple[Tensor, Tensor], prior: Tensor, views: np.ndarray) -> tuple[Tensor, Tensor]:
    """Log depth of points and where they are (both [S, H, W]), with two more that reach far around the prior [S, H, W]
    in some of the `views` [S] bool."""
    log_depth, has = (part.clone() for part in points)
    for view in np.flatnonzero(views):
        log_depth[view, 0, :2] = prior[view].median() + torch.tensor([1 / NEARER, FARTHER]).log()
        has[view, 0, :2] = True
    return log_depth, has


def _measured(
    reconstruction: Reconstruction,
    depth: np.ndarray,
    points: tuple[Tensor, Tensor],
    measure: Callable[..., Depths],
    advanced: Callable[[], None] = lambda: None,
) -> Depths | None:
    """Measured around a depth [S, H, W]; None if no views overlap."""
    certain = reconstruction.is_certain
    optics = Optics.of(reconstruction)
    shown = Scene(np.where(certain[:, None, None], depth, 0), reconstruction.cam_from_world, optics)
    sources = [others[certain[others]] for others in neighbours(shown, CHECKED)]
    if not any(len(others) for others in sources):
        return None
    return measure(posed(reconstruction, sources), filled(depth), points, advanced)


def smaller(reconstruction: Reconstruction, times: int) -> Reconstruction:
    """The scene with pictures so many times smaller; rows and columns that are left over are cut off."""
    height, width = (size // times * times for size in reconstruction.depth.shape[1:])
    cells = (len(reconstruction.images), height // times, times, width // times, times)
    images = reconstruction.images[:, :height, :width].reshape(*cells, 3).mean((2, 4))
    mask = reconstruction.mask[:, :height, :width].reshape(cells).all((2, 4))
    depth, conf = (
        x[:, times // 2 : height : times, times // 2 : width : times]
        for x in (reconstruction.depth, reconstruction.conf)
    )
    scaled = np.diag([1 / times, 1 / times, 1.0])
    sources = tuple(
        replace(source, original_from_network=(times * sx, times * sy, ox, oy))
        for source in reconstruction.sources
        for sx, sy, ox, oy in [source.original_from_network]
    )
    return replace(
        reconstruction,
        sources=sources,
        images=images.round().astype(np.uint8),
        mask=mask,
        depth=depth,
        conf=conf,
        intrinsics=scaled @ reconstruction.intrinsics,
    )
