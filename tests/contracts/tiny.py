"""The smallest sizes of every backbone: a new row of MODELS needs a line in TINY."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.da3 import Da3Config
from lean3r.models.da3_mono import Da3MonoConfig
from lean3r.models.vggt import Vggt

DPT = {"features": 16, "channels": (8, 8, 8, 8), "grid": 4}
DA3 = {"width": 64, "depth": 6, "heads": 4, "alternate": 2, "keep": (2, 3, 4, 5), **DPT}
MONO = {"width": 32, "depth": 4, "heads": 2, "keep": (0, 1, 2, 3), **DPT}
PI3 = {"width": 32, "heads": 2, "encoder_depth": 1, "depth": 4, "grid": 4, "camera_width": 16}
TRACK = {"track_features": 16, "track_levels": 2, "track_radius": 1, "track_hidden": 48}

TINY: dict[str, dict[str, Any]] = {
    "nano": {"width": 32, "heads": 2, "pairs": 2},
    "nano-looped": {"width": 32, "heads": 2},
    "vggt": {"width": 32, "heads": 2, "encoder_depth": 1, "pairs": 4, "keep": (0, 1, 2, 3), **DPT, **TRACK},
    "da3-small": DA3,
    "da3-base": DA3,
    "da3-large": DA3,
    "da3-giant": DA3,
    "da3mono-large": MONO,
    "da3metric-large": MONO,
    "da3nested-giant-large": {"main": Da3Config(**DA3), "metric": Da3MonoConfig(**MONO)},
    "pi3": PI3,
    "pi3x": {**PI3, "conv_widths": (32, 16), "conv_last": 8, "metric_width": 32, "metric_heads": 2},
    # Fewer windows than top_k would count the last view's several times, as the release does.
    "speed3r-pi3": {**PI3, "window": 2, "top_k": 2},
}
"""Row of MODELS -> fields of its config in the smallest size that has every part."""


def tiny_config(name: str) -> Any:
    """The config of a model in its smallest size."""
    assert name in TINY, f"{name} has no small size: add a line for it to TINY, tests/contracts/tiny.py"
    return type(MODELS.get(name).SIZES[name])(**TINY[name])


@cache
def tiny(name: str) -> Backbone:
    """A small random model; large layer scales, so that every branch shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS.get(name)(tiny_config(name))
        for key, parameter in model.named_parameters():
            if key.endswith("gamma"):
                torch.nn.init.uniform_(parameter, 0.2, 0.6)
        if isinstance(model, Vggt):
            # Angles of view near 1 rad, as trained ones are: the head cuts off negative ones at 0.
            model.camera.pose_branch.fc2.bias.data[7:] = 0.25
            torch.nn.init.normal_(model.camera.pose_branch.fc2.weight, std=0.01)
    return model.eval()
