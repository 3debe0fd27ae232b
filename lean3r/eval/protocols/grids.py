"""Predicted and true depth on one grid: the pixels of the predicted map, where the truth is its nearest pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lean3r.data.sets.formats.maps import zero_unknown
from lean3r.data.sets.scenes import RawView
from lean3r.eval.predicted.base import Predicted
from lean3r.eval.protocols.base import AbsentPart
from lean3r.geometry.camera import unproject
from lean3r.geometry.pose import invert_pose, transform_points


class DepthPair(NamedTuple):
    """Depth [h, w] float64 of one view, 0 where unknown, and intrinsics [3, 3] in pixels of this grid (predicted ones
    are the true ones where the program states none)."""

    pred: np.ndarray
    gt: np.ndarray
    pred_intrinsics: np.ndarray
    gt_intrinsics: np.ndarray


def depth_pairs(predicted: Predicted, views: tuple[RawView, ...]) -> list[DepthPair]:
    """A pair for each view; AbsentPart if nothing was predicted."""
    if predicted.depth is None:
        raise AbsentPart("no depth, which this benchmark scores")
    pairs = []
    for number, (view, depth) in enumerate(zip(views, predicted.depth, strict=True)):
        height, width = view.depth.shape
        rows, columns = depth.shape
        places = predicted.original_from_depth
        sx, sy, ox, oy = (width / columns, height / rows, 0.0, 0.0) if places is None else places[number]
        x = np.floor(sx * (np.arange(columns) + 0.5) + ox).astype(int)
        y = np.floor(sy * (np.arange(rows) + 0.5) + oy).astype(int)
        inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
        truth = zero_unknown(view.depth)[0][y.clip(0, height - 1)[:, None], x.clip(0, width - 1)]
        grid_from_original = np.array([[1 / sx, 0, -ox / sx], [0, 1 / sy, -oy / sy], [0, 0, 1.0]])
        true_k = grid_from_original @ view.intrinsics
        given = predicted.intrinsics
        known_k = true_k if given is None else grid_from_original @ given[number]
        pairs.append(
            DepthPair(depth.astype(np.float64), np.where(inside, truth, 0).astype(np.float64), known_k, true_k)
        )
    return pairs


def point_maps(
    pairs: list[DepthPair], predicted: Predicted, views: tuple[RawView, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true points [N, 3] of the pixels where both depths are known, each in its own world;
    AbsentPart if there is none."""
    if predicted.cam_from_world is None:
        raise AbsentPart("no cameras, which this benchmark needs to place points")
    ours, truth = [], []
    for pair, pose, view in zip(pairs, predicted.cam_from_world, views, strict=True):
        known = (pair.gt > 0) & np.isfinite(pair.pred) & (pair.pred > 0) & np.isfinite(pose).all()
        ours.append(_points(pair.pred, pair.pred_intrinsics, pose)[known])
        truth.append(_points(pair.gt, pair.gt_intrinsics, view.cam_from_world)[known])
    if not sum(map(len, ours)):
        raise AbsentPart("no pixel has both a predicted and a true depth")
    return np.concatenate(ours), np.concatenate(truth)


def _points(depth: np.ndarray, intrinsics: np.ndarray, cam_from_world: np.ndarray) -> np.ndarray:
    k, pose = torch.from_numpy(intrinsics), torch.from_numpy(cam_from_world)
    return transform_points(invert_pose(pose), unproject(torch.from_numpy(depth), k)).numpy()
