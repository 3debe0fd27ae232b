"""FP8 rows: every code in its place, the kernel against the reference, what cannot run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from lean3r.errors import KernelError, UsageError
from lean3r.ops import fp8
from lean3r.ops.fp8 import (
    E4M3,
    Operand,
    Rows,
    dequantize,
    gelu_rows,
    kernel,
    lay_out,
    norm_rows,
    quantize_rows,
    rows_of,
    scaled_product,
)
from lean3r.ops.fp8.reference import Before, pad_codes, rows_reference
from lean3r.testing import assert_rms


@pytest.fixture(autouse=True)
def rounding_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teaches Triton's interpreter what GPUs do: fused multiply-add, casts that round to nearest, ties to even."""
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
    tl, kind = pytest.importorskip("triton.language"), interpreter.TensorHandle
    builder, plain = interpreter.InterpreterBuilder, interpreter.InterpreterBuilder.create_fp_to_fp

    def fma(self, x, y, z):
        exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return kind(exact.astype(np.float32), x.dtype.scalar)

    def cast(self, source, target, mode=None):
        to = target.scalar
        if source.dtype.scalar != tl.float32 or to not in (tl.bfloat16, tl.float8e4nv):
            return self.cast_impl(source, target) if mode is None else plain(self, source, target, mode)
        values = torch.from_numpy(np.array(source.data))
        if to == tl.bfloat16:
            return kind(values.bfloat16().view(torch.uint16).numpy(), to)
        return kind(values.clamp(-448, 448).to(E4M3).view(torch.uint8).numpy(), to)

    monkeypatch.setattr(builder, "create_fma", fma)
    monkeypatch.setattr(builder, "create_fp_trunc", cast)
    monkeypatch.setattr(builder, "create_fp_to_fp", cast)


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
    assert torch.equal(ours.float(), expected.float())  # -0 may be 0


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


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter computes with NumPy
@pytest.mark.parametrize("before", ["nothing", "norm", "gelu"])
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("depth", "padded"), [(96, 96), (37, 48), (5, 16)])
@pytest.mark.parametrize("has_cast", [False, True])
def test_fused_rows_agree_with_reference(
    kernel_device: torch.device,
    before: Before,
    dtype: torch.dtype,
    depth: int,
    padded: int,
    has_cast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_cast or kernel_device.type == "cpu":
        monkeypatch.setattr(kernel, "has_cast", lambda x: has_cast)
    x, gain, offset = draw(9, 5, depth), 1 + draw(depth) / 9, draw(depth) / 3
    x[0, 0], x[1, 2, 2], x[2, :, 0] = 0, torch.nan, 70
    x, gain, offset = (t.to(kernel_device, dtype) for t in (x[1:, ::2], gain, offset))
    settings = {"dtype": dtype, "scale_dtype": torch.float32, "padded": padded}
    codes, scale = kernel.quantize_fused(x, before, gain, offset, 1e-6, **settings)
    expected, expected_scale = rows_reference(x, before, gain, offset, 1e-6, **settings)
    assert codes.shape == (8, 3, padded)
    broken = scale[..., 0].isnan()
    assert torch.equal(broken, expected_scale[..., 0].isnan()) and broken[0, 1] == (depth > 2) and broken.sum() < 2
    step = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype] if before != "nothing" else 0
    torch.testing.assert_close(scale, expected_scale, rtol=step, atol=0, equal_nan=True)
    ours, theirs = (t.view(torch.uint8)[~broken].int() for t in (codes, expected))
    assert not ours[:, depth:].any()
    # Sums in another order move a number across the border of two codes now and then, to the neighbour.
    away = (ours - theirs).abs()
    assert away.max() <= (step > 0) and (away > 0).float().mean() <= 2e-3


def test_rows_are_those_of_the_layers_before() -> None:
    x, gain, offset = draw(4, 6, 32), 1 + draw(32) / 9, draw(32) / 3
    for given in (x, x.bfloat16(), x.half()):
        gains = gain.to(given.dtype), offset.to(given.dtype)
        found = (norm_rows(given, *gains, 1e-6), F.layer_norm(given, (32,), *gains, 1e-6))
        for rows, expected in ((rows_of(given), given), (gelu_rows(given), F.gelu(given)), found):
            codes, scale = quantize_rows(expected)
            assert rows.scale.dtype == torch.float32 and rows.dtype == given.dtype
            assert_rms(dequantize(rows.codes, rows.scale), dequantize(codes, scale).float(), 3e-3)
            if given.dtype == torch.float32:
                assert torch.equal(rows.codes.view(torch.uint8), codes.view(torch.uint8))
                assert torch.equal(rows.scale, scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_rows(x.bfloat16(), gain, offset, 1e-6).dtype == torch.float32  # as LayerNorm under autocast


def test_the_operator_keeps_to_the_rules_of_torch() -> None:
    x, gain = draw(3, 5, 32), draw(32)
    for before, kind in (("nothing", torch.float32), ("norm", torch.bfloat16), ("gelu", torch.float16)):
        given = (x, before, gain, gain, 1e-6, kind, torch.float32, 48, "auto")
        torch.library.opcheck(torch.ops.lean3r.fp8_rows.default, given)


def test_padding_changes_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = draw(5, 37), draw(29, 37).flip(0), draw(29)
    codes, scale = quantize_rows(weight)
    rows, operand = rows_of(x), lay_out(codes, scale)
    assert operand.codes is codes and operand.scale.data_ptr() == scale.data_ptr()  # nothing to lay out
    expected = scaled_product(rows, operand, bias, torch.float32)
    full = F.linear(dequantize(rows.codes, rows.scale), dequantize(codes, scale), bias)
    assert_rms(expected, full, 1e-6)
    none = Rows(rows.codes[:0], rows.scale[:0], rows.dtype)
    assert scaled_product(none, operand, bias, torch.bfloat16).shape == (0, 29)
    wide = Operand(pad_codes(codes, 11, 3), F.pad(operand.scale, (0, 3), value=1.0), 29)
    padded = Rows(pad_codes(rows.codes, 11), rows.scale, rows.dtype)
    assert_rms(scaled_product(padded, wide, F.pad(bias, (0, 3)), torch.float32), expected, 1e-6)


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
