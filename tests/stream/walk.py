"""A walk past a painted wall: frames with known cameras, and a model that knows them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from lean3r.models.base import Backbone
from lean3r.types import Prediction, Views

WIDTH, HEIGHT, FOCAL, DEPTH = 160, 112, 140.0, 4.0


def wall(seed: int = 0) -> np.ndarray:
    """A painted wall [H, W, 3] uint8, smooth enough to be tracked and with structure everywhere."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 255, (60, 1200, 3)).astype(np.float32)
    from PIL import Image

    painted = [
        Image.fromarray(fine[..., c].astype(np.uint8)).resize((6000, 300), Image.Resampling.BICUBIC) for c in range(3)
    ]
    return np.stack([np.asarray(each) for each in painted], -1)


PAINTED = wall()


def frame(x_m: float) -> np.ndarray:
    """What a camera sees that looks straight at the wall from DEPTH metres, `x_m` to the right of the start."""
    left = round(x_m * FOCAL / DEPTH) + 100
    return PAINTED[90 : 90 + HEIGHT, left : left + WIDTH]


def walk(count: int, step_m: float = 0.12) -> Iterator[tuple[float, np.ndarray]]:
    """Frames with times of a walk to the right."""
    for index in range(count):
        yield index / 10, frame(index * step_m)


class Knows(Backbone):
    """Finds the position of each picture on the wall by looking it up; every call has its own scale and origin."""

    name, patch, resolution, licence = "knows", 16, 128, "none"

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """The true cameras, scaled by a number that differs from call to call."""
        count, (height, width) = views.images.shape[1], views.images.shape[-2:]
        scale = 1.0 + 0.1 * (int(1000 * float(views.images[0, 0].mean())) % 7)
        xs = [_place(source.timestamp_s) for source in views.sources]
        poses = torch.eye(4).repeat(count, 1, 1)
        poses[:, 0, 3] = -scale * torch.tensor([x - xs[0] for x in xs])
        intrinsics = torch.eye(3).repeat(count, 1, 1)
        shrink = torch.tensor([source.original_from_network[0] for source in views.sources])
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = FOCAL / shrink
        intrinsics[:, 0, 2], intrinsics[:, 1, 2] = width / 2, height / 2
        depth = torch.full((count, height, width), scale * DEPTH)
        return Prediction(poses[None], intrinsics[None], depth[None], torch.ones_like(depth)[None] + 1)


def _place(timestamp_s: float | None) -> float:
    assert timestamp_s is not None
    return 1.2 * timestamp_s
