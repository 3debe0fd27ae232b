"""`encode` of a backbone as a CUDA graph: with few views, launching thousands of kernels takes longer than they run.

A graph (lean3r/recorded.py) is recorded for each number and size of pictures. It holds the tables that it reads by
address, and is dropped when weights are elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from lean3r.models.base import Backbone, check_views
from lean3r.recorded import Captured, capture, casts
from lean3r.types import Tokens, Views

MOST_VIEWS = 32  # beyond, launches matter less, and a recording keeps as much memory as the run takes
MOST_GRAPHS = 4  # each keeps the working memory of a run


@dataclass(frozen=True)
class _Recording:
    views: Views
    encoding: Captured[Tokens]


class EncodeGraphs:
    """Graphs of one model's `encode`. Copies of the model have none: a graph knows the weights by their addresses."""

    def __init__(self) -> None:
        self.recordings: dict[tuple, _Recording | None] = {}
        self.weights: list[tuple] = []

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def __call__(self, model: Backbone, views: Views, **options: str) -> Tokens:
        """model.encode(views, **options), replayed. With gradients, known cameras or depth, a share of the views, none
        or more than MOST_VIEWS, and where recording failed, which is logged once, it runs as without graphs."""
        batch, count = views.images.shape[:2] if views.images.ndim == 5 else (0, 0)
        alone = views.known is None and views.share is None
        if torch.is_grad_enabled() or not alone or not 1 <= batch * count <= MOST_VIEWS:
            return model.encode(views, **options)
        check_views(views, model.patch)  # its questions to the GPU cannot be recorded
        if (weights := _places(model)) != self.weights:
            self.recordings, self.weights = {}, weights
        key = _conditions(model, views, options)
        if key not in self.recordings:
            while len(self.recordings) >= MOST_GRAPHS:
                del self.recordings[next(iter(self.recordings))]
            with torch.inference_mode(False), torch.no_grad():
                mask = None if views.mask is None else views.mask.clone()
                fixed = replace(views, images=views.images.clone(), mask=mask)
            found = capture(lambda: model.encode(fixed, **options), views.images, model.name)
            self.recordings[key] = None if found is None else _Recording(fixed, found)
        recording = self.recordings[key]
        if recording is None:
            return model.encode(views, **options)
        recording.views.images.copy_(views.images)
        if recording.views.mask is not None and views.mask is not None:
            recording.views.mask.copy_(views.mask)
        recording.encoding.graph.replay()
        tokens = recording.encoding.result
        layers = {name: value.clone() for name, value in tokens.layers.items()}
        layout = tokens.layout
        valid = None if layout.valid is None else layout.valid.clone()
        return Tokens(layers, replace(layout, valid=valid), views)


def _conditions(model: Backbone, views: Views, options: dict[str, str]) -> tuple:
    """All that decides which kernels run, but the weights."""
    images = views.images
    return (
        *(tuple(images.shape), images.dtype, images.device, views.mask is None, tuple(sorted(options.items()))),
        *(casts(images.device), model.chunk_bytes),
    )


def _places(model: nn.Module) -> list[tuple]:
    """Addresses and types of all weights, and versions of the codes, which products may have laid out elsewhere.

    Modules are walked through by hand: model.parameters() takes three times as long.
    """
    found, left = [], [model]
    while left:
        module = left.pop()
        left += [child for child in module._modules.values() if child is not None]
        found += [(t.data_ptr(), t.dtype) for t in module._parameters.values() if t is not None]
        found += [(t.data_ptr(), t.dtype, _version(t)) for t in module._buffers.values() if t is not None]
    return found


def _version(t: torch.Tensor) -> int:
    return -1 if t.is_inference() else t._version
