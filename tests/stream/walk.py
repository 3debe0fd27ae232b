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

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """The true cameras, scaled by a number that differs from call to call."""
        count, (height, width) = views.images.shape[1], views.images.shape[-2:]
        scale = 1.0 + 0.1 * (int(1000 * float(views.images[0, 0].mean())) % 7)
        xs = [self.place(source.timestamp_s) for source in views.sources]
        poses = torch.eye(4).repeat(count, 1, 1)
        poses[:, 0, 3] = -scale * torch.tensor([x - xs[0] for x in xs])
        intrinsics = torch.eye(3).repeat(count, 1, 1)
        shrink = torch.tensor([source.original_from_network[0] for source in views.sources])
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = FOCAL / shrink
        intrinsics[:, 0, 2], intrinsics[:, 1, 2] = width / 2, height / 2
        depth = torch.full((count, height, width), scale * DEPTH)
        return Prediction(poses[None], intrinsics[None], depth[None], torch.ones_like(depth)[None] + 1)

    def place(self, timestamp_s: float | None) -> float:
        """Metres to the right of the start at a time."""
        assert timestamp_s is not None
        return 1.2 * timestamp_s

    def appearance(self, views: Views) -> torch.Tensor:
        """A small picture of each picture."""
        return torch.nn.functional.adaptive_avg_pool2d(views.images[0], (4, 6)).flatten(1)


class Drifts(Knows):
    """Goes `there_s` seconds to the right and back again; what it finds bends to the side by `bend` radians a metre.

    Where `fooled`, pictures of different times in one call are taken for one place.
    """

    def __init__(self, there_s: float, bend: float = 0.0, *, fooled: bool = False) -> None:
        super().__init__()
        self.there_s, self.bend, self.fooled = there_s, bend, fooled

    def place(self, timestamp_s: float | None) -> float:
        """Metres to the right of the start at a time."""
        return super().place(self.there_s - abs((timestamp_s or 0.0) - self.there_s))

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """Cameras on a circle instead of a line, and the same depth."""
        found = super().forward(views, reference)
        poses = found.cam_from_world.clone()
        way = -poses[0, :, 0, 3].clone()
        if self.fooled:
            times = torch.tensor([source.timestamp_s for source in views.sources])
            late = torch.cummax((times.diff(prepend=times[:1]) > 3).long(), 0).values.bool()
            way = torch.where(late, way - way[late][:1].sum(), way)
        angle = self.bend * way.abs()
        c, s = torch.cos(angle), torch.sin(angle)
        poses[0, :, 0, 0], poses[0, :, 0, 2], poses[0, :, 2, 0], poses[0, :, 2, 2] = c, s, -s, c
        poses[0, :, 0, 3] = -c * way
        poses[0, :, 2, 3] = s * way
        return Prediction(poses, found.intrinsics, found.depth, found.conf)


class Looks(Knows):
    """Finds each picture on the wall, whenever it was taken."""

    name = "looks"

    def __init__(self) -> None:
        super().__init__()
        shown = [PAINTED[90 : 90 + HEIGHT, left + 8 : left + WIDTH - 8] for left in range(3000)]
        self.table = torch.stack([small(torch.from_numpy(each).permute(2, 0, 1) / 255) for each in shown])
        self.found: list[float] = []

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """See Knows."""
        at = torch.cdist(torch.stack([small(image) for image in views.images[0]]), self.table).argmin(1)
        self.found = [float((place - 100) * DEPTH / FOCAL) for place in at]
        return super().forward(views, reference)

    def place(self, timestamp_s: float | None) -> float:
        """Metres to the right of the start, of the next picture of this call."""
        return self.found.pop(0)


def small(image: torch.Tensor) -> torch.Tensor:
    """A picture [3, H, W] as 6 x 8 colours."""
    return torch.nn.functional.adaptive_avg_pool2d(image, (6, 8)).flatten()


def there_and_back(count: int, step_m: float = 0.12) -> Iterator[tuple[float, np.ndarray]]:
    """Frames with times of a walk to the right and back."""
    for index in range(2 * count - 1):
        yield index / 10, frame((count - 1 - abs(index - count + 1)) * step_m)
