"""The outputs by which a calibration compares models (compress/calibrate.py)."""

from __future__ import annotations

from torch import Tensor

from lean3r.models.base import Backbone
from lean3r.pipeline.predict import predict
from lean3r.types import Views


def outputs_of(model: Backbone, views: Views) -> list[Tensor]:
    """Rotations [B, S, 3, 3], translations [B, S, 3] and, if there is depth, its logarithm [B, S, H, W]."""
    found = predict(model, views)
    cameras = [found.cam_from_world[..., :3, :3], found.cam_from_world[..., :3, 3]]
    return cameras if found.depth is None else [*cameras, found.depth.clamp_min(1e-6).log()]
