"""Every backbone in the smallest size that it declares."""

from __future__ import annotations

from functools import cache

import torch

from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.vggt import Vggt


@cache
def tiny(name: str) -> Backbone:
    """A small random model; large layer scales, so that every branch shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = MODELS.get(name)
        model = kind(kind.SMALLEST)
        for key, parameter in model.named_parameters():
            if key.endswith("gamma"):
                torch.nn.init.uniform_(parameter, 0.2, 0.6)
        if isinstance(model, Vggt):
            # Angles of view near 1 rad, as trained ones are: the head cuts off negative ones at 0.
            model.camera.pose_branch.fc2.bias.data[7:] = 0.25
            torch.nn.init.normal_(model.camera.pose_branch.fc2.weight, std=0.01)
    return model.eval()
