"""Measures of depth and points: one scale for a scene, video depth, point maps, clouds, Lite3R's pairs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from lean3r.data.base import SceneBatch
from lean3r.data.sampling.lite3r import in_unit
from lean3r.data.sets.formats.maps import zero_unknown
from lean3r.data.sets.scenes import RawView
from lean3r.errors import InputError
from lean3r.eval.depth_errors import depth_score, video_depth_score
from lean3r.eval.lite3r import lite3r_score
from lean3r.eval.point_protocols import da3_cloud_score, mv_recon_score
from lean3r.eval.predicted.base import Predicted
from lean3r.eval.protocols.base import AbsentPart, Measure, Score
from lean3r.eval.protocols.cameras import poses_of
from lean3r.eval.protocols.grids import depth_pairs, point_maps
from lean3r.eval.protocols.items import Item
from lean3r.eval.trajectory import fit_trajectory
from lean3r.types import Prediction

ALIGNMENTS = {"": "scale", "_shift": "scale_shift_lad2", "_metric": "metric"}


def one_scale(predicted: Predicted, item: Item, views: tuple[RawView, ...]) -> Score:
    """AbsRel and delta < 1.25 in per cent, after one scale for the scene: the median ratio of known pixels. The true
    depth counts, at its own pixels, so that maps of any size are scored alike. Predictions that are unknown there are
    counted in `depth_missing`, and not scored."""
    if predicted.depth is None:
        raise AbsentPart("no depth, which this benchmark scores")
    truth = [zero_unknown(view.depth)[0] for view in views]
    ours = [predicted.depth_at(number, *depth.shape) for number, depth in enumerate(truth)]
    gt = np.concatenate([depth[depth > 0] for depth in truth]).astype(np.float64)
    pred = np.concatenate([mine[depth > 0] for mine, depth in zip(ours, truth, strict=True)]).astype(np.float64)
    known, given = gt > 0, pred > 0
    missing = {"depth_missing": 100 * float((known & ~given).sum() / known.sum())} if known.any() else {}
    if not (known & given).any():
        raise AbsentPart("no pixel has both a predicted and a true depth", **missing)
    p, g = (torch.from_numpy(values[known & given]) for values in (pred, gt))
    score = depth_score(p * torch.median(g / p), g)
    return Score({"abs_rel": 100 * score.abs_rel, "delta1": 100 * score.delta1} | missing)


def _video_depth(predicted: Predicted, item: Item, views: tuple[RawView, ...], setting: str) -> Score:
    if predicted.depth is None:
        raise AbsentPart("no depth, which this benchmark scores")
    shapes = [view.depth.shape for view in views]
    ours = torch.stack([torch.from_numpy(predicted.depth_at(n, h, w, "bicubic")) for n, (h, w) in enumerate(shapes)])
    truth = torch.from_numpy(np.stack([zero_unknown(view.depth)[0] for view in views]))
    figures, weight = {}, 0.0
    for suffix, alignment in ALIGNMENTS.items():
        score = video_depth_score(ours, truth, setting, alignment)
        weight = score.valid_pixels
        figures |= {f"abs_rel{suffix}": 100 * score.abs_rel, f"delta1{suffix}": 100 * score.delta1}
    if not weight:
        raise InputError(f"no pixel of {item.id} has a true depth that the setting {setting} scores")
    if not (ours[truth > 0] > 0).any():
        raise AbsentPart("no pixel has both a predicted and a true depth")
    return Score(figures, weight=weight)


def video_depth(setting: str) -> Measure:
    """AbsRel and delta < 1.25 of all frames together in per cent: after one scale (no suffix), scale and shift
    (`_shift`), and as they are (`_metric`); `setting` is a row of VIDEO_DEPTH_SETTINGS."""
    return partial(_video_depth, setting=setting)


def _surfaces(predicted: Predicted, item: Item, views: tuple[RawView, ...], icp_distance: float) -> Score:
    ours, truth = point_maps(depth_pairs(predicted, views), predicted, views)
    score = mv_recon_score(ours, truth, np.ones(len(ours), bool), icp_distance)
    nc, nc_med = (score.nc1 + score.nc2) / 2, (score.nc1_med + score.nc2_med) / 2
    figures = {"acc": score.acc, "acc_med": score.acc_med, "comp": score.comp, "comp_med": score.comp_med}
    return Score(figures | {"nc": nc, "nc_med": nc_med})


def surfaces(icp_distance: float = 0.1) -> Measure:
    """Accuracy, completeness, normal consistency of point maps as in Pi3's mv_recon: a similarity, then ICP."""
    return partial(_surfaces, icp_distance=icp_distance)


def _clouds(predicted: Predicted, item: Item, views: tuple[RawView, ...], threshold: float, voxel: float) -> Score:
    truth = item.cloud()
    if truth is None:
        return Score({})
    ours, gt = poses_of(predicted, views)
    finite = ours.isfinite().all(-1).all(-1)
    cloud = predicted.cloud
    if cloud is None:
        cloud = point_maps(depth_pairs(predicted, views), predicted, views)[0]
    if not len(cloud):
        raise AbsentPart("no points in the cloud, which this benchmark scores")
    placed = fit_trajectory(ours[finite], gt[finite]).apply(torch.from_numpy(cloud)).numpy()
    score = da3_cloud_score(placed, truth, threshold, voxel)
    return Score(
        {
            "overall": score.overall,
            "precision": 100 * score.precision,
            "recall": 100 * score.recall,
            "fscore": 100 * score.fscore,
        }
    )


def clouds(threshold: float, voxel: float) -> Measure:
    """F-score and mean distance of the cloud to the true one, aligned by the cameras; no figures without a true one."""
    return partial(_clouds, threshold=threshold, voxel=voxel)


def _lite3r(predicted: Predicted, item: Item, views: tuple[RawView, ...], protocol: str) -> Score:
    ours, _ = poses_of(predicted, views)
    depth = torch.zeros(len(views), *views[0].depth.shape)
    if predicted.depth is not None:
        height, width = views[0].depth.shape
        maps = [predicted.depth_at(n, height, width, "bilinear") for n in range(len(views))]
        depth = torch.from_numpy(np.stack(maps))
    true_k = torch.from_numpy(np.stack([view.intrinsics for view in views]))
    k = true_k if predicted.intrinsics is None else torch.from_numpy(predicted.intrinsics)
    truth = SceneBatch(
        images=torch.from_numpy(np.stack([view.image for view in views])).movedim(-1, 1)[None],
        depth=torch.from_numpy(np.stack([view.depth for view in views]))[None],
        intrinsics=true_k[None],
        cam_from_world=torch.from_numpy(np.stack([view.cam_from_world for view in views]))[None],
    )
    prediction = Prediction(ours[None], k[None], depth[None], None)
    figures = lite3r_score(prediction, in_unit(truth, relative=False), protocol)
    if predicted.depth is None and truth.depth.any():
        poses = {name: figures[name] for name in ("rot_err_deg", "trans_err")}
        raise AbsentPart("no depth, which this benchmark scores", **poses)
    return Score(figures)


def lite3r(protocol: str) -> Measure:
    """The figures of Lite3R's evaluation, in its units: abs_rel and delta1 are shares, not per cent."""
    return partial(_lite3r, protocol=protocol)
