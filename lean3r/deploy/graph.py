"""A model as one graph from pictures to its prediction, with symbols for the number of views and their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lean3r.attention.coarse_fine import Gsa
from lean3r.compress.fp8_linear import QuantLinear
from lean3r.errors import UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.layers.frames import TRAINED
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
    """What a graph takes: `fewest` to `views` pictures, their sides multiples of `patch`, from `least` to `most`
    pixels."""

    fewest: int
    views: int
    patch: int
    least_patches: int = LEAST_PATCHES

    @property
    def least(self) -> int:
        """The smallest side of a picture in pixels."""
        return self.least_patches * self.patch

    @property
    def most(self) -> int:
        """The largest side of a picture in pixels."""
        return MOST_PATCHES * self.patch

    def __str__(self) -> str:
        sides = f"sides multiples of {self.patch} from {self.least} to {self.most}"
        return f"takes {self.fewest} to {self.views} views, {sides}"


class PicturesIn(nn.Module):
    """images [1, S, 3, H, W] within limits -> the model's Prediction as tensors by name."""

    def __init__(self, model: Backbone, limits: Limits):
        super().__init__()
        self.model = model
        self.limits = limits

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Those of OUTPUTS that the model predicts."""
        self._hold_limits(images)
        return outputs_of(self.model(Views(images)))

    def _hold_limits(self, images: Tensor) -> None:
        """A step of the graph that fails beyond the limits; a compiled package has no other check.

        It computes with sizes as numbers in tensors: of symbols, torch knows the limits, and would leave the step out.
        Nor can it see whether sides are multiples of the patch: they are symbols for a number of patches.
        """
        least, most = self.limits.least, self.limits.most
        fits = torch.ones((), dtype=torch.bool)
        for axis, low, high in ((1, self.limits.fewest, self.limits.views), (3, least, most), (4, least, most)):
            size = torch.scalar_tensor(images.shape[axis], dtype=torch.int64)
            fits = fits & (size >= low) & (size <= high)
        torch.ops.aten._assert_async.msg(fits, str(self.limits))


def outputs_of(prediction: Prediction) -> dict[str, Tensor]:
    """The tensors of a prediction by name, in the order of OUTPUTS."""
    values = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    return {name: values[name].contiguous() for name in OUTPUTS if values[name] is not None}


def limits_of(model: Backbone, *, many: bool = False) -> Limits:
    """What graphs of a model take. From MANY views on nano compares each view with some others: another graph, for
    which `many` asks; UsageError if the model has only one."""
    chooses = not model.ORDERED and any(isinstance(part, PairMatcher) for part in model.modules())
    if many and not chooses:
        raise UsageError(f"{model.name} has one graph for all numbers of views; export it without --many-views.")
    most = TRAINED if model.ORDERED else MOST_VIEWS  # from then on every other frame is a keyframe: another graph
    # One window along a side is a special case, too.
    windows = [part.window + 1 for part in model.modules() if isinstance(part, Gsa)]
    least = max([LEAST_PATCHES, *windows])
    return Limits(MANY if many else 1, MANY - 1 if chooses and not many else most, model.patch, least)


def check_exportable(model: Backbone) -> None:
    """UsageError unless the model is a network in float32 on the CPU whose attention makes one graph for all numbers of
    views."""
    if not model.SEES:
        raise UsageError(f"{model.name} has no network to export. Name a model (`lean3r models` lists them).")
    for part in model.modules():
        if not isinstance(part, SelfAttention):
            continue
        reason = part.mechanism.why_not_traced()
        if part.short is not None:
            reason = f"below {part.dense_below:,} tokens this model attends densely, which is another graph"
        if reason is not None:
            name = type(part.mechanism).__name__
            raise UsageError(
                f"{name} attention cannot be exported: {reason}. Export it without a plan, or with a plan of gsa whose "
                "dense_below is 0 (docs/attention.md)."
            )
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize == 2}
    devices = {p.device.type for p in model.parameters()} - {"cpu"}
    if kinds or devices:
        found = ", ".join(sorted([*devices, *(str(kind).removeprefix("torch.") for kind in kinds)]))
        raise UsageError(f"got a model in {found}; exports are in float32. Load it with device=cpu, dtype=float32.")


@contextmanager
def whole_activations(model: Backbone) -> Iterator[None]:
    """Inside, layers round their weights only, as in exported files; those of the scheme int8-dynamic stay as they are.

    Where activations are rounded, a change of the pictures by 1e-6 changes the depth of nano-gsa-fp8 by 0.3: no two
    programs agree on such a model, and only hardware that multiplies FP8 gains from it.
    """
    rounding = [part for part in model.modules() if isinstance(part, QuantLinear)]
    before = [part.scheme for part in rounding]
    try:
        for part in rounding:
            part.scheme = part.scheme.weights_only()
        yield
    finally:
        for part, scheme in zip(rounding, before, strict=True):
            part.scheme = scheme


@contextmanager
def evaluated(model: Backbone) -> Iterator[None]:
    """Inside, a model computes as in use, though it may be in training."""
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for part, is_training in modes.items():
            part.training = is_training


def trace(model: Backbone, limits: Limits) -> ExportedProgram:
    """The graph of `PicturesIn(model)` as torch.export records it, for every number and size within the limits."""
    check_exportable(model)
    views, rows, cols = EXAMPLE
    images = torch.full((1, limits.fewest - 1 + views, 3, rows * model.patch, cols * model.patch), 0.5)
    sides = [model.patch * Dim(name, min=limits.least_patches, max=MOST_PATCHES) for name in ("rows", "cols")]
    shapes = {1: Dim("views", min=max(FEWEST_VIEWS, limits.fewest), max=limits.views), 3: sides[0], 4: sides[1]}
    with torch.no_grad(), evaluated(model):
        whole = PicturesIn(model, limits).eval()
        program = torch.export.export(whole, (images,), dynamic_shapes={"images": shapes})
    # torch leaves out a check for a size of 1, and what then fails is a formula that nobody can read.
    program._guards_code.insert(0, f"L['images'].size()[1] >= {max(FEWEST_VIEWS, limits.fewest)}")
    return program
