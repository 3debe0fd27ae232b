"""Operators as nodes of a graph: torch's own checks of schema, shapes and gradients, and results as without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lean3r.ops.block_select import block_select
from lean3r.ops.block_sparse import block_sparse_attention
from lean3r.ops.linear_attention import linear_attention
from lean3r.ops.norm_rotate import norm_rotate
from lean3r.ops.rope2d import rope2d
from lean3r.ops.span_attention import span_attention

ops = torch.ops.lean3r


def leaves(*shape: int, count: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for _ in range(count)]


LISTS = torch.tensor([[[[0, 2], [1, -1]], [[2, 1], [0, 0]]]], dtype=torch.int32)
MASK = torch.tensor([[True] * 40 + [False] * 8])
WINDOWS = torch.tensor([[True] * 11 + [False]])
SPANS = torch.tensor([[20, 9], [3, 0], [1, 11]], dtype=torch.int32)
POSITIONS = torch.arange(24.0).view(12, 2)


def sparse(how: str) -> tuple[tuple, Callable[[], object]]:
    k, v, q, *extra = leaves(1, 2, 48, 32, count=5)
    q, extra_k, extra_v = q[:, :, :32], extra[0][:, :, :5], extra[1][:, :, :5]
    args = (q, k, v, LISTS, MASK, extra_k, extra_v, 16, 16, 0.2, "full", how)
    options = {"query_block": 16, "key_block": 16, "scale": 0.2, "key_mask": MASK, "implementation": how}
    return args, lambda: block_sparse_attention(q, k, v, LISTS, dense_keys=(extra_k, extra_v), **options)  # type: ignore[arg-type]


def select(how: str) -> tuple[tuple, Callable[[], object]]:
    q, k, v = leaves(1, 2, 12, 32)
    args = (q, k, v, 3, 32**-0.5, WINDOWS, [4], "unique", how)
    options = {"key_mask": WINDOWS, "skip": [4], "implementation": how}
    return args, lambda: block_select(q, k, v, 3, **options)  # type: ignore[arg-type]


def linear(how: str) -> tuple[tuple, Callable[[], object]]:
    q, k, v = leaves(1, 2, 48, 16)
    options = {"feature": "elu", "eps": 1e-6, "key_mask": MASK, "implementation": how}
    return (q, k, v, MASK, "elu", 1e-6, how), lambda: linear_attention(q, k, v, **options)  # type: ignore[arg-type]


def rope(how: str) -> tuple[tuple, Callable[[], object]]:
    (x,) = leaves(1, 2, 12, 16, count=1)
    return (x, POSITIONS, 100.0, how), lambda: rope2d(x, POSITIONS, implementation=how)  # type: ignore[arg-type]


def norm(how: str) -> tuple[tuple, Callable[[], object]]:
    (x, table), (weight, bias) = leaves(1, 2, 24, 16, count=2), leaves(16, count=2)
    cos, sin = table.detach()[0, 0, :12], table.detach()[0, 1, :12]
    args = (x, weight, bias, cos, sin, 12, 4, 4, 1e-5, torch.float32, True, False, how)
    options = {"tokens": 12, "special": 4, "window": 4, "patches_first": True, "implementation": how}
    return args, lambda: norm_rotate(x, weight, bias, (cos, sin), **options)  # type: ignore[arg-type]


def span(how: str) -> tuple[tuple, Callable[[], object]]:
    (q,), (k, v) = leaves(2, 12, 16, count=1), leaves(2, 32, 16, count=2, seed=1)
    return (q, k, v, SPANS, 0.2, how), lambda: span_attention(q, k, v, SPANS, scale=0.2, implementation=how)  # type: ignore[arg-type]


CALLS = {"block_sparse_attention": sparse, "block_select": select, "linear_attention": linear}
CALLS |= {"rope2d": rope, "norm_rotate": norm, "span_attention": span}
NO_TORCH = ("rope2d", "norm_rotate", "span_attention")
HOW = [(x, how) for x in CALLS for how in ("reference", "torch", "triton") if how != "torch" or x not in NO_TORCH]


@pytest.mark.parametrize(("name", "how"), HOW)
def test_torch_finds_the_node_sound(name: str, how: str, kernel_device: torch.device) -> None:
    if kernel_device.type == "cuda":
        pytest.skip("the tensors of this test are on the CPU")
    args, _ = CALLS[name](how)
    torch.library.opcheck(getattr(ops, name).default, args)


@pytest.mark.parametrize(("name", "how"), HOW)
def test_the_node_gives_what_a_direct_call_gives(name: str, how: str, kernel_device: torch.device) -> None:
    if kernel_device.type == "cuda":
        pytest.skip("the tensors of this test are on the CPU")
    args, direct = CALLS[name](how)
    found, expected = getattr(ops, name)(*args), direct()
    if name == "block_select":
        expected = (expected.out, expected.lse, expected.blocks)  # type: ignore[attr-defined]
    elif name != "norm_rotate":
        found, expected = (found,), (expected,)
    inputs = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    sums = []
    for results in (found, expected):
        for a, b in zip(results, expected, strict=True):
            torch.testing.assert_close(a, b)  # the direct call may record gradients
        sums.append(sum(x.square().sum() for x in results if x.is_floating_point()))
    for a, b in zip(*(torch.autograd.grad(s, inputs) for s in sums), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(a, b)
