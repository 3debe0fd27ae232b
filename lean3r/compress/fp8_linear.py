"""The two layers behind `prepare` and `convert`: one that trains with rounded numbers, one that stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lean3r.compress.linears import LinearSite, LinearTarget, linears_of
from lean3r.compress.plan import QuantizeStep
from lean3r.compress.schemes import Packed, Scheme, through
from lean3r.errors import UsageError
from lean3r.layers.linear import linear


class FakeQuantLinear(nn.Linear):
    """A linear layer whose weight and inputs are rounded as its scheme says; gradients go straight through.

    It keeps the weight and the bias of the layer that it replaces. `smooth` [K], where the scheme has it, is a
    constant: inputs are divided by it and weights multiplied.
    """

    smooth: Tensor | None

    def __init__(self, source: nn.Linear, scheme: Scheme, scheme_name: str):
        nn.Module.__init__(self)
        self.in_features, self.out_features = source.in_features, source.out_features
        self.scheme, self.scheme_name = scheme, scheme_name
        self.weight, self.bias = source.weight, source.bias
        ones = source.weight.detach().new_ones(source.in_features) if scheme.smooth else None
        self.register_buffer("smooth", ones)
        self.train(source.training)

    def extra_repr(self) -> str:
        """Sizes, scheme, and that it is rounded for training."""
        return f"{super().extra_repr()}, scheme={self.scheme_name!r}, prepared"

    def rounded_weight(self) -> Tensor:
        """What enters the product [N, K], with the gradient of the weight."""
        weight = self.weight if self.smooth is None else self.weight * self.smooth
        with torch.no_grad():
            value = self.scheme.unpack(self.scheme.pack(weight), weight.shape).to(weight.dtype)
        return through(weight, value)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.smooth is not None:
            x = x / self.smooth
        with torch.no_grad():
            value = self.scheme.activation(x)
        return linear(through(x, value), self.rounded_weight(), self.bias)


class QuantLinear(nn.Module):
    """A linear layer that holds its weight as codes and scales, in buffers "weight" and "weight_scale"."""

    weight: Tensor
    weight_scale: Tensor
    smooth: Tensor | None

    def __init__(self, source: FakeQuantLinear, name: str = ""):
        """UsageError where the weight holds NaN or infinities: no code stands for them. `name` is for the message."""
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        self.scheme, self.scheme_name = source.scheme, source.scheme_name
        with torch.no_grad():
            weight = source.weight if source.smooth is None else source.weight * source.smooth
            if not weight.is_meta and not bool(weight.isfinite().all()):
                raise UsageError(f"the weight of {name or 'a layer'} holds NaN or infinities and cannot be quantised.")
            for key, value in self.scheme.pack(weight.detach()).items():
                self.register_buffer(key, value)
        self.register_buffer("smooth", source.smooth)
        self.bias = source.bias
        self.train(source.training)

    @property
    def packed(self) -> Packed:
        """What the scheme stores."""
        return {"weight": self.weight, "weight_scale": self.weight_scale}

    @property
    def shape(self) -> torch.Size:
        """[N, K] of the weight that the codes stand for."""
        return torch.Size((self.out_features, self.in_features))

    def encode_weight(self, weight: Tensor) -> Packed:
        """A weight [N, K] in full precision -> the buffers that stand for it, by name; what a checkpoint stores."""
        if self.smooth is None:
            return self.scheme.pack(weight)
        ones = weight.new_ones(self.in_features)
        return {**self.scheme.pack(weight), "smooth": ones}

    def dequantized(self) -> Tensor:
        """The weight [N, K] that enters the product, in the type of its scales."""
        return self.scheme.unpack(self.packed, self.shape)

    def extra_repr(self) -> str:
        """Sizes, scheme and how the product runs where the weight is."""
        path = self.scheme.path(self.weight.device)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scheme={self.scheme_name!r}, path={path!r}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if self.smooth is not None:
            x = x / self.smooth
        return self.scheme.product(x, self.packed, self.shape, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> QuantLinear:
        # Another number type is for scales and bias: codes stay what they are.
        kind = self.weight.dtype
        super()._apply(fn, recurse)
        self.weight = self.weight.to(kind)
        return self


@dataclass(frozen=True)
class Quantized:
    """What became of one linear layer."""

    site: LinearSite
    scheme: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"layer": self.site.name, "role": self.site.part, "scheme": self.scheme}


def insert(model: nn.Module, steps: Sequence[QuantizeStep]) -> list[Quantized]:
    """Put layers that train with rounded numbers where the steps say, in place; see QuantizeStep for the errors."""
    from lean3r.compress import SCHEMES

    sites = linears_of(model)
    wanted: dict[LinearSite, QuantizeStep] = {}
    for step in steps:
        chosen = LinearTarget.parse(step.target).select(sites)
        for target in step.leave_out:
            left = set(LinearTarget.parse(target).select(sites, may_lack=True))
            chosen = [site for site in chosen if site not in left]
        if not chosen:
            raise UsageError(f"step '{step}' leaves no layer to quantise.")
        wanted |= dict.fromkeys(chosen, step)
    new: dict[nn.Module, nn.Module] = {}
    for site, step in wanted.items():
        source = model.get_submodule(site.name)
        assert isinstance(source, nn.Linear)
        scheme = SCHEMES.get(step.quantize)(**step.settings)
        new[source] = FakeQuantLinear(source, scheme, step.quantize)
    _replace(model, new)
    return [Quantized(site, wanted[site].quantize) for site in sites if site in wanted]


def deploy(model: nn.Module) -> None:
    """Store what `insert` put in as codes and scales, in place, a layer at a time."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FakeQuantLinear):
            _replace(model, {module: QuantLinear(module, name)})


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in new:
                setattr(parent, name, new[child])
