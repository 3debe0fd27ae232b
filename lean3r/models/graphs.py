"""`encode` of a backbone as a CUDA graph: with few views, launching thousands of kernels takes longer than they run.

A graph is recorded for each number and size of pictures. It replays the same kernels on the same memory, so that its
results are those of a plain run bit for bit; what a run decides in Python is decided once, when it is recorded. What it
reads by address must outlive it: tables are held (lean3r/tables.py), and it is dropped when weights are elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from lean3r.models.base import Backbone, check_views
from lean3r.tables import noting
from lean3r.types import Tokens, Views

MOST_VIEWS = 8  # beyond, the kernels take longer than their launches
MOST_GRAPHS = 4  # each keeps the working memory of a run
WARM_UP = 2  # runs: kernels are tuned, tables made, workspaces taken

logger = logging.getLogger("lean3r")


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    views: Views
    tokens: Tokens
    kept: dict[int, object]


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
            self.recordings[key] = _record(model, views, options)
        recording = self.recordings[key]
        if recording is None:
            return model.encode(views, **options)
        recording.views.images.copy_(views.images)
        if recording.views.mask is not None and views.mask is not None:
            recording.views.mask.copy_(views.mask)
        recording.graph.replay()
        layers = {name: value.clone() for name, value in recording.tokens.layers.items()}
        layout = recording.tokens.layout
        valid = None if layout.valid is None else layout.valid.clone()
        return Tokens(layers, replace(layout, valid=valid), views)


def _conditions(model: Backbone, views: Views, options: dict[str, str]) -> tuple:
    """All that decides which kernels run, but the weights."""
    images = views.images
    cast = torch.is_autocast_enabled(images.device.type) and torch.get_autocast_dtype(images.device.type)
    return (
        *(tuple(images.shape), images.dtype, images.device, views.mask is None, tuple(sorted(options.items()))),
        *(cast, model.chunk_bytes),
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


def _record(model: Backbone, views: Views, options: dict[str, str]) -> _Recording | None:
    """Run and record; None, and a warning, where something asks the GPU for a value or copies to it meanwhile."""
    with torch.inference_mode(False), torch.no_grad():
        mask = None if views.mask is None else views.mask.clone()
        fixed = replace(views, images=views.images.clone(), mask=mask)
    with torch.cuda.device_of(views.images), _casts_not_kept(), noting() as kept:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                model.encode(fixed, **options)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                tokens = model.encode(fixed, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), "")
            logger.warning("%s runs without CUDA graphs, which cannot be recorded: %s", model.name, reason)
            return None
    return _Recording(graph, fixed, tokens, kept)


@contextmanager
def _casts_not_kept() -> Iterator[None]:
    """Autocast would keep cast weights until it ends; a graph would read them afterwards."""
    kept = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
