"""Depth follows refined cameras: scaled to the triangulated points, and checked across views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lean3r.geometry.consistency import Scene, sample_depth
from lean3r.geometry.evidence import Sightings, weigh
from lean3r.geometry.points import edge_mask
from lean3r.parallel import by_threads
from lean3r.refine.field import Field, fit_field, fit_scale
from lean3r.refine.judge import centres_of
from lean3r.types import Reconstruction, SparsePoints

PRIOR_POINTS = 5.0  # weight of the scene's scale, in points of a view
NOISE = 0.02  # relative depth error of the network, which remains even with perfect points
LEAST_TRUST = 0.01  # with less weight, depth is known to 20 % at best, and points add nothing to the scene's scale
FEW, FAR = 100, np.log(3.0)  # with so few points, a view's scale may not differ so much from the scene's
TOLERANCE = 0.02  # spread of a field without any points


def follow(reconstruction: Reconstruction) -> Reconstruction:
    """The reconstruction with depth that fits its (refined) cameras and sparse points.

    Each view's depth is scaled to the points that it sees, and bent by a smooth field where these support one
    (field.py); views without points take the scene's scale. Confidence is weighted by other views and sparse points
    (lean3r.geometry.evidence). The cloud stays as it was (geometry.fusion.with_cloud fuses it). `info["depth"]` reports
    for each view: "points" used, "scale", "field" (True or False), and the median relative deviation from the points
    "before" (after the scene's one scale) and "after".
    """
    depth = np.where(reconstruction.mask & np.isfinite(reconstruction.depth), reconstruction.depth, 0)
    depth = np.maximum(depth, 0).astype(np.float32)
    fields, report = _fields(reconstruction, depth)
    depth = np.stack(by_threads(lambda of_view: of_view[0].apply(of_view[1]), zip(fields, depth, strict=True)))
    found = replace(reconstruction, depth=depth, info={**reconstruction.info, "depth": report})
    conf, _ = weigh(found.conf, found.mask, Scene.of(found), sightings(found))
    return replace(found, conf=conf)


def sightings(reconstruction: Reconstruction) -> list[Sightings]:
    """The sparse points that each view observed; empty if there are none. Uncertain points (far away, small parallax)
    get less weight."""
    sparse = reconstruction.sparse
    if sparse is None:
        return []
    trust = _trust(reconstruction, sparse)
    sightings = []
    for view, source in enumerate(reconstruction.sources):
        mine = np.flatnonzero(sparse.view == view)
        pose = reconstruction.cam_from_world[view]
        z = sparse.xyz[sparse.point[mine]] @ pose[2, :3] + pose[2, 3]
        mine, z = mine[z > 0], z[z > 0]
        scale, offset = np.reshape(source.original_from_network, (2, 2))
        sightings.append(Sightings((sparse.xy[mine] - offset) / scale, np.log(z), trust[sparse.point[mine]]))
    return sightings


def _trust(reconstruction: Reconstruction, sparse: SparsePoints) -> np.ndarray:
    """Weight [P] of each point in 0..1 from the relative error of its depth: pixel error over parallax."""
    centres = centres_of(reconstruction.cam_from_world)
    ray = sparse.xyz[sparse.point] - centres[sparse.view]
    ray /= np.maximum(np.linalg.norm(ray, axis=1, keepdims=True), 1e-30)
    mean = np.zeros_like(sparse.xyz)
    np.add.at(mean, sparse.point, ray)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-30)
    angle = np.zeros(len(sparse.xyz))
    np.maximum.at(angle, sparse.point, np.linalg.norm(ray - mean[sparse.point], axis=1))
    focal = np.median(reconstruction.original_intrinsics[:, 0, 0])
    error = np.maximum(sparse.error_px, 0.3) / focal / np.maximum(2 * angle, 1e-9)
    return NOISE**2 / (NOISE**2 + error**2)


def _fields(reconstruction: Reconstruction, depth: np.ndarray) -> tuple[list[Field], list[dict]]:
    """The correction of each view's depth [H, W], and its report."""
    views = len(depth)
    if reconstruction.sparse is None or not len(reconstruction.sparse.point):
        return [Field(0.0, TOLERANCE)] * views, [{"points": 0, "scale": 1.0, "field": False}] * views
    parts = []
    for view, seen in enumerate(sightings(reconstruction)):
        sharp = np.where(edge_mask(torch.from_numpy(depth[view])).numpy(), 0, depth[view])
        predicted = np.log(sample_depth(sharp, seen.xy))  # NaN beside an edge, on padding and outside
        used = np.isfinite(predicted)
        parts.append((seen.xy[used], predicted[used], seen.log_depth[used] - predicted[used], seen.weight[used]))
    ratio, weight = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
    if not len(ratio):
        return [Field(0.0, TOLERANCE)] * views, [{"points": 0, "scale": 1.0, "field": False}] * views
    good = weight >= LEAST_TRUST
    whole = fit_scale(ratio[good], weight[good]) if good.any() else fit_scale(ratio, weight)

    def of_view(part: tuple[np.ndarray, ...]) -> tuple[Field, dict]:
        xy, predicted, ratio, weight = (values[part[3] >= LEAST_TRUST] for values in part)
        count = len(ratio)
        plain = fit_scale(ratio, weight, (whole.constant, PRIOR_POINTS)) if count else whole
        doubtful = count < FEW and abs(plain.constant - whole.constant) > FAR
        field = whole if doubtful else fit_field(xy, predicted, ratio, weight, plain)
        said = {"points": count, "scale": float(np.exp(field.constant)), "field": field.knots is not None}
        if count:
            said["before"] = round(float(np.median(np.abs(ratio - whole.constant))), 5)
            said["after"] = round(float(np.median(np.abs(ratio - field.correction(xy, predicted)))), 5)
        return field, said

    fields, report = zip(*by_threads(of_view, parts), strict=True)
    return list(fields), list(report)
