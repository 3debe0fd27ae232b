"""eval_*: scores of stored predictions, and their means."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from lean3r.data.base import SceneBatch
from lean3r.eval.lite3r import lite3r_score, mean_scores
from lean3r.geometry.camera import world_points
from lean3r.geometry.pose_encoding import decode_intrinsics, decode_pose
from lean3r.types import Prediction
from lite3r_cases import Golden, compare

LIMIT = 1e-4


def sample_of(case: Golden, prefix: str) -> tuple[Prediction, SceneBatch]:
    """Prediction and truth of a sample; the files count pixels from the centre of the first one."""
    given = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in case.arrays.items() if k.startswith(prefix)}
    depth, mask = given["pred_depth"], given["mask"].bool()
    true_k = given["gt_intrinsics"].clone()
    true_k[..., :2, 2] += 0.5
    images = torch.zeros(*depth.shape[:2], 3, *depth.shape[2:])
    truth = SceneBatch(images, given["gt_depth"] * mask, true_k, given["gt_extrinsics"])
    points = world_points(truth.depth, true_k, truth.cam_from_world)[0].where(mask[0, ..., None], 0.0)
    compare(points, given["world_points"].numpy(), LIMIT, "true points")
    if "pred_pose_enc" in given:
        encoding = given["pred_pose_enc"]
        return Prediction(decode_pose(encoding), decode_intrinsics(encoding, *depth.shape[-2:]), depth, None), truth
    last = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(*depth.shape[:2], 1, 4)
    return Prediction(torch.cat([given["pred_extrinsics"], last], -2), true_k, depth, None), truth


def check_eval(path: Path) -> None:
    """All samples and their means; Depth Anything 3 by the transform of the release."""
    case = Golden(path)
    backbone = case.settings["backbone"]
    count = sum(name.startswith("in.") and name.endswith(".mask") for name in case.arrays)
    pairs = [sample_of(case, f"in.{n}.") for n in range(count)]
    scores = [lite3r_score(*pair, "vggt" if backbone == "vggt" else "da3-as-released") for pair in pairs]
    for n, score in enumerate(scores):
        check_figures(score, case, f"out.{n}.")
    check_figures(mean_scores(scores), case, "out.mean.")
    if backbone == "da3":
        correct = mean_scores([lite3r_score(*pair, "da3") for pair in pairs])
        assert correct["chamfer"] < case["out.mean.chamfer"] / 4, "moved by the correct transform"


def check_figures(found: dict[str, float], case: Golden, prefix: str) -> None:
    """The same figures, no more, no less, with the same values."""
    wanted = {k.removeprefix(prefix): float(v) for k, v in case.arrays.items() if k.startswith(prefix)}
    assert found.keys() == wanted.keys(), prefix
    for name, value in wanted.items():
        assert math.isnan(value) == math.isnan(found[name]), name
        compare(found[name], np.asarray(value), LIMIT, prefix + name)


CASES = {"eval_": check_eval}
