"""A prediction of the network as plain arrays, and as a scene without any judgement of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lean3r.errors import LeanError
from lean3r.pipeline.trust import no_points
from lean3r.types import Prediction, Reconstruction, Source, Views


def scene_of(prediction: Prediction, views: Views) -> Reconstruction:
    """What the network says of every pixel: without points, and with the sky and whatever shows nothing."""
    images, mask = pictures_of(views)
    return Reconstruction(
        sources=views.sources or default_sources(views),
        images=images,
        mask=mask,
        depth=array_of(prediction.depth, np.float32),
        conf=array_of(prediction.conf, np.float32),
        cam_from_world=array_of(prediction.cam_from_world, np.float64),
        intrinsics=array_of(prediction.intrinsics, np.float64),
        points=no_points(),
    )


def default_sources(views: Views) -> tuple[Source, ...]:
    """Names of views that come from no files."""
    count, (height, width) = views.images.shape[1], views.images.shape[-2:]
    return tuple(Source(f"view_{i:04d}.png", width, height) for i in range(count))


def pictures_of(views: Views) -> tuple[np.ndarray, np.ndarray]:
    """The network's pictures [S, H, W, 3] uint8, and their valid pixels [S, H, W] bool, which exclude padding."""
    images = (views.images[0] * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    shape = images.shape[:3]
    mask = torch.ones(shape, dtype=torch.bool) if views.mask is None else views.mask[0]
    return images.cpu().numpy(), mask.cpu().numpy()


def array_of(value: Tensor | None, dtype: Any) -> np.ndarray:
    """One scene [1, ...] of a prediction as an array; LeanError if the model did not return it."""
    if value is None:
        raise LeanError("the model returned no depth; a reconstruction needs decode(..., dense=True).")
    return value[0].numpy().astype(dtype)
