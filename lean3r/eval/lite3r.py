"""Lite3R's evaluation: depth, cameras and points of pairs of pictures, in the unit of length of the sample.

Source: Zhang et al. 2026, "Lite3R", its released evaluation scripts. Predictions come first, scores after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lean3r.data.base import SceneBatch
from lean3r.data.sampling.lite3r import HELD_OUT, Pairs, in_unit
from lean3r.errors import InputError, UsageError
from lean3r.eval.depth_errors import lite3r_depth_score
from lean3r.eval.point_errors import fscore, nearest
from lean3r.eval.pose_errors import lite3r_pose_errors
from lean3r.geometry.camera import unproject
from lean3r.geometry.pose import invert_pose, transform_points
from lean3r.types import Prediction, Views

PROTOCOLS = ("vggt", "da3", "da3-as-released")
MOST_POINTS = 50_000
FSCORE_AT = 0.05


def lite3r_evaluation(
    predict: Callable[[Views], Prediction], pairs: Pairs, protocol: str, *, size: int = 518, most: int = HELD_OUT
) -> list[dict[str, float]]:
    """`lite3r_score` of a pair of pictures, size x size, from each of the first `most` scenes; see `mean_scores`.

    The release's samples are those of `Pairs(sets, part="all", order=None, as_released=True)`, which it also trains on;
    with part="test" they are of scenes that recipes leave out. InputError if a sample cannot be read.
    """
    scores = []
    for number in range(min(most, len(pairs))):
        batch = pairs.sample(*pairs.draw(number, 2), size, size)
        with torch.no_grad():
            prediction = predict(Views(batch.images))
        scores.append(lite3r_score(prediction, in_unit(batch, relative=False), protocol))
    return scores


def lite3r_score(prediction: Prediction, truth: SceneBatch, protocol: str) -> dict[str, float]:
    """Figures of a sample of one scene: abs_rel, rmse, delta1 to delta3, rot_err_deg, trans_err, chamfer, fscore_5cm.

    Depth figures are NaN with fewer than 100 known pixels; without any the last two are absent. Points of the
    prediction are those of all its pixels, without confidence, mask or alignment; those of the truth are in the frame
    of its first view. `protocol` says where predicted points are:

    - "vggt": by predicted intrinsics and poses in the predicted world;
    - "da3": by true intrinsics and predicted poses in the frame of the first predicted view;
    - "da3-as-released": the same with the poses taken for their inverses, as in the release, which misplaces every
      view but the first by about twice its motion.

    UsageError for another protocol or more than one scene, InputError if the model predicts no depth.
    """
    if protocol not in PROTOCOLS or len(truth.depth) != 1:
        raise UsageError(
            f"Lite3R's score of {len(truth.depth)} scenes by the protocol {protocol!r}; expected one scene and one of "
            f"{', '.join(PROTOCOLS)}"
        )
    if prediction.depth is None:
        raise InputError("the model predicts no depth, which Lite3R's evaluation needs; use another model")
    known = truth.depth[0] > 0
    ours, theirs = (x.cam_from_world[0].double().cpu() for x in (prediction, truth))
    rotation_deg, translation = lite3r_pose_errors(ours @ invert_pose(ours[:1]), theirs @ invert_pose(theirs[:1]))
    depth = prediction.depth[0].double().cpu()
    figures = lite3r_depth_score(depth, truth.depth[0].cpu(), known.cpu())
    figures |= {"rot_err_deg": rotation_deg, "trans_err": translation}
    if not known.any():
        return figures
    true_intrinsics = truth.intrinsics[0].double().cpu()
    world = transform_points(invert_pose(theirs), unproject(truth.depth[0].double().cpu(), true_intrinsics))
    target = transform_points(theirs[0], world[known.cpu()])
    if protocol == "vggt":
        intrinsics = prediction.intrinsics[0].double().cpu()
        intrinsics[:, :2, 2] += 0.5  # the release takes the centre of the first pixel for the origin
        place = invert_pose(ours)
    else:
        intrinsics = true_intrinsics
        place = ours[:1] @ invert_pose(ours) if protocol == "da3" else invert_pose(ours[:1]) @ ours
    cloud = transform_points(place, unproject(depth, intrinsics)).reshape(-1, 3)
    return figures | cloud_figures(cloud, target)


def cloud_figures(pred: Tensor, gt: Tensor) -> dict[str, float]:
    """Chamfer distance (half the sum of mean squared distances) and F-score of clouds [N, 3], of at most MOST_POINTS
    random points of each; NaN if a predicted point is not finite."""
    rng = np.random.default_rng(0)
    a, b = (x.numpy()[rng.permutation(len(x))[:MOST_POINTS]] for x in (pred, gt))
    if not np.isfinite(a).all():
        return {"chamfer": math.nan, "fscore_5cm": math.nan}
    there, back = nearest(a, b)[0], nearest(b, a)[0]
    chamfer = float((there**2).mean() + (back**2).mean()) / 2
    return {"chamfer": chamfer, "fscore_5cm": fscore(there, back, FSCORE_AT).fscore}


def mean_scores(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every figure over the samples that have it and where it is not NaN; NaN if there is none."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    values = {name: torch.tensor([s[name] for s in samples if name in s], dtype=torch.float64) for name in names}
    return {name: column.nanmean().item() for name, column in values.items()}
