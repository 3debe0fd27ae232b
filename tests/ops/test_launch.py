"""Every kernel is launched on the device of its tensors, in grids that CUDA takes, however many views there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from triton.runtime import interpreter

from lean3r.ops.block_select import block_select
from lean3r.ops.block_select import kernel as select_kernel
from lean3r.ops.block_sparse import block_sparse_attention, kernel_fp8
from lean3r.ops.block_sparse import kernel as sparse_kernel
from lean3r.ops.fp8 import quantize_rows
from lean3r.ops.linear_attention import linear_attention
from lean3r.ops.linear_attention.kernel import LinearAttention
from lean3r.ops.rope2d import rope2d
from lean3r.ops.rope2d.kernel import Rope2d

LARGEST = (2**31 - 1, 65_535, 65_535)  # programs along x, y, z


@dataclass(frozen=True)
class Launch:
    """One launch; `guard` is the device of the innermost guard, None without one."""

    kernel: str
    grid: tuple[int, ...]
    guard: torch.device | None


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> list[Launch]:
    """Records every launch instead of running it; the results of kernels are then whatever memory held."""
    if kernel_device.type == "cuda":
        pytest.skip("launches are watched in Triton's interpreter")
    seen: list[Launch] = []
    guards: list[torch.device] = []

    @contextmanager
    def guard(tensor: Tensor) -> Iterator[None]:
        guards.append(tensor.device)
        yield
        guards.pop()

    def record(self: interpreter.GridExecutor, *args: object, **constants: object) -> None:
        grid = (
            self.grid(dict(zip(self.arg_names, args, strict=False)) | constants) if callable(self.grid) else self.grid
        )
        seen.append(Launch(self.fn.__name__, grid, guards[-1] if guards else None))

    monkeypatch.setattr(torch.cuda, "device_of", guard)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", record)
    return seen


def qkv(*shape: int, device: str = "cpu") -> list[Tensor]:
    return [torch.zeros(shape, dtype=torch.float16, device=device).requires_grad_() for _ in range(3)]


def sparse(kv: str = "full") -> Tensor:
    lists = torch.zeros(1, 2, 2, 1, dtype=torch.int32)
    return block_sparse_attention(
        *qkv(1, 2, 32, 32), lists, query_block=16, key_block=16, kv=kv, implementation="triton"
    )  # type: ignore[arg-type]


@torch.no_grad()
def sparse_fp8() -> Tensor:
    return sparse("fp8")


OPERATORS: dict[str, Callable[[], Tensor]] = {
    "block_sparse": sparse,
    "block_sparse_fp8": sparse_fp8,
    "block_select": lambda: block_select(*qkv(1, 2, 40, 16), 3, implementation="triton").out,
    "linear_attention": lambda: linear_attention(*qkv(1, 2, 40, 16), feature="elu", eps=1e-6, implementation="triton"),
    "rope2d": lambda: rope2d(qkv(1, 2, 40, 16)[0], torch.zeros(40, 2), implementation="triton"),
    "quantize_rows": lambda: quantize_rows(torch.zeros(40, 16), implementation="triton")[1],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_launch_is_on_the_device_of_its_tensors(name: str, launches: list[Launch]) -> None:
    out = OPERATORS[name]()
    if out.requires_grad:
        out.sum().backward()
    assert launches and all(launch.guard == torch.device("cpu") for launch in launches)


def test_4096_views_fit_into_the_grids_of_cuda(launches: list[Launch]) -> None:
    """Tensors without values: 16 heads, 4,096 views as scenes of one view each, then 4,096 views of 864 + 5 tokens."""
    views, heads, tokens = 4096, 16, 869
    frames = qkv(views, heads, 896, 64, device="meta")
    lists = torch.zeros(views, heads, 56, 4, dtype=torch.int32, device="meta")
    sizes = (16, 16, 0.125, None, None)
    sparse_kernel.attend(*frames, lists, *sizes).sum().backward()
    kernel_fp8.attend(*frames, lists, *sizes)
    LinearAttention.apply(*frames, None, "elu", 1e-6).sum().backward()
    Rope2d.apply(frames[0], torch.zeros(896, 2, device="meta"), 100.0).sum().backward()
    select_kernel.select(*qkv(views, heads, 54, 64, device="meta"), 4, 0.125, None, ())[1].sum().backward()
    LinearAttention.apply(*qkv(1, heads, views * tokens, 64, device="meta"), None, "elu", 1e-6).sum().backward()
    windows = views * 54
    whole = qkv(1, heads, windows * 16, 64, device="meta")
    lists = torch.zeros(1, heads, windows, 32, dtype=torch.int32, device="meta")
    sparse_kernel.attend(*whole, lists, *sizes).sum().backward()
    select_kernel.select(*qkv(1, heads, windows, 64, device="meta"), 32, 0.125, None, ())[1].sum().backward()
    for launch in launches:
        assert all(0 < n <= most for n, most in zip(launch.grid, LARGEST, strict=False)), launch
    assert len({launch.kernel for launch in launches}) == 14  # all but that of quantize_rows
