"""Quantised linear layers against golden arrays: prepared (with gradients) and converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_numbers import golden_folder
from thin import same_places
from torch import Tensor, nn

from lean3r.compress.fp8_linear import FakeQuantLinear, QuantLinear
from lean3r.compress.quantize import smoothing_factors
from lean3r.compress.schemes import Fp8, Fp8Weight, Integer, Scheme
from lean3r.ops.fp8 import dequantize, quantize_rows
from lean3r.testing import assert_close

LIMIT = 1e-6
BF16 = 8e-3  # rounding of products and sums in bfloat16


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = golden_folder(metafunc.config) / "attention"
    absent = pytest.mark.skip(reason=f"no golden numbers at {folder}: name their folder with --golden DIR")
    found = sorted([*folder.glob("fp8_linear_*.npz"), *folder.glob("w4_linear_*.npz")])
    rows = [pytest.param(path, id=path.stem) for path in found]
    metafunc.parametrize("path", rows or [pytest.param(folder, id="absent", marks=absent)])


def assert_relative(actual: Tensor, expected: Tensor, limit: float) -> None:
    """No element differs by more than `limit` times the largest one."""
    assert_close(actual, expected, limit * expected.abs().max().item())


def scheme_of(arrays: dict[str, Tensor]) -> Scheme:
    if "group_size" not in arrays:
        return Fp8(implementation="reference") if arrays["act_quant"].item() else Fp8Weight()
    assert arrays["weight_bits"].item() == Integer.BITS
    return Integer(act_bits=int(arrays["act_bits"]), group_size=int(arrays["group_size"]), smooth=True)


def test_golden(path: Path) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    half = bool(arrays.get("bf16", torch.zeros(())).item())
    dtype, limit = (torch.bfloat16, BF16) if half else (torch.float32, LIMIT)
    linear = nn.Linear(*reversed(arrays["weight"].shape), bias="bias" in arrays, dtype=dtype)
    linear.load_state_dict({name: arrays[name] for name in ("weight", "bias") if name in arrays})
    prepared = FakeQuantLinear(linear, scheme_of(arrays), path.stem)
    if prepared.smooth is not None:
        prepared.smooth.copy_(arrays["smooth"])
        if "calibration" in arrays:
            assert_relative(smoothing_factors(arrays["calibration"], linear.weight), arrays["smooth"], LIMIT)
    x = arrays["x"].to(dtype).requires_grad_()
    out = prepared(x)
    assert_relative(*same_places(out, arrays, "out"), limit)
    out.backward(arrays["cotangent"].to(dtype))
    grads = {"grad_x": x.grad, "grad_weight": linear.weight.grad}
    if linear.bias is not None:
        grads["grad_bias"] = linear.bias.grad
    for name, value in grads.items():
        assert value is not None
        assert_relative(*same_places(value, arrays, name), limit)
    for name, value in (("x", x), ("w", linear.weight)):
        if f"{name}_codes" in arrays:
            codes, scale = quantize_rows(value.detach())
            assert torch.equal(codes.view(torch.uint8), arrays[f"{name}_codes"])
            assert_relative(scale[..., 0], arrays[f"{name}_scale"], 0.0 if half else 1e-7)
            assert_relative(*same_places(dequantize(codes, scale), arrays, f"{name}_quant"), BF16 if half else 1e-7)
    with torch.no_grad():
        converted = QuantLinear(prepared)
        assert torch.equal(converted.dequantize().to(dtype), prepared.round_weight())
        assert torch.equal(converted(x), prepared(x))
