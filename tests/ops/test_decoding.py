"""Inside the kernel that reads E4M3: every code by either way, and queries brought into the range of float16."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed: kernels cannot run")
import triton.language as tl  # noqa: E402

from lean3r.ops.block_sparse.kernel_fp8 import _decode, _in_range  # noqa: E402
from lean3r.ops.fp8.kernel import has_cast  # noqa: E402


@triton.jit
def _decode_all(codes, out, HARDWARE: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(out + at, _decode(tl.load(codes + at), tl.float16, HARDWARE))


@triton.jit
def _bring_into_range(x, out, factor):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    numbers, by = _in_range(tl.load(x + at))
    tl.store(out + at, numbers)
    tl.store(factor, by)


@pytest.mark.parametrize("hardware", [False, True])
def test_every_code_is_read_exactly(hardware: bool, kernel_device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8, device=kernel_device)
    if kernel_device.type == "cuda" and hardware and not has_cast(codes):
        pytest.skip("this GPU does not read E4M3")
    wanted = codes.view(torch.float8_e4m3fn).half()
    found = torch.empty_like(wanted)
    _decode_all[(1,)](codes, found, HARDWARE=hardware)
    numbers = ~wanted.isnan()
    assert numbers.sum() == 254
    assert torch.equal(found[numbers] * (1 if hardware else 256), wanted[numbers])


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-6, 1.0, 3e4, 1e30])
def test_queries_in_the_range_of_float16(size: float, kernel_device: torch.device) -> None:
    """Numbers of 8 bits stay what they are down to 2^-30 of the largest; what is no number harms no other."""
    x = (2.0 ** torch.linspace(-30, 0, 256) * size).bfloat16().float().view(16, 16).to(kernel_device)
    x[0, 3], x[5, 5] = torch.inf, torch.nan
    found, factor = torch.empty_like(x, dtype=torch.float16), x.new_empty(1)
    _bring_into_range[(1,)](x, found, factor)
    assert torch.equal(found.isnan(), x.isnan()) and torch.equal(found.isinf(), x.isinf())
    normal = x.isfinite() & (x.abs() > 2.0**-120)
    assert torch.equal(found.double()[normal], x.double()[normal] * factor.double())
    assert normal.sum() > 200 or size < 1e-30
