"""Our linear layer equals torch's for any shape and device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lean3r.layers.linear import Linear
from lean3r.testing import assert_rms


@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96), (1, 1, 1, 96), (0, 4, 96), (96,)])
@pytest.mark.parametrize("bias", [True, False])
def test_same_numbers_as_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(96, 40, bias=bias)
    x = torch.randn(shape)
    with torch.inference_mode():
        found, plain = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
        assert found.dtype == plain.dtype
        if x.numel():
            assert_rms(found, plain, 1e-6)
            assert_rms(layer(x.double().float().flip(0).contiguous().flip(0)), plain, 1e-6)
        assert found.shape == plain.shape
        turned = torch.randn(3, 96, 7).transpose(1, 2)
        assert_rms(layer(turned), nn.functional.linear(turned, layer.weight, layer.bias), 1e-6)


def test_gradients_autocast_other_types_and_counts() -> None:
    torch.manual_seed(0)
    layer = Linear(96, 40)
    x = torch.randn(5, 96)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with FlopCounterMode(display=False) as counter:
            layer(x)
        assert counter.get_total_flops() == 2 * 5 * 96 * 40
        assert layer.to(torch.float64)(x.double()).dtype == torch.float64
        assert layer.to("meta")(torch.empty(5, 96, device="meta")).shape == (5, 40)
