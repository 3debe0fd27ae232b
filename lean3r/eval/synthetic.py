"""Judge a model on scenes whose truth is exact: cameras by AUC, depth by AbsRel after one scale per scene."""

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
SMALL_BASELINE = 0.05  # of the mean depth: nearer pairs have no reliable direction and count by rotation alone

Predict = Callable[[Views], Prediction]


def score_scenes(predict: Predict, batches: Iterable[SceneBatch]) -> dict[str, float]:
    """Figures over all scenes: AUC in per cent over pooled pairs ("auc5", ..., and "all_auc30" with the
    direction of every pair counted), median errors in degrees (directions of far enough pairs only), AbsRel,
    focal error and the share of pairs nearer than SMALL_BASELINE in per cent."""
    pairs, every, rotation, translation, small_pairs, depth, focal = [], [], [], [], [], [], []
    for batch in batches:
        found = predict(Views(batch.images))
        for scene in range(batch.images.shape[0]):
            truth, ours = batch.cam_from_world[scene], found.cam_from_world[scene]
            known = batch.depth[scene] > 0
            errors = relative_pose_errors(ours, truth)
            small = baselines(truth) < SMALL_BASELINE * float(batch.depth[scene][known].mean())
            pairs.append(np.where(small, errors.rotation_deg, errors.pose_deg))
            every.append(errors.pose_deg)
            rotation.append(errors.rotation_deg)
            translation.append(errors.translation_deg[~small])
            small_pairs.append(small)
            if found.depth is not None:
                depth.append(abs_rel_one_scale(found.depth[scene], batch.depth[scene], known))
            ratio = found.intrinsics[scene, :, 0, 0] / batch.intrinsics[scene, :, 0, 0]
            focal.append(float((ratio.log().abs().exp() - 1).mean()))
    pooled = np.concatenate(pairs)
    figures = {f"auc{t}": 100 * auc_histogram(pooled, t) for t in THRESHOLDS_DEG}
    figures["all_auc30"] = 100 * auc_histogram(np.concatenate(every), 30)
    figures["rotation_deg"] = float(np.median(np.concatenate(rotation)))
    directions = np.concatenate(translation)
    figures["translation_deg"] = float(np.median(directions)) if directions.size else float("nan")
    if depth:
        figures["abs_rel"] = 100 * float(np.mean(depth))
    figures["small_baseline_pairs"] = 100 * float(np.concatenate(small_pairs).mean())
    figures["focal"] = 100 * float(np.mean(focal))
    return figures


def abs_rel_one_scale(pred: Tensor, gt: Tensor, known: Tensor) -> float:
    """Mean |s p - g| / g over known pixels of one scene [S, H, W], s the median of g / p (lower of two)."""
    p, g = pred[known].double(), gt[known].double()
    scale = torch.median(g / p)
    return float(((scale * p - g).abs() / g).mean())


def baselines(cam_from_world: Tensor) -> np.ndarray:
    """Distance [P] between the centres of all pairs i < j of cameras [S, 4, 4], in world units."""
    centers = camera_centers(cam_from_world.double())
    i, j = pair_indices(centers.shape[0]).T
    return torch.linalg.vector_norm(centers[i] - centers[j], dim=-1).cpu().numpy()
