"""The layers behind `prepare` and `convert`: layers that train with rounded weights, and layers that store codes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.compress.linears import linears_of
from lean3r.compress.plan import QuantizeStep
from lean3r.compress.schemes import Packed, Scheme, through
from lean3r.compress.tables import SCHEMES
from lean3r.compress.targets import Place, Target
from lean3r.errors import UsageError
from lean3r.layers.linear import Linear, TakesRows, linear
from lean3r.ops.fp8 import Operand, Rows, lay_out, rows_of
from lean3r.tables import kept


class Rounded(nn.Module):
    """Mixin for the class of a layer: its scheme rounds the weight (and the inputs, in a linear layer), and gradients
    pass straight through.

    Weight and bias are those of the layer that it replaces. `smooth` [K], if the scheme has it, is a constant: inputs
    are divided and weights multiplied by it. Weights of more than two axes are rounded as [first axis, rest].
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    smooth: Tensor | None

    def __init__(self, source: nn.Module, scheme: Scheme, scheme_name: str):
        _take_over(self, source)
        self.scheme, self.scheme_name = scheme, scheme_name
        weight = self.weight.detach()
        self.register_buffer("smooth", weight.new_ones(weight.shape[1]) if scheme.smooth else None)

    def extra_repr(self) -> str:
        """Sizes, scheme, and the word prepared."""
        return f"{super().extra_repr()}, scheme={self.scheme_name!r}, prepared"

    def round_weight(self) -> Tensor:
        """The rounded weight that enters the product, with the gradient of the weight."""
        weight = self.weight if self.smooth is None else self.weight * self.smooth
        with torch.no_grad():
            matrix = weight.flatten(1)
            value = self.scheme.unpack(self.scheme.pack(matrix), matrix.shape).to(weight.dtype).view_as(weight)
        return through(weight, value)


class FakeQuantLinear(Rounded, nn.Linear):
    """A linear layer that trains with rounded weights and inputs."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], multiplied in the type of x, as in the deployed layer."""
        if self.smooth is not None:
            x = x / self.smooth
        with torch.no_grad():
            value = self.scheme.activation(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(through(x, value), self.round_weight().to(x.dtype), bias)


class FakeQuantConv2d(Rounded, nn.Conv2d):
    """A convolution that trains with rounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        return self._conv_forward(x, self.round_weight(), self.bias)


class FakeQuantConvTranspose2d(Rounded, nn.ConvTranspose2d):
    """A transposed convolution that trains with rounded weights."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        return _conv_transpose(self, x, self.round_weight())


class Coded(nn.Module):
    """Mixin for the class of a layer: it stores its weight as codes and scales, in buffers "weight", "weight_scale".

    UsageError if the weight contains NaN or infinities, which have no codes. `name` is for the message.
    """

    weight: Tensor
    weight_scale: Tensor
    smooth: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, source: Rounded, name: str = ""):
        _take_over(self, source)
        self.scheme, self.scheme_name, self.shape = source.scheme, source.scheme_name, source.weight.shape
        del self.weight
        for key, value in _pack(source, name).items():
            self.register_buffer(key, value)

    @property
    def packed(self) -> Packed:
        """The tensors that the scheme stores, by name."""
        return {"weight": self.weight, "weight_scale": self.weight_scale}

    @property
    def matrix(self) -> torch.Size:
        """[N, K] of the matrix that the codes stand for; `shape` is the weight's."""
        return torch.Size((self.shape[0], self.shape[1:].numel()))

    def encode_weight(self, weight: Tensor, smooth: Tensor | None = None) -> Packed:
        """A weight in full precision -> the buffers that represent it, by name, as a checkpoint stores them."""
        if self.smooth is not None and smooth is None:
            raise UsageError(
                f"{self.scheme_name} with smoothing needs calibrated factors, which weights alone do not determine: "
                "call prepare, calibrate and convert."
            )
        return self.scheme.pack((weight if smooth is None else weight * smooth).flatten(1))

    def dequantize(self) -> Tensor:
        """The weight that enters the product, in the type of its scales."""
        return self.scheme.unpack(self.packed, self.matrix).view(self.shape)

    def extra_repr(self) -> str:
        """Sizes, scheme, and how the product runs on the device of the weight."""
        path = self.scheme.path(self.weight.device)
        return f"{super().extra_repr()}, scheme={self.scheme_name!r}, path={path!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Coded:
        # A change of dtype is for scales and bias: codes keep theirs.
        kind = self.weight.dtype
        super()._apply(fn, recurse)
        self.weight = self.weight.to(kind)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles wrap the codes."""
        return vars(self) | {"_buffers": self._buffers | {"weight": _Codes(self.weight)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self)["_buffers"]["weight"] = state["_buffers"]["weight"].codes


class _Codes:
    """Codes that travel through a pickle as bytes: torch writes FP8 into plain ones but cannot read it back."""

    def __init__(self, codes: Tensor):
        self.codes = codes

    def __deepcopy__(self, memory: dict[int, Any]) -> _Codes:
        return _Codes(copy.deepcopy(self.codes, memory))

    def __reduce__(self) -> tuple[Callable[..., _Codes], tuple[Tensor, torch.dtype]]:
        return _of_bytes, (self.codes.view(torch.uint8), self.codes.dtype)


def _of_bytes(codes: Tensor, kind: torch.dtype) -> _Codes:
    return _Codes(codes.view(kind))


@torch.no_grad()
def _pack(source: Rounded, name: str) -> Packed:
    """The stored form of a layer's weight; on the meta device its sizes only."""
    weight = source.weight.detach()
    if weight.is_meta:  # arithmetic there makes torch import its compiler, more than a second
        row = source.scheme.pack(torch.zeros(1, weight[0].numel(), dtype=weight.dtype))
        return {key: value.to("meta").new_empty(len(weight), *value.shape[1:]) for key, value in row.items()}
    weight = weight if source.smooth is None else weight * source.smooth
    if not bool(weight.isfinite().all()):
        raise UsageError(f"the weight of {name or 'a layer'} contains NaN or infinities and cannot be quantised.")
    return source.scheme.pack(weight.flatten(1))


