"""How far away cameras look, by nothing but their poses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lean3r.errors import InputError
from lean3r.geometry.pose import camera_centers

PARALLEL_RAD = math.radians(3.0)  # axes closer than this to each other meet anywhere
PARALLAX = 0.15  # assumed distance of neighbouring cameras over depth if their axes do not meet
IN_FRONT = 0.8  # share of the views that must have the point where their axes meet in front of them
NEAREST = 0.2  # of the median depth: nearer is no depth of a view
ALONE = 20.0  # times the usual step to the next camera: such a camera looks elsewhere


def distances(cam_from_world: Tensor) -> Tensor:
    """How far away S cameras [S, 4, 4] look: [S] z-depths; InputError if all cameras are in one place."""
    poses = cam_from_world.double()
    centres, axes = camera_centers(poses), poses[:, 2, :3]
    nearest = torch.cdist(centres, centres).fill_diagonal_(math.inf).amin(1)
    steps = nearest[nearest > 0]
    if not len(steps):
        raise InputError("all known cameras are in one place: without parallax, stereo measures nothing.")
    others = nearest <= ALONE * steps.median()
    across = torch.eye(3, dtype=poses.dtype, device=poses.device) - axes[:, :, None] * axes[:, None]
    across = torch.where(others[:, None, None], across, 0.0)
    if torch.linalg.eigvalsh(across.sum(0) / others.sum())[0] > math.sin(PARALLEL_RAD) ** 2:
        meeting = torch.linalg.solve(across.sum(0), (across @ centres[..., None]).sum(0))
        depth = (poses[:, 2, :3] @ meeting)[:, 0] + poses[:, 2, 3]
        if (depth[others] > 0).double().mean() >= IN_FRONT:
            usual = depth[others & (depth > 0)].median()
            return torch.where(depth > NEAREST * usual, depth, usual)
    return (steps.median() / PARALLAX).expand(len(poses))
