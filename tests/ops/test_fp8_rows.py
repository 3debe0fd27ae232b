"""FP8 rows: every code in its place, the kernel against the reference, what cannot run."""

from __future__ import annotations

import pytest
import torch

from lean3r.errors import KernelError, UsageError
from lean3r.ops import fp8
from lean3r.ops.fp8 import E4M3, dequantize, quantize_rows, scaled_product
from lean3r.testing import assert_rms


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_codes_are_the_nearest_and_ties_go_to_even() -> None:
    table = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    table = table[table.isfinite()].sort().values.unique()
    middle = (table[1:] + table[:-1]) / 2
    x = torch.cat([table, middle, torch.rand(500) * 896 - 448])[None]
    codes, scale = quantize_rows(x)
    assert scale.item() == 1 and torch.equal(codes[0, : len(table)].float(), table)
    distance = (codes.float()[0] - x[0]).abs()
    assert torch.equal(distance, (x[0, :, None] - table).abs().min(-1).values)
    tied = codes[0, len(table) : len(table) + len(middle)].view(torch.uint8)
    assert bool((tied & 1 == 0).all())


def test_every_code_has_its_value() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3)[None].expand(3, -1)
    scale = torch.tensor([[1.0], [3e-11], [1e6]])
    found, expected = dequantize(codes, scale), codes.float() * scale
    numbers = expected.isfinite()
    assert torch.equal(found[numbers], expected[numbers]) and int(numbers.sum()) == 3 * 254
    assert torch.equal(found.signbit(), expected.signbit())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7, 96), (40, 37), (5, 1), (0, 16)])
def test_kernel_agrees_with_reference(kernel_device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    if len(x) > 4:
        x[0], x[1] = 0, x[1] * 1e-12
        x[2, 0] *= 1000
    x = x.to(kernel_device, dtype)
    if dtype == torch.bfloat16 and not x.is_cuda:
        with pytest.raises(KernelError, match="bfloat16"):
            quantize_rows(x, implementation="triton")
        return
    ours, scale = quantize_rows(x, implementation="triton")
    expected, expected_scale = quantize_rows(x, implementation="reference")
    assert torch.equal(scale, expected_scale) and scale.dtype == expected_scale.dtype
    assert torch.equal(ours.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes with NumPy
def test_kernel_takes_strided_rows_and_rows_that_are_not_finite(kernel_device: torch.device) -> None:
    x = draw(6, 40).to(kernel_device)
    x[1, 3], x[2, 0] = float("nan"), -float("inf")
    for given in (x[:, ::2], x[::2], x.t()):
        ours = dequantize(*quantize_rows(given, implementation="triton"))
        expected = dequantize(*quantize_rows(given, implementation="reference"))
        assert torch.equal(ours.isnan(), expected.isnan())
        assert torch.equal(ours.nan_to_num(), expected.nan_to_num())
    assert bool(dequantize(*quantize_rows(x))[[1, 2]].isnan().all())


def test_padding_changes_no_product() -> None:
    x, weight, bias = draw(5, 37), draw(29, 37).flip(0), draw(29)
    packed = (*quantize_rows(x), *quantize_rows(weight))
    expected = scaled_product(*packed, bias, torch.float32)
    assert_rms(expected, torch.nn.functional.linear(dequantize(*packed[:2]), dequantize(*packed[2:]), bias), 1e-6)
    assert scaled_product(packed[0][:0], packed[1][:0], *packed[2:], bias, torch.bfloat16).shape == (0, 29)
    codes = fp8._pad(packed[0], -37 % 16, 0)
    rows = fp8._pad(packed[2], -37 % 16, -29 % 16)
    scale = torch.nn.functional.pad(packed[3], (0, 0, 0, -29 % 16), value=1.0)
    padded = scaled_product(codes, packed[1], rows, scale, None, torch.float32)
    assert padded.shape == (5, 32) and bool((padded[:, 29:] == 0).all())
    assert_rms(padded[:, :29] + bias, expected, 1e-6)


def test_unsupported_rows_and_paths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="implementation is one of"):
        quantize_rows(draw(2, 4), implementation="cuda")  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="rows of 0 numbers"):
        quantize_rows(draw(2, 0), implementation="triton")
    with pytest.raises(KernelError, match="no torch path"):
        quantize_rows(draw(2, 4), implementation="torch")
    monkeypatch.delattr(torch.nn.functional, "scaled_mm")
    with pytest.raises(KernelError, match="has no scaled_mm"):
        fp8.choose_product("scaled_mm", torch.device("cpu"))
