"""A model as one graph from pictures to its prediction, with symbols for the number of views and their sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lean3r.attention.dense import Dense
from lean3r.errors import UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.layers.matching import MANY, PairMatcher
from lean3r.models.base import Backbone
from lean3r.types import Prediction, Views

MOST_VIEWS, MOST_PATCHES = 1024, 256  # of one call, and along one side of a picture
LEAST_PATCHES = 3  # of 2, patches of half their size or double make another graph in Depth Anything 3
FEWEST_VIEWS = 2  # torch.export takes a size of 1 for a special case, which a graph for more does not cover
EXAMPLE = (3, 6, 8)  # views, rows and columns of patches while a graph is recorded; others than the checks run
OUTPUTS = {
    "depth": ("views", "height", "width"),
    "conf": ("views", "height", "width"),
    "cam_from_world": ("views", 4, 4),
    "intrinsics": ("views", 3, 3),
}
"""Field of Prediction -> the axes of an output behind the first, which is 1."""


@dataclass(frozen=True)
class Limits:
    """What a graph takes: up to `views` pictures, their sides multiples of `patch`, from `least` to `most` pixels."""

    views: int
    patch: int

    @property
    def least(self) -> int:
        """The smallest side of a picture in pixels."""
        return LEAST_PATCHES * self.patch

    @property
    def most(self) -> int:
        """The largest side of a picture in pixels."""
        return MOST_PATCHES * self.patch


class PicturesIn(nn.Module):
    """images [1, S, 3, H, W] -> the model's Prediction as tensors by name."""

    def __init__(self, model: Backbone):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Those of OUTPUTS that the model predicts."""
        return outputs_of(self.model(Views(images)))


def outputs_of(prediction: Prediction) -> dict[str, Tensor]:
    """The tensors of a prediction by name, in the order of OUTPUTS."""
    values = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    return {name: values[name].contiguous() for name in OUTPUTS if values[name] is not None}


def limits_of(model: Backbone) -> Limits:
    """What graphs of a model take. From MANY views on nano compares each view with some others: another graph."""
    matches = any(isinstance(part, PairMatcher) for part in model.modules())
    return Limits(MANY - 1 if matches else MOST_VIEWS, model.patch)


def check_exportable(model: Backbone) -> None:
    """UsageError unless one graph serves all numbers of views: a network in float32 on the CPU, with dense attention
    between views that have no order."""
    if not model.SEES:
        raise UsageError(f"{model.name} has no network to export. Name a model (`lean3r models` lists them).")
    if model.ORDERED:
        raise UsageError(
            f"{model.name} cannot be exported: which frame sees which is a table made anew for each number of frames. "
            "Export a model of views without order, such as nano or vggt."
        )
    for part in model.modules():
        if isinstance(part, SelfAttention) and not isinstance(part.mechanism, Dense):
            raise UsageError(
                f"{type(part.mechanism).__name__} attention cannot be exported: its lists have other lengths for other "
                "numbers of views. Export the dense model: without --plan, or nano for nano-gsa-fp8."
            )
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize == 2}
    devices = {p.device.type for p in model.parameters()} - {"cpu"}
    if kinds or devices:
        found = ", ".join(sorted([*devices, *(str(kind).removeprefix("torch.") for kind in kinds)]))
        raise UsageError(f"got a model in {found}; exports are in float32. Load it with device=cpu, dtype=float32.")


def trace(model: Backbone) -> ExportedProgram:
    """The graph of `PicturesIn(model)` as torch.export records it, for every number and size within the limits."""
    check_exportable(model)
    limits = limits_of(model)
    views, rows, cols = EXAMPLE
    images = torch.full((1, views, 3, rows * model.patch, cols * model.patch), 0.5)
    sides = [model.patch * Dim(name, min=LEAST_PATCHES, max=MOST_PATCHES) for name in ("rows", "cols")]
    shapes = {1: Dim("views", min=FEWEST_VIEWS, max=limits.views), 3: sides[0], 4: sides[1]}
    with torch.no_grad():
        return torch.export.export(PicturesIn(model).eval(), (images,), dynamic_shapes={"images": shapes})