class QuantLinear(Coded, TakesRows, nn.Linear):
    """A linear layer that stores its weight as codes and scales."""

    def __init__(self, source: Rounded, name: str = ""):
        super().__init__(source, name)
        self._laid_out: tuple[list[int], tuple[Tensor, Tensor], Operand] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files are without the operand: it would be a second weight."""
        return super().__getstate__() | {"_laid_out": None}

    def takes_rows(self, x: Tensor) -> bool:
        """See TakesRows. Not while gradients are recorded."""
        trains = torch.is_grad_enabled() and (x.requires_grad or (self.bias is not None and self.bias.requires_grad))
        return self.smooth is None and not trains and self.scheme.multiplies_codes(x.device)

    def forward(self, x: Tensor | Rows) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if isinstance(x, Tensor) and self.takes_rows(x):
            x = rows_of(x)
        if isinstance(x, Rows):
            return self.scheme.rows_product(x, self.operand, self.bias)
        if self.smooth is not None:
            x = x / self.smooth
        return self.scheme.product(x, self.packed, self.matrix, self.bias)

    @property
    def operand(self) -> Operand:
        """The weight laid out for products: kept until weight or scales are replaced or written to, which tensors of
        inference mode do not tell."""
        sources = (self.weight, self.weight_scale)
        if torch.compiler.is_compiling() or any(t.is_inference() for t in sources):
            return lay_out(*sources)
        versions = [t._version for t in sources]
        made = self._laid_out
        if made is None or made[0] != versions or any(a is not b for a, b in zip(made[1], sources, strict=True)):
            made = self._laid_out = versions, sources, lay_out(*sources)
        return kept(made[2])


class QuantConv2d(Coded, nn.Conv2d):
    """A convolution that stores its weight as codes and scales."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        return self._conv_forward(x, self.dequantize().to(x.dtype), self.bias)


class QuantConvTranspose2d(Coded, nn.ConvTranspose2d):
    """A transposed convolution that stores its weight as codes and scales."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H', W']."""
        return _conv_transpose(self, x, self.dequantize().to(x.dtype))


KINDS: dict[type[nn.Module], tuple[type[Rounded], type[Coded]]] = {
    nn.Linear: (FakeQuantLinear, QuantLinear),
    Linear: (FakeQuantLinear, QuantLinear),
    nn.Conv2d: (FakeQuantConv2d, QuantConv2d),
    nn.ConvTranspose2d: (FakeQuantConvTranspose2d, QuantConvTranspose2d),
}
CODED: dict[type[Rounded], type[Coded]] = dict(KINDS.values())


def _take_over(module: nn.Module, source: nn.Module) -> None:
    # All attributes of the layer, in new dicts; the tensors stay the same objects.
    tables = {key: copy.copy(value) if isinstance(value, dict) else value for key, value in vars(source).items()}
    vars(module).update(tables)


def _conv_transpose(layer: nn.ConvTranspose2d, x: Tensor, weight: Tensor) -> Tensor:
    assert not isinstance(layer.padding, str)  # transposed convolutions have no padding by name
    sizes = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    return F.conv_transpose2d(x, weight, layer.bias, *sizes)


@dataclass(frozen=True)
class Quantized:
    """The result for one layer."""

    site: Place
    scheme: str

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {"layer": self.site.name, "role": self.site.part, "scheme": self.scheme}


def selected(step: QuantizeStep, places: Sequence[Place]) -> list[Place]:
    """The layers, of `places`, that a step quantises; UsageError as `Target.select`."""
    chosen = Target.parse(step.target).select(places)
    for target in step.leave_out:
        left = set(Target.parse(target).select(places, may_lack=True))
        chosen = [place for place in chosen if place not in left]
    return chosen


def insert(model: nn.Module, steps: Sequence[QuantizeStep]) -> list[Quantized]:
    """Replace the layers that the steps select by layers that train with rounded weights, in place; for errors see
    QuantizeStep."""
    places = linears_of(model)
    step_of: dict[Place, QuantizeStep] = {}
    for step in steps:
        chosen = selected(step, places)
        if not chosen:
            raise UsageError(f"step '{step}' leaves no layer to quantise.")
        step_of |= dict.fromkeys(chosen, step)
    new: dict[nn.Module, nn.Module] = {}
    for place, step in step_of.items():
        source = model.get_submodule(place.name)
        scheme: Scheme = SCHEMES.get(step.quantize)(**step.settings)
        if place.convolution and not scheme.convolutions:
            what = f"{step.quantize} is for linear layers, but {place.name} is a convolution"
            raise UsageError(f"{what}: use the target 'every linear'.")
        new[source] = KINDS[type(source)][0](source, scheme, step.quantize)
    _replace(model, new)
    return [Quantized(place, step_of[place].quantize) for place in places if place in step_of]


def deploy(model: nn.Module) -> None:
    """Replace the layers from `insert` by layers that store codes and scales, in place, one at a time."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Rounded):
            _replace(model, {module: CODED[type(module)](module, name)})


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in new:
                setattr(parent, name, new[child])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0  # otherwise torch, in inference, bypasses the layers
