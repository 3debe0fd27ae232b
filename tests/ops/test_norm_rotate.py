"""Norm, rotation and means of windows in one pass: the kernel against the reference, and that against the layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.layers.rope import rope_table, rotate
from lean3r.ops.norm_rotate import norm_rotate
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

SHAPES = {
    "one view": (1, 1, 5, (3, 7), 64),
    "a token": (2, 1, 0, (1, 1), 16),
    "odd": (2, 3, 2, (7, 9), 24),
    "several tiles": (1, 2, 5, (12, 12), 32),
    "more special tokens than a tile": (1, 2, 70, (4, 4), 128),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def draw(shape: tuple, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, TokenLayout]:
    """x as the queries of a fused projection, weight, bias, layout."""
    batch, views, special, (rows, cols), dim = shape
    layout = TokenLayout(views, special, rows, cols)
    random = torch.Generator().manual_seed(0)
    qkv = 3 * torch.randn(batch, views * layout.tokens, 3, 2, dim, generator=random) + 0.5
    weight, bias = torch.randn(2, dim, generator=random)
    return qkv.to(kind).permute(2, 0, 3, 1, 4)[1], weight, bias, layout


@each_shape
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize("parts", ["norm and rotation", "norm without bias", "norm", "rotation", "neither"])
def test_the_kernel_says_what_the_layers_say(
    shape: tuple, kind: torch.dtype, parts: str, kernel_device: torch.device
) -> None:
    x, weight, bias, layout = draw(shape, kind)
    dim = x.shape[-1]
    table = rope_table(layout, dim, x.device, torch.float32) if "rotation" in parts else None
    norm = (weight, None if "without" in parts else bias) if "norm" in parts else (None, None)
    expected = x.float() if norm[0] is None else F.layer_norm(x.float(), (dim,), *norm)
    expected = expected if table is None else rotate(expected, table)
    window = 4 if layout.patches % 4 == 0 else 0
    means = x.float().unflatten(2, (layout.views, -1))[:, :, :, layout.special :].flatten(2, 3)
    for how in ("reference", "triton"):
        device = kernel_device if how == "triton" else torch.device("cpu")
        given = (None if t is None else t.to(device) for t in norm)
        found, pooled = norm_rotate(
            *(x.to(device), *given, None if table is None else (table[0].to(device), table[1].to(device))),
            **{"tokens": layout.tokens, "special": layout.special, "window": window, "implementation": how},  # type: ignore[arg-type]
        )
        limit = 1e-6 if kind == torch.float32 else 5e-4
        assert found.dtype == pooled.dtype == kind
        assert_rms(found.cpu().float(), expected, limit)
        if window:
            assert_rms(pooled.cpu().float(), means.unflatten(2, (-1, window)).mean(3), limit)
        else:
            assert pooled.shape[2] == 0


@pytest.mark.parametrize("window", [2, 16, 64])
def test_means_of_windows(window: int, kernel_device: torch.device) -> None:
    x = torch.randn(1, 2, 3 * (5 + 192), 20, generator=torch.Generator().manual_seed(1)).to(kernel_device)
    _, pooled = norm_rotate(x, None, None, None, tokens=197, special=5, window=window, implementation="triton")
    patches = x.unflatten(2, (3, 197))[:, :, :, 5:].flatten(2, 3)
    assert_rms(pooled, patches.unflatten(2, (-1, window)).mean(3), 1e-6)


@pytest.mark.parametrize("how", ["reference", "triton"])
@each_shape
def test_patches_first(shape: tuple, how: str, kernel_device: torch.device) -> None:
    x, weight, bias, layout = draw(shape)
    given = [t.to(kernel_device) for t in (x, weight, bias)]
    sizes = {"tokens": layout.tokens, "special": layout.special, "window": 1, "implementation": how}
    apart, means = norm_rotate(*given, None, patches_first=True, **sizes)  # type: ignore[arg-type]
    in_order, same = norm_rotate(*given, None, **sizes)  # type: ignore[arg-type]
    views = in_order.unflatten(2, (layout.views, -1))
    parts = views[:, :, :, layout.special :].flatten(2, 3), views[:, :, :, : layout.special].flatten(2, 3)
    assert torch.equal(apart, torch.cat(parts, 2)) and torch.equal(means, same)


def test_another_type_of_results(kernel_device: torch.device) -> None:
    x, weight, bias, layout = (t.to(kernel_device) if isinstance(t, Tensor) else t for t in draw(SHAPES["odd"]))
    half, exact = (
        norm_rotate(x, weight, bias, None, tokens=layout.tokens, dtype=kind, implementation=how)[0]  # type: ignore[arg-type]
        for kind, how in ((torch.float16, "triton"), (None, "reference"))
    )
    assert half.dtype == torch.float16
    assert_rms(half.float(), exact, 5e-4)


@pytest.mark.parametrize("how", ["reference", "triton"])
def test_another_type_without_norm_and_rotation(how, kernel_device: torch.device) -> None:
    x = draw(SHAPES["odd"])[0].to(kernel_device)
    half, same = (
        norm_rotate(x, None, None, None, tokens=65, dtype=t, implementation=how)[0] for t in (torch.half, None)
    )
    assert torch.equal(half, x.half())
    assert torch.equal(same, x) and same.data_ptr() != x.data_ptr()


def test_gradients_take_the_reference(kernel_device: torch.device) -> None:
    x, weight, bias, layout = (t.to(kernel_device) if isinstance(t, Tensor) else t for t in draw(SHAPES["odd"]))
    table = rope_table(layout, x.shape[-1], x.device, x.dtype)
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    found, _ = norm_rotate(*leaves, table, tokens=layout.tokens, implementation="triton")  # type: ignore[misc]
    expected = rotate(F.layer_norm(leaves[0], (x.shape[-1],), *leaves[1:]), table)
    slopes = [torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected)]
    for ours, theirs in zip(*slopes, strict=True):
        assert_rms(ours, theirs, 1e-5)


def test_sizes_that_do_not_fit_are_refused() -> None:
    x, weight, bias, layout = draw(SHAPES["odd"])
    with pytest.raises(UsageError, match="N a multiple of 64, D of 4"):
        norm_rotate(x, weight, bias, None, tokens=64)
    with pytest.raises(UsageError, match="65 tokens without 2 are no multiple of window 4"):
        norm_rotate(x, weight, bias, None, tokens=layout.tokens, special=2, window=4)
    with pytest.raises(UsageError, match=r"bias is \[24\], got \[23\]"):
        norm_rotate(x, weight, bias[1:], None, tokens=layout.tokens)
