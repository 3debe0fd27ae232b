"""Score of a predictor that ignores the pictures: a model must be better than this baseline."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lean3r.eval.pose_errors import auc_histogram, pose_pair_errors
from lean3r.geometry.pose import invert_pose, make_pose

# Candidate directions of the constant motion: axes, edges and corners of a cube, one of each opposite pair.
DIRECTIONS = [(x, y, z) for x, y, z in itertools.product((-1.0, 0.0, 1.0), repeat=3) if (x, y, z) > (0.0, 0.0, 0.0)]


def constant_motion(views: int, direction: tuple[float, float, float]) -> Tensor:
    """cam_from_world [S, 4, 4] of cameras that move by `direction` from view to view, without rotation."""
    centers = torch.arange(views, dtype=torch.float64)[:, None] * torch.tensor(direction, dtype=torch.float64)
    return invert_pose(make_pose(torch.eye(3, dtype=torch.float64).expand(views, 3, 3), centers))


def best_constant_motion(truth: list[Tensor], small_baselines: Sequence[float | None]) -> tuple[float, float, float]:
    """The direction with the highest AUC@30 over these scenes [S, 4, 4]. It is chosen with the truth, so that the
    baseline is as strong as a constant can be. Lengths are as in `pose_pair_errors`."""

    def score(direction: tuple[float, float, float]) -> float:
        errors = [
            torch.from_numpy(pose_pair_errors(constant_motion(len(t), direction), t, small))
            for t, small in zip(truth, small_baselines, strict=True)
        ]
        return auc_histogram(torch.cat(errors).numpy(), 30)

    return max(DIRECTIONS, key=score)
