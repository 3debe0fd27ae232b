"""The model `none`: no network; known cameras, and where stereo may look for depth."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lean3r.errors import InputError, UsageError
from lean3r.geometry.pose import camera_centers
from lean3r.models.base import Backbone, check_views
from lean3r.models.origin import Origin
from lean3r.types import Prediction, TokenLayout, Tokens, Views

PARALLEL_RAD = math.radians(3.0)  # axes closer than this to each other meet anywhere
PARALLAX = 0.15  # assumed distance of neighbouring cameras over depth if their axes do not meet
IN_FRONT = 0.8  # share of the views that must have the point where their axes meet in front of them
NEAREST = 0.2  # of the median depth: nearer is no depth of a view
NEEDS = (
    "without a network (--model none) the intrinsics and the pose of every view must be known{}. "
    "Give them with --cameras, or use a network"
)
FEW_SHOWN = 3


class NoConfig(NamedTuple):
    """There is nothing to configure."""


class NoNetwork(Backbone):
    """The known cameras of two or more views, and one distance for each view: that of the point nearest to all optical
    axes; where they do not meet, a multiple of the distance between neighbouring cameras.

    UsageError if a camera is not known, or if there is one view; InputError if all cameras are in one place.
    """

    name = "none"
    patch = 8
    resolution = 280
    licence = "none"
    ACCEPTS = frozenset({"intrinsics", "cam_from_world"})
    ACCEPTS_WHOLE = True
    SEES = False
    SIZES = {"none": NoConfig()}
    SMALLEST = NoConfig()

    def __init__(self, config: NoConfig = SMALLEST) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(0), requires_grad=False)  # says on which device the model is
        self.origin = Origin("none", why_dtype="no network")

    def encode(self, views: Views) -> Tokens:
        """The views themselves."""
        check_views(views, self.patch)
        _check_all_known(views)
        count, (height, width) = views.images.shape[1], views.images.shape[-2:]
        return Tokens({}, TokenLayout(count, 0, height // self.patch, width // self.patch), views)

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """The known cameras; depth is where to look, with a confidence of 1."""
        known = tokens.views.known
        assert known is not None and known.cam_from_world is not None and known.intrinsics is not None
        poses, intrinsics = known.cam_from_world, known.intrinsics
        if not dense:
            return Prediction(poses, intrinsics, None, None)
        maps = torch.ones_like(tokens.views.images[:, :, 0])
        distance = torch.stack([distances(scene) for scene in poses]).to(maps)
        return Prediction(poses, intrinsics, distance[..., None, None] * maps, maps)


def distances(cam_from_world: Tensor) -> Tensor:
    """How far away S cameras [S, 4, 4] look: [S] z-depths; InputError if all cameras are in one place."""
    poses = cam_from_world.double()
    centres, axes = camera_centers(poses), poses[:, 2, :3]
    steps = torch.cdist(centres, centres).fill_diagonal_(math.inf).amin(1)
    steps = steps[steps > 0]
    if not len(steps):
        raise InputError("all known cameras are in one place: without parallax, stereo measures nothing.")
    across = torch.eye(3, dtype=poses.dtype, device=poses.device) - axes[:, :, None] * axes[:, None]
    if torch.linalg.eigvalsh(across.mean(0))[0] > math.sin(PARALLEL_RAD) ** 2:
        meeting = torch.linalg.solve(across.sum(0), (across @ centres[..., None]).sum(0))
        depth = (poses[:, 2, :3] @ meeting)[:, 0] + poses[:, 2, 3]
        if (depth > 0).double().mean() >= IN_FRONT:
            usual = depth[depth > 0].median()
            return torch.where(depth > NEAREST * usual, depth, usual)
    return (steps.median() / PARALLAX).expand(len(poses))


def _check_all_known(views: Views) -> None:
    """UsageError that says which views of a scene lack what."""
    batch, count = views.images.shape[:2]
    names = [source.name for source in views.sources] or [f"view {number}" for number in range(count)]
    known, lacking = views.known, []
    for what, part, table in (("intrinsics", "intrinsics", "has_intrinsics"), ("pose", "cam_from_world", "has_pose")):
        has = torch.zeros(batch, count, dtype=torch.bool)
        if known is not None and getattr(known, part) is not None:
            stated = getattr(known, table)
            has = torch.ones_like(has) if stated is None else stated.cpu()
        without = [name for name, there in zip(names, has.all(0).tolist(), strict=True) if not there]
        if without:
            more = f" and {len(without) - FEW_SHOWN} more" if len(without) > FEW_SHOWN else ""
            lacking.append(f"no {what} of {', '.join(without[:FEW_SHOWN])}{more}")
    if lacking:
        raise UsageError(NEEDS.format(f"; there is {', and '.join(lacking)}"))
    if count < 2:
        raise UsageError("without a network (--model none) depth is measured between pictures; give two or more.")
