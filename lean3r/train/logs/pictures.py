"""Pictures of the predictions of a model in training: each view with its predicted and its true depth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from lean3r.data.base import SceneBatch
from lean3r.errors import UsageError
from lean3r.types import Views

# Near to far; unknown depth is grey.
_COLOURS = np.array([[250, 230, 90], [240, 120, 50], [180, 40, 100], [80, 20, 120], [15, 10, 50]], np.float32)
_UNKNOWN = np.array([128, 128, 128], np.uint8)


def draw_depth(batch: SceneBatch, views: int = 4) -> Callable[[nn.Module], np.ndarray]:
    """A `draw` function for `fit` (train/loop.py): the first `views` views of a batch's first scene, one per row.

    For models that take Views and return a Prediction; the function raises UsageError if that has no depth.
    """
    some = slice(0, views)

    def draw(model: nn.Module) -> np.ndarray:
        prediction = model(Views(batch.images[:1].to(next(model.parameters()).device)))
        if prediction.depth is None:
            raise UsageError("the model predicts no depth to draw; train without pictures (pictures_every 0)")
        parts = (batch.images[0, some], prediction.depth[0, some], batch.depth[0, some])
        return side_by_side(*(part.float().cpu() for part in parts))

    return draw


def side_by_side(images: Tensor, predicted: Tensor, true: Tensor) -> np.ndarray:
    """Draw pictures [S, 3, H, W] in [0, 1], depth and true depth [S, H, W] as uint8 [S * H, 3 * W, 3].

    Predicted depth is scaled to the median of the true depth and has the same colours, grey where it is not positive.
    Without true depth, the colours span the range of the predicted depth.
    """
    known = (true > 0) & (predicted > 0) & predicted.isfinite()
    predicted = torch.where(predicted.isfinite(), predicted, 0)
    reference = true if bool(known.any()) else predicted
    if bool(known.any()):
        predicted = predicted * (true[known].median() / predicted[known].median())
    positive = reference[reference > 0]
    low, high = (positive.quantile(q).item() for q in (0.02, 0.98)) if len(positive) else (1.0, 2.0)
    rgb = (images.clamp(0, 1) * 255).round().byte().movedim(1, -1).numpy()
    columns = [rgb, _colour(predicted, low, high), _colour(true, low, high)]
    return np.concatenate([np.concatenate(list(column)) for column in columns], axis=1)


def _colour(depth: Tensor, low: float, high: float) -> np.ndarray:
    values = depth.numpy()
    place = np.clip((np.log(np.maximum(values, 1e-12)) - np.log(low)) / max(np.log(high / low), 1e-6), 0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(place, stops, channel) for channel in _COLOURS.T], axis=-1).round().astype(np.uint8)
    return np.where((values > 0)[..., None], colour, _UNKNOWN)
