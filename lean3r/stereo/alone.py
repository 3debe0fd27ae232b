"""Depth of a scene from stereo alone: no backbone has seen the pictures, and the depth so far only says where to look.

Small copies of the pictures are matched over a wide range of depths, without any network; what is found there is the
prior of the measurement. What no other view confirms, and what does not lie between such places, stays unknown.
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

from lean3r.geometry.consistency import Scene
from lean3r.geometry.evidence import CLOSE, weigh
from lean3r.geometry.fusion import without_depth
from lean3r.geometry.gaze import distances
from lean3r.refine.depth import sightings
from lean3r.stereo.classical import CHECKED, agreeing, distance, measure_classically, without_specks
from lean3r.stereo.dense import (
    Measure,
    filled,
    measured_around,
    rasters,
    report_of,
    with_report,
    with_slightly_wrong,
)
from lean3r.stereo.measure import measure as by_network
from lean3r.stereo.posed import Depths, Posed
from lean3r.types import Reconstruction, with_warning

SMALLER = 4  # how much smaller pictures are in the first look
WIDE = 128  # planes of the first look
NEARER, FARTHER = 4.0, 10.0  # how far it reaches around the distance at which the cameras look
LEAST_POINTS = 30  # of a view: they say better how far to look
MOST_ERROR = 0.05  # expected relative error of a pixel that counts as measured
GAP = 0.05  # of the diagonal of a picture: half the width of a gap between measured pixels that is filled
# Share of the pixels that a scene has measured, below which its depth may be chance. Photo scenes with their cameras
# have 0.61 to 0.94, eight rendered ones 0.55 to 0.96; with pictures and cameras mixed up at most 0.27
# (fountain_p11, five pictures).
LITTLE = 0.3
FEW_PIXELS = (
    "only {:.0%} of the pixels have depth that another view confirms, where right cameras give {:.0%} and more: the "
    "cameras are wrong, or belong to other pictures, or the pictures overlap little or show little texture; what "
    "there is may agree by chance"
)
DISAGREE = (
    "depth from stereo differs by {:.1%} between the views (median), where right cameras leave less than {:.0%}: the "
    "cameras are wrong, or the scene moves"
)
NOTHING_OF_SOME = (
    "no other view agrees on any depth of {} of {} pictures, which have none: their cameras are wrong or belong to "
    "other pictures, or they overlap with no other, or show nothing that can be compared"
)
NOTHING = "no views agree on any depth: the cameras are wrong, or the pictures show nothing that can be compared"


def densify_alone(
    reconstruction: Reconstruction, advanced: Callable[[], None] = lambda: None, measure: Measure = by_network
) -> Reconstruction:
    """The scene with depth that stereo measures between its pictures, and no other.

    Its own depth only says which pixels may have any (> 0); how far to look, cameras and sparse points say. Confidence
    is that of `densify`. `advanced` is called twice a view. `info["stereo"]` is as there; "share" of the pixels has
    depth. If nothing can be measured, there is no depth, with a warning; others say that some views have none, that
    little was measured, or that views differ by more than right cameras leave. KeyboardInterrupt if it is interrupted
    before any view is measured.
    """
    started = time.perf_counter()
    may = reconstruction.mask & (reconstruction.depth > 0)
    seen = sightings(reconstruction)
    depth = np.where(may, _first_look(reconstruction), 0).astype(np.float32)
    points = rasters(seen, depth.shape)
    found = measured_around(replace(reconstruction, depth=depth), points, partial(_confirmed, measure), advanced)
    known = np.stack([between(sure) for sure in found.sure]) & may if found is not None else np.zeros_like(may)
    if found is None or not known.any():
        nothing = with_warning(without_depth(reconstruction), "nothing-measured", NOTHING)
        return with_report(nothing, {"status": "kept", "reason": "no views agree on any depth"}, started)
    measured = np.where(known, found.log_depth.exp().numpy(), 0).astype(np.float32)
    precision = np.where(known, (-found.log_b).exp().numpy(), 0).astype(np.float32)
    after = replace(reconstruction, depth=measured)
    apart = replace(after, depth=np.where(known, found.independent.exp().numpy(), 0).astype(np.float32))
    conf, votes = weigh(precision, reconstruction.mask, Scene.of(apart), seen)
    report = report_of(found, int(known.any((1, 2)).sum()), math.nan, votes.disagreement)
    report["share"] = round(float(known.sum() / max(1, may.sum())), 4)
    missing = np.flatnonzero(may.any((1, 2)) & ~known.any((1, 2)))
    if len(missing) and not found.interrupted:  # else they were not tried
        after = with_warning(after, "nothing-measured", NOTHING_OF_SOME.format(len(missing), len(may)), missing)
    if report["share"] < LITTLE:
        after = with_warning(after, "little-measured", FEW_PIXELS.format(report["share"], LITTLE))
    if votes.disagreement > CLOSE:
        after = with_warning(after, "views-disagree", DISAGREE.format(votes.disagreement, CLOSE))
    if not found.interrupted:
        after = with_slightly_wrong(after, Scene.of(apart), conf)
    return with_report(replace(after, conf=conf), report, started)


def _confirmed(
    measure: Measure, scene: Posed, prior: Tensor, points: tuple[Tensor, Tensor], advanced: Callable[[], None]
) -> Depths:
    """What is measured, and where it is `sure`: where little error is expected and another view has the same depth."""
    found = measure(scene, prior, points, advanced)
    maps = np.where(scene.mask & found.measured[:, None, None], found.independent.double().exp().numpy(), 0)
    matched, sure = Scene(maps, scene.cam_from_world, scene.optics), torch.zeros(prior.shape, dtype=torch.bool)
    for view in np.flatnonzero(found.measured).tolist():
        others = [int(other) for other in scene.sources[view][:CHECKED] if found.measured[other]]
        expected = found.log_b[view] < math.log(MOST_ERROR)
        sure[view] = without_specks(expected & (agreeing(matched, view, others) > 0))
    return replace(found, sure=sure)


def between(sure: Tensor) -> np.ndarray:
    """Pixels [H, W] bool that are `sure` [H, W] or in gaps between such pixels (a morphological closing)."""
    reach = GAP * math.hypot(*sure.shape)
    return (distance(distance(sure, reach) > reach, reach) > reach).numpy()


def _first_look(reconstruction: Reconstruction) -> np.ndarray:
    """Depth [S, H, W] everywhere, measured in small copies of the pictures; a distance for each view if that finds
    nothing."""
    small = smaller(reconstruction, SMALLER)
    log_depth, has = rasters(sightings(small), small.depth.shape)
    start = distances(torch.from_numpy(reconstruction.cam_from_world)).float().clone()
    enough = has.flatten(1).sum(1) >= LEAST_POINTS
    for view in np.flatnonzero(enough):
        start[view] = log_depth[view][has[view]].median().exp()
    depth = np.where(small.depth > 0, start[:, None, None].numpy(), 0).astype(np.float32)
    _widen(log_depth, has, filled(depth, small.mask), ~enough.numpy())
    wide = partial(measure_classically, planes_tried=WIDE)
    found = measured_around(replace(small, depth=depth), (log_depth, has), wide, lambda: None)
    size = reconstruction.depth.shape[1:]
    if found is not None and found.interrupted:  # the depth of small copies is none that a user would keep
        raise KeyboardInterrupt
    if found is None:
        return np.broadcast_to(start[:, None, None], (len(start), *size))
    return F.interpolate(found.log_depth[None], size, mode="bilinear", align_corners=False)[0].exp().numpy()


def _widen(log_depth: Tensor, has: Tensor, prior: Tensor, views: np.ndarray) -> None:
    """Add to the log depth of points, and to where they are (both [S, H, W]), two more that reach far around the prior
    [S, H, W] in each of the `views` [S] bool."""
    for view in np.flatnonzero(views):
        log_depth[view, 0, :2] = prior[view].median() + torch.tensor([1 / NEARER, FARTHER]).log()
        has[view, 0, :2] = True


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
