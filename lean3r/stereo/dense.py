"""A scene whose depth is measured between its pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lean3r.geometry.consistency import Scene, neighbours
from lean3r.geometry.evidence import CLOSE, Sightings, cast, weigh
from lean3r.geometry.lens import Optics
from lean3r.refine.depth import sightings
from lean3r.stereo.classical import CHECKED
from lean3r.stereo.measure import measure as by_network
from lean3r.stereo.posed import Depths, Posed, nearest_inside
from lean3r.stereo.slightly import SLIGHTLY, TIMES, slightly_wrong
from lean3r.types import Reconstruction, with_warning

LEAST_PARALLAX_RAD = 0.004  # about a pixel of a small picture: with less, the camera only turned, or is far away
NO_OVERLAP = "no views from different places overlap"
CHANCE = 0.1  # share of pixels that another view has within 1 %: with wrong cameras up to so many do
BEYOND = 0.3  # log depth of what has none, behind the farthest of the view
NOT_BETTER = (
    "depth from stereo does not agree better between the views than the network's ({} against {} of the pixels within "
    "{:.0%}; median difference {} against {}): the cameras or the scene do not allow it; the network's depth is kept"
)
CONTRADICTED = (
    "most of the depth of {} of {} pictures contradicts the other views: they show little that can be compared, as "
    "plain walls do, or what they show moved, or their cameras are wrong or belong to other pictures"
)


Measure = Callable[[Posed, Tensor, tuple[Tensor, Tensor], Callable[[], None]], Depths]
"""Measures depth: the posed pictures, log depth of the prior [S, H, W], log depth of points and where they are (both
[S, H, W]), and what to call after every look at a view."""


def densify(
    reconstruction: Reconstruction,
    advanced: Callable[[], None] = lambda: None,
    measure: Measure = by_network,
    only: np.ndarray | None = None,
) -> Reconstruction:
    """The scene with depth from stereo between its pictures, around the depth that it has.

    Views that overlap with no other keep their depth, and so does the whole scene where stereo does not agree better
    between the views. Confidence becomes the inverse of the expected relative error, weighted by the other views and by
    sparse points. The cloud stays as it was. `only` [S] bool are the views to measure (None: all); the depth of the
    others stays and confirms theirs. `measure` calls `advanced` after every look at a view. `info["stereo"]` says what
    was done: "status" (measured or kept), "views" measured, the median "disagreement" of views before and after in log
    depth, the share of pixels that another view has within 1 % ("close"; both as views measured without each other's
    depth), and "seconds"; after Ctrl-C of the measured views alone.
    """
    started = time.perf_counter()
    depth = np.where(reconstruction.mask & (reconstruction.depth > 0), reconstruction.depth, 0).astype(np.float32)
    before = replace(reconstruction, depth=depth)
    seen = sightings(before)
    found = measured_around(before, rasters(seen, depth.shape), measure, advanced, only)
    if found is None:
        return with_report(reconstruction, {"status": "kept", "reason": NO_OVERLAP}, started)
    is_measured = found.measured[:, None, None] & (depth > 0)
    after = replace(reconstruction, depth=np.where(is_measured, found.log_depth.exp().numpy(), depth))
    precision = np.where(is_measured, (-found.log_b).exp().numpy(), depth > 0).astype(np.float32)
    apart = replace(after, depth=np.where(is_measured, found.independent.exp().numpy(), depth))
    conf, now = weigh(precision, reconstruction.mask, Scene.of(apart), seen)
    old = cast(Scene.of(before))
    if found.interrupted:  # what was not measured says nothing about stereo
        parts = (replace(x, depth=np.where(found.measured[:, None, None], x.depth, 0)) for x in (before, apart))
        old, now = (cast(Scene.of(part)) for part in parts)
    report = report_of(found, int(found.measured.sum()), old.disagreement, now.disagreement)
    report["close"] = {"before": rounded(old.close), "after": rounded(now.close)}
    is_better = now.close > old.close
    if only is None:  # with wrong cameras a few more pixels may agree by chance, while the others fall apart
        is_better &= now.close > CHANCE and now.disagreement < max(old.disagreement, CLOSE)
    if not is_better and not (found.interrupted and np.isnan(now.close)):
        shares = (in_percent(votes.close, 0) for votes in (now, old))
        differ = (in_percent(votes.disagreement, 1) for votes in (now, old))
        text = NOT_BETTER.format(*shares, CLOSE, *differ)
        kept = with_warning(reconstruction, "stereo-kept", text)
        return with_report(kept, {**report, "status": "kept", "reason": "no better agreement"}, started)
    # Of right cameras, 0.69 of the votes and more agree (photo scenes); of one that is 5 % of its distance off, 0.35.
    agree, against = (votes.sum((1, 2)) for votes in (now.agree, now.against))
    contradicted = np.flatnonzero(found.measured & (agree < against))
    if len(contradicted) and not found.interrupted:  # else the others may not be measured
        after = with_warning(after, "views-disagree", CONTRADICTED.format(len(contradicted), len(depth)), contradicted)
    if only is None and not found.interrupted:
        after = with_slightly_wrong(after, Scene.of(apart), conf, contradicted)
    return with_report(replace(after, conf=conf), report, started)


def with_slightly_wrong(
    reconstruction: Reconstruction, apart: Scene, conf: np.ndarray, named: np.ndarray | Sequence[int] = ()
) -> Reconstruction:
    """The scene with a warning of views that are `slightly_wrong`, but for those that are `named` already."""
    views = np.setdiff1d(slightly_wrong(apart, conf), named)
    if not len(views):
        return reconstruction
    text = SLIGHTLY.format(len(views), len(conf), CLOSE, TIMES)
    return with_warning(reconstruction, "views-disagree", text, views)


def measured_around(
    reconstruction: Reconstruction,
    points: tuple[Tensor, Tensor],
    measure: Measure,
    advanced: Callable[[], None],
    only: np.ndarray | None = None,
) -> Depths | None:
    """What is measured around the depth of a scene; None if no certain views from different places overlap.

    `points` are the log depth of points and where they are, both [S, H, W]; `only` [S] bool are the views to measure.
    """
    certain = reconstruction.is_certain
    sources = sources_of(Scene.of(reconstruction), certain)
    pictures = posed(reconstruction, sources)
    if only is not None:
        sources = [others if wanted else others[:0] for others, wanted in zip(sources, only, strict=True)]
        stored = np.where((certain & ~only)[:, None, None], reconstruction.depth, 0)
        pictures = replace(pictures, sources=sources, stored=stored)
    if not any(len(others) for others in sources):
        return None
    return measure(pictures, filled(reconstruction.depth, reconstruction.mask), points, advanced)


def sources_of(scene: Scene, certain: np.ndarray) -> list[np.ndarray]:
    """For each view, the `certain` [S] others that overlap with it and were taken from elsewhere, the best first."""
    centres, sources = scene.centres, []
    for depth, centre, others in zip(scene.depth, centres, neighbours(scene, CHECKED), strict=True):
        known = depth[depth > 0]
        far = np.median(known) if len(known) else np.inf
        parallax_rad = np.linalg.norm(centres[others] - centre, axis=1) / far
        sources.append(others[certain[others] & (parallax_rad > LEAST_PARALLAX_RAD)])
    return sources


def posed(reconstruction: Reconstruction, sources: Sequence[np.ndarray]) -> Posed:
    """The pictures of a scene with their cameras; `sources`: for each view the others that it is compared with."""
    return Posed(
        reconstruction.images,
        reconstruction.mask,
        reconstruction.cam_from_world,
        reconstruction.intrinsics,
        Optics.of(reconstruction),
        sources,
        bool(reconstruction.lenses),
    )


def filled(depth: np.ndarray, mask: np.ndarray) -> Tensor:
    """Log depth [S, H, W] everywhere, from depth that is 0 where unknown: what has none lies behind the rest.

    Padding, where mask [S, H, W] is False, continues the border of its picture: a step there would misplace the border.
    """
    known = torch.from_numpy(depth > 0)
    log_depth = torch.from_numpy(depth).clamp(min=1e-30).log()
    farthest = torch.where(known, log_depth, -torch.inf).flatten(1).amax(1)
    farthest = torch.where(farthest.isfinite(), farthest, 0.0)
    log_depth = torch.where(known, log_depth, farthest[:, None, None] + BEYOND)
    for view in np.flatnonzero(~mask.all((1, 2)) & mask.any((1, 2))):
        log_depth[view] = log_depth[view][nearest_inside(mask[view])]
    return log_depth


def rasters(seen: list[Sightings], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Log depth [S, H, W] of the points that the views saw, and where they are [S, H, W] bool; the nearest counts."""
    log_depth, has = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for view, points in enumerate(seen):
        cols, rows = np.floor(points.xy).astype(np.int64).T
        inside = (cols >= 0) & (rows >= 0) & (cols < shape[2]) & (rows < shape[1]) & (points.weight > 0.1)
        order = np.argsort(-points.log_depth[inside], kind="stable")
        rows, cols, values = rows[inside][order], cols[inside][order], points.log_depth[inside][order]
        log_depth[view, rows, cols] = torch.from_numpy(values).float()
        has[view, rows, cols] = True
    return log_depth, has


def report_of(found: Depths, views: int, before: float, after: float) -> dict:
    """The report of what was measured in so many views, with the disagreement of views before and after."""
    interrupted = {"interrupted": True} if found.interrupted else {}
    disagreement = {"before": rounded(before), "after": rounded(after)}
    return {"status": "measured", **interrupted, "views": views, "disagreement": disagreement}


def rounded(value: float) -> float | None:
    """A share or a median for a report; None if there is none."""
    return None if np.isnan(value) else round(value, 5)


def in_percent(share: float, digits: int) -> str:
    """A share in words, with so many digits after the point."""
    return "none" if np.isnan(share) else f"{share:.{digits}%}"


def with_report(reconstruction: Reconstruction, report: dict, started: float) -> Reconstruction:
    """The scene with the report of stereo in `info`."""
    report = {**report, "seconds": round(time.perf_counter() - started, 3)}
    return replace(reconstruction, info={**reconstruction.info, "stereo": report})
