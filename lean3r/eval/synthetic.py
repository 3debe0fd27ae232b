"""Scores of a model on scenes with exact truth: AUC of cameras, AbsRel of depth after one scale per scene."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.eval.pose_errors import auc_histogram, pair_indices, relative_pose_errors
from lean3r.geometry.pose import camera_centers
from lean3r.types import Prediction, Views

THRESHOLDS_DEG = (5, 15, 30)
SMALL_BASELINE = 0.05  # of the mean depth: nearer pairs have no reliable direction and are scored by rotation only

EDGE_STEP = 0.3  # of log depth between neighbouring pixels: a depth edge
NEAR, FAR = 3, 12  # pixels on each side of an edge

Predict = Callable[[Views], Prediction]
Scenes = Callable[[int, int, int], Iterable[SceneBatch]]


def validate(scenes_of: Scenes, sets: Iterable[tuple[int, int, int]], predict: Predict) -> dict[str, float]:
    """Figures of `score_scenes` for each row of `sets`: scenes_of(views, scenes per batch, scenes in total).

    Names end in the number of views; "auc30" without it is that of the last row."""
    figures, scores = dict[str, float](), dict[str, float]()
    for views, scenes, total in sets:
        scores = score_scenes(predict, scenes_of(views, scenes, total))
        figures |= {f"{name}_{views}": value for name, value in scores.items()}
    return figures | {"auc30": scores["auc30"]}


def score_scenes(predict: Predict, batches: Iterable[SceneBatch]) -> dict[str, float]:
    """Figures over all scenes.

    AUC in per cent over pooled pairs ("auc5", ...; "all_auc30" includes the direction of every pair); median errors in
    degrees (directions only of pairs that are far enough apart); AbsRel, focal error and the share of pairs nearer than
    SMALL_BASELINE in per cent. "edge3" and "edge12": share of a true depth step that the prediction reproduces within 3
    or 12 pixels, median over edges in per cent; "edge_seen": share of edges with at least half their step within 12
    pixels, in per cent; "edge3_seen": "edge3" of these edges."""
    pairs, every, rotation, translation, small_pairs, depth, focal = [], [], [], [], [], [], []
    edges: list[Tensor] = []
    for batch in batches:
        predicted = predict(Views(batch.images))
        for scene in range(batch.images.shape[0]):
            truth, ours = batch.cam_from_world[scene], predicted.cam_from_world[scene]
            known = batch.depth[scene] > 0
            errors = relative_pose_errors(ours, truth)
            small = baselines(truth) < SMALL_BASELINE * float(batch.depth[scene][known].mean())
            pairs.append(np.where(small, errors.rotation_deg, errors.pose_deg))
            every.append(errors.pose_deg)
            rotation.append(errors.rotation_deg)
            translation.append(errors.translation_deg[~small])
            small_pairs.append(small)
            if predicted.depth is not None and known.any():
                depth.append(abs_rel_one_scale(predicted.depth[scene], batch.depth[scene], known))
                edges.append(edge_shares(predicted.depth[scene], batch.depth[scene], known))
            ratio = predicted.intrinsics[scene, :, 0, 0] / batch.intrinsics[scene, :, 0, 0]
            focal.append(float((ratio.log().abs().exp() - 1).mean()))
    pooled = np.concatenate(pairs)
    figures = {f"auc{t}": 100 * auc_histogram(pooled, t) for t in THRESHOLDS_DEG}
    figures["all_auc30"] = 100 * auc_histogram(np.concatenate(every), 30)
    figures["rotation_deg"] = float(np.median(np.concatenate(rotation)))
    directions = np.concatenate(translation)
    figures["translation_deg"] = float(np.median(directions)) if directions.size else float("nan")
    if depth:
        figures["abs_rel"] = 100 * float(np.mean(depth))
        figures |= _edge_figures(torch.cat(edges))
    figures["small_baseline_pairs"] = 100 * float(np.concatenate(small_pairs).mean())
    figures["focal"] = 100 * float(np.mean(focal))
    return figures


def abs_rel_one_scale(pred: Tensor, gt: Tensor, known: Tensor) -> float:
    """Mean |s p - g| / g over known pixels of one scene [S, H, W], s the (lower) median of g / p."""
    p, g = pred[known].double(), gt[known].double()
    scale = torch.median(g / p)
    return float(((scale * p - g).abs() / g).mean())


def edge_shares(pred: Tensor, gt: Tensor, known: Tensor) -> Tensor:
    """Ratios [E, 2] of predicted to true steps of log depth, between NEAR (first) or FAR (second) pixels before and
    behind a depth edge.

    Edges are along rows and columns of [S, H, W]; those without a step at these distances (thin objects) are ignored.
    A ratio of 1 is as sharp as the truth, 0 is no edge.
    """
    ours, truth = pred.clamp_min(1e-9).log(), gt.clamp_min(1e-9).log()
    # The FAR, NEAR and last pixel before the edge, then the first, NEAR and FAR pixel behind it.
    places = [0, FAR - NEAR, FAR - 1, FAR, FAR + NEAR - 1, 2 * FAR - 1]
    shares = [truth.new_zeros(0, 2)]
    for axis in (-1, -2):
        if truth.shape[axis] < 2 * FAR:
            continue
        p, g, k = (t.unfold(axis, 2 * FAR, 1)[..., places] for t in (ours, truth, known))
        steps = torch.stack([g[..., 4] - g[..., 1], g[..., 5] - g[..., 0]], dim=-1)
        predicted = torch.stack([p[..., 4] - p[..., 1], p[..., 5] - p[..., 0]], dim=-1)
        edge = (g[..., 3] - g[..., 2]).abs() > EDGE_STEP
        shares.append((predicted / steps)[k.all(-1) & edge & (steps.abs() > EDGE_STEP).all(-1)])
    return torch.cat(shares)


def _edge_figures(shares: Tensor) -> dict[str, float]:
    """Figures in per cent of edge shares [E, 2]; NaN without any edge."""
    seen = shares[shares[:, 1] >= 0.5]
    return {
        "edge3": 100 * float(shares[:, 0].nanmedian()),
        "edge12": 100 * float(shares[:, 1].nanmedian()),
        "edge_seen": 100 * len(seen) / max(len(shares), 1),
        "edge3_seen": 100 * float(seen[:, 0].nanmedian()),
    }


def baselines(cam_from_world: Tensor) -> np.ndarray:
    """Distance [P] between the centres of all pairs i < j of cameras [S, 4, 4], in world units."""
    centers = camera_centers(cam_from_world.double())
    i, j = pair_indices(centers.shape[0]).T
    return torch.linalg.vector_norm(centers[i] - centers[j], dim=-1).cpu().numpy()
