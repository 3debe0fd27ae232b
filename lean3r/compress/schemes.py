"""Number formats for linear layers: how weights and activations are rounded, stored and multiplied.

Every scheme rounds weights the same way for training and for deployment: `pack` returns what a checkpoint stores,
`unpack` what enters the product, and training multiplies by unpack(pack(weight)).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lean3r.attention.settings import check_count, check_flag
from lean3r.compress.integers import integer_product, integer_rows, pack_nibbles, round_rows, unpack_nibbles
from lean3r.errors import KernelError, UsageError
from lean3r.layers.linear import linear
from lean3r.ops.fp8 import (
    Operand,
    Product,
    Rows,
    choose_product,
    dequantize,
    quantize_rows,
    scaled_product,
)

Packed = dict[str, Tensor]


class Scheme:
    """A row of SCHEMES. `pack`, `unpack` and `activation` define how numbers are rounded, `product` how they
    multiply."""

    smooth = False  # whether inputs are divided, and weights multiplied, by a factor for each feature
    convolutions = False  # whether convolutions are supported

    def pack(self, weight: Tensor) -> Packed:
        """The stored form of a weight [N, K]: "weight" and its scales by name, each [N, ...], row n for row n."""
        raise TypeError(f"{type(self).__name__} defines no pack")

    def unpack(self, packed: Packed, shape: torch.Size) -> Tensor:
        """The weight [N, K] that enters the product, in the type of its scales."""
        raise TypeError(f"{type(self).__name__} defines no unpack")

    def activation(self, x: Tensor) -> Tensor:
        """Round inputs [..., K] for the product; same shape and type."""
        return x

    def weights_only(self) -> Scheme:
        """The scheme that reads the same codes, and leaves activations unchanged where it can."""
        return self

    def multiplies_codes(self, device: torch.device) -> bool:
        """Whether products on a device take inputs and weights as codes, by `rows_product`."""
        return False

    def rows_product(self, rows: Rows, weight: Operand, bias: Tensor | None) -> Tensor:
        """Inputs that are rounded already, times a weight that is laid out, plus bias: [..., N]. No gradients."""
        raise TypeError(f"{type(self).__name__} does not multiply codes")

    def product(self, x: Tensor, packed: Packed, shape: torch.Size, bias: Tensor | None) -> Tensor:
        """Inputs [..., K], rounded by `activation`, times a stored weight, plus bias: [..., N]."""
        x = through(x, self.activation(x))
        return linear(x, self.unpack(packed, shape).to(x.dtype), None if bias is None else bias.to(x.dtype))

    def path(self, device: torch.device) -> str:
        """How products run on a device, for repr."""
        return "reference"

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Fp8Weight(Scheme):
    """Weights in E4M3 with one scale per output row; activations and products unchanged."""

    convolutions = True

    def pack(self, weight: Tensor) -> Packed:
        """See Scheme."""
        codes, scale = quantize_rows(weight)
        return {"weight": codes, "weight_scale": scale}

    def unpack(self, packed: Packed, shape: torch.Size) -> Tensor:
        """See Scheme."""
        return dequantize(packed["weight"], packed["weight_scale"])


class Fp8(Fp8Weight):
    """Weights and activations in E4M3, one scale per output row and one per token; FP8 products on FP8 hardware.

    `implementation` is "auto", "reference" (dequantised operands) or "scaled_mm", which raises if it cannot run.
    `fast_accum` is for scaled_mm: sums in the matrix units of Hopper GPUs, some 14 bits; False keeps them in float32.
    """

    convolutions = False

    def __init__(self, *, implementation: Product = "auto", fast_accum: bool = True):
        choose_product("reference" if implementation == "scaled_mm" else implementation, torch.device("cpu"))
        self.implementation: Product = implementation
        self.fast_accum = check_flag("fast_accum", fast_accum)

    def activation(self, x: Tensor) -> Tensor:
        """See Scheme."""
        return dequantize(*quantize_rows(x)).to(x.dtype)

    def weights_only(self) -> Scheme:
        """See Scheme."""
        return Fp8Weight()

    def multiplies_codes(self, device: torch.device) -> bool:
        """See Scheme."""
        return choose_product(self.implementation, device) == "scaled_mm"

    def rows_product(self, rows: Rows, weight: Operand, bias: Tensor | None) -> Tensor:
        """See Scheme."""
        kind = rows.codes.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        return scaled_product(rows, weight, bias, dtype, fast_accum=self.fast_accum)

    def path(self, device: torch.device) -> str:
        """See Scheme."""
        if device.type == "meta":
            return "not placed yet"
        try:
            return choose_product(self.implementation, device)
        except KernelError as error:
            return f"refused: {error}"


class Integer(Scheme):
    """Lite3R's first stage: weights of a few bits in groups of inputs, activations with one scale a token.

    `group_size` inputs of an output row share a scale; if K is no multiple of it, the whole row does. `act_bits` 0
    leaves activations unchanged. With `smooth`, inputs are divided by a factor for each feature, and weights multiplied
    by it; quantize.calibrate determines the factors.
    """

    BITS = 4

    def __init__(self, *, act_bits: int, group_size: int = 128, smooth: bool = False):
        if not isinstance(act_bits, int) or not (act_bits == 0 or 2 <= act_bits <= 16):
            raise UsageError(f"act_bits is {act_bits!r}; expected 2 to 16, or 0 to leave activations unchanged.")
        self.act_bits = act_bits
        self.group_size = check_count("group_size", group_size)
        self.smooth = check_flag("smooth", smooth)

    def pack(self, weight: Tensor) -> Packed:
        """See Scheme. Two codes a byte."""
        codes, scale = integer_rows(self._group(weight), self.BITS)
        return {"weight": pack_nibbles(codes.flatten(1)), "weight_scale": scale[..., 0]}

    def unpack(self, packed: Packed, shape: torch.Size) -> Tensor:
        """See Scheme."""
        scale = packed["weight_scale"]
        codes = unpack_nibbles(packed["weight"], shape[1]).to(scale.dtype)
        return (codes.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)

    def activation(self, x: Tensor) -> Tensor:
        """See Scheme."""
        return round_rows(x, self.act_bits) if self.act_bits else x

    def weights_only(self) -> Scheme:
        """See Scheme."""
        return Integer(act_bits=0, group_size=self.group_size, smooth=self.smooth)

    def _group(self, weight: Tensor) -> Tensor:
        depth = weight.shape[1]
        return weight.unflatten(1, (-1, depth if depth % self.group_size else self.group_size))


class W4A16(Integer):
    """Weights of 4 bits in groups of 128 inputs, activations of 16 bits."""

    def __init__(self, *, group_size: int = 128, smooth: bool = False, act_bits: int = 16):
        super().__init__(act_bits=act_bits, group_size=group_size, smooth=smooth)


class W4A8(Integer):
    """Weights of 4 bits in groups of 128 inputs, activations of 8 bits."""

    def __init__(self, *, group_size: int = 128, smooth: bool = False, act_bits: int = 8):
        super().__init__(act_bits=act_bits, group_size=group_size, smooth=smooth)


class Int8Dynamic(Scheme):
    """Weights of 8 bits with one scale per output row, activations of 8 bits with one per token, integer products.

    On a CPU with VNNI the product is about four times as fast as in float32. torchao's
    Int8DynamicActivationInt8Weight rounds the same way and multiplies with the same operator of torch.
    """

    def pack(self, weight: Tensor) -> Packed:
        """See Scheme."""
        codes, scale = integer_rows(weight, 8)
        return {"weight": codes, "weight_scale": scale}

    def unpack(self, packed: Packed, shape: torch.Size) -> Tensor:
        """See Scheme."""
        return packed["weight"].to(packed["weight_scale"].dtype) * packed["weight_scale"]

    def activation(self, x: Tensor) -> Tensor:
        """See Scheme."""
        return round_rows(x, 8)

    def product(self, x: Tensor, packed: Packed, shape: torch.Size, bias: Tensor | None) -> Tensor:
        """See Scheme. Sums of integers are exact; while gradients are recorded, dequantised operands are multiplied."""
        trains = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        if x.device.type != "cpu" or trains:
            return super().product(x, packed, shape, bias)
        out = integer_product(x.reshape(-1, shape[1]), packed["weight"], packed["weight_scale"], bias)
        return out.view(*x.shape[:-1], shape[0])

    def path(self, device: torch.device) -> str:
        """See Scheme."""
        return "int_mm" if device.type == "cpu" else "reference"


class Through(torch.autograd.Function):
    """The value of one tensor with the gradient of another: the straight-through estimator."""

    @staticmethod
    def forward(ctx, source: Tensor, value: Tensor) -> Tensor:
        """`value`, exactly; source and value have one shape."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """All of it to `source`."""
        return grads[0], None


def through(source: Tensor, value: Tensor) -> Tensor:
    """`value`, exactly, with the gradient passed to `source` as if nothing had been rounded."""
    if value is source or not (torch.is_grad_enabled() and source.requires_grad):
        return value
    return Through.apply(source, value.detach())
