"""The model `none`: no network; known cameras, and where stereo may look for depth."""

from __future__ import annotations

import torch
from torch import nn

from lean3r.errors import UsageError
from lean3r.geometry.gaze import distances
from lean3r.models.base import Backbone, check_views
from lean3r.models.origin import Origin
from lean3r.types import Prediction, TokenLayout, Tokens, Views

NEEDS = (
    "without a network (--model none) the intrinsics and the pose of every view must be known{}. "
    "Give them with --cameras, or use a network"
)
FEW_SHOWN = 3


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

    def __init__(self) -> None:
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
            lacking.append(f"the {what} of {', '.join(without[:FEW_SHOWN])}{more}")
    if lacking:
        raise UsageError(NEEDS.format(f"; missing: {', and '.join(lacking)}"))
    if count < 2:
        raise UsageError("without a network (--model none) depth is measured between pictures; give two or more.")
