"""Norm, rotation and means of windows in one pass: the kernel against the reference, and that against the layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.layers import causal as causal_module
from lean3r.layers import rope as rope_module
from lean3r.layers.causal import CausalAttention, FrameSight
from lean3r.layers.frames import CachePolicy, FrameTable
from lean3r.layers.rope import rope_table, rotate
from lean3r.layers.time_rope import TimeRope, rotate_pairs
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


def draw_pairs(dim: int) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """x as the queries of a fused projection of three frames, weight, bias, and their table [N, D / 2]."""
    x, weight, bias, layout = draw((2, 3, 2, (7, 9), dim))
    return x, weight, bias, TimeRope([4, 5, 9]).table(layout, dim, x.device)


@pytest.mark.parametrize("dim", [64, 20, 12])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", ["norm", "norm without bias", "rotation alone"])
def test_neighbouring_channels_turn_together(
    dim: int, kind: torch.dtype, parts: str, kernel_device: torch.device
) -> None:
    """N fills no tile, and x lies between keys and values. The interpreter takes no bfloat16: it writes that alone."""
    x, weight, bias, table = draw_pairs(dim)
    norm = (weight, None if "without" in parts else bias) if "norm" in parts else (None, None)
    for how in ("reference", "triton"):
        device = kernel_device if how == "triton" else torch.device("cpu")
        given = x.to(device, kind if how == "reference" or device.type == "cuda" else torch.float32)
        exact = given.cpu().float()
        expected = rotate_pairs(exact if norm[0] is None else F.layer_norm(exact, (dim,), *norm), *table)
        affine = (None if t is None else t.to(device) for t in norm)
        turns = table[0].to(device), table[1].to(device)
        sizes = {"tokens": x.shape[2], "pairs": True, "implementation": how}
        found, means = norm_rotate(given, *affine, turns, dtype=kind, **sizes)  # type: ignore[arg-type]
        assert found.dtype == kind and found.shape == x.shape and means.shape[2] == 0
        assert_rms(found.cpu().float(), expected, 1e-6 if kind == torch.float32 else 4e-3)


def test_a_table_of_pairs_repeats_in_every_view(kernel_device: torch.device) -> None:
    x, weight, bias, layout = (t.to(kernel_device) if isinstance(t, Tensor) else t for t in draw(SHAPES["odd"]))
    table = TimeRope([3]).table(layout, x.shape[-1], x.device)
    found, _ = norm_rotate(x, weight, bias, table, tokens=layout.tokens, pairs=True, implementation="triton")
    whole = table[0].repeat(layout.views, 1), table[1].repeat(layout.views, 1)
    assert_rms(found, rotate_pairs(F.layer_norm(x, (x.shape[-1],), weight, bias), *whole), 1e-6)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_frames_in_order_in_one_pass(
    qk_norm: bool, kind: torch.dtype, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU takes it: layers that rotate by time, row and column write q and k in the type of v."""
    torch.manual_seed(0)
    layout = TokenLayout(3, 2, 3, 5)
    attention = CausalAttention(40, 2, qk_norm=qk_norm, rope="time").requires_grad_(False).to(kernel_device, kind)
    x = torch.randn(2, 3 * layout.tokens, 40).to(kernel_device, kind)
    sight = FrameSight(FrameTable.of(CachePolicy(anchors=1, window=2, interval=2), 3), 2)
    seen: list[torch.dtype] = []
    attend = sight.attend

    def watched(q: Tensor, k: Tensor, *rest) -> Tensor:
        seen.extend((q.dtype, k.dtype))
        return attend(q, k, *rest)

    calls: list[bool] = []

    def forced(*args, pairs: bool, **named) -> tuple[Tensor, Tensor]:
        calls.append(pairs)
        return norm_rotate(*args, **named, pairs=pairs, implementation="triton")

    monkeypatch.setattr(sight, "attend", watched)
    monkeypatch.setattr(rope_module, "norm_rotate", forced)
    monkeypatch.setattr(causal_module, "in_one_pass", lambda *_: False)
    apart = attention(x, layout, None, sight)
    assert not calls
    monkeypatch.setattr(causal_module, "in_one_pass", lambda *_: True)
    assert_rms(attention(x, layout, None, sight).float(), apart.float(), 1e-5 if kind == torch.float32 else 2e-3)
    assert calls == [True, True] and set(seen) == {kind}


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


def test_gradients_of_pairs(kernel_device: torch.device) -> None:
    x, weight, bias, table = draw_pairs(20)
    table = table[0].to(kernel_device), table[1].to(kernel_device)
    leaves = [t.to(kernel_device).detach().requires_grad_() for t in (x, weight, bias)]
    found, _ = norm_rotate(*leaves, table, tokens=x.shape[2], pairs=True, implementation="triton")  # type: ignore[misc]
    expected = rotate_pairs(F.layer_norm(leaves[0], (20,), *leaves[1:]), *table)
    slopes = [torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected)]
    for ours, theirs in zip(*slopes, strict=True):
        assert_rms(ours, theirs, 1e-5)


def test_what_pairs_refuse() -> None:
    x, weight, bias, table = draw_pairs(20)
    for more in ({"window": 1}, {"patches_first": True}):
        with pytest.raises(UsageError, match="with pairs there are neither windows nor patches_first"):
            norm_rotate(x, weight, bias, table, tokens=x.shape[2], pairs=True, **more)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"table is \[195, 20\], got \[195, 10\]"):
        norm_rotate(x, weight, bias, table, tokens=x.shape[2])
    wide = torch.cat([table[0], table[0]], 1), torch.cat([table[1], table[1]], 1)
    with pytest.raises(UsageError, match=r"table is \[195, 10\], got \[195, 20\]"):
        norm_rotate(x, weight, bias, wide, tokens=x.shape[2], pairs=True)


def test_sizes_that_do_not_fit_are_refused() -> None:
    x, weight, bias, layout = draw(SHAPES["odd"])
    with pytest.raises(UsageError, match="N a multiple of 64, D of 4"):
        norm_rotate(x, weight, bias, None, tokens=64)
    with pytest.raises(UsageError, match="65 tokens without 2 are no multiple of window 4"):
        norm_rotate(x, weight, bias, None, tokens=layout.tokens, special=2, window=4)
    with pytest.raises(UsageError, match=r"bias is \[24\], got \[23\]"):
        norm_rotate(x, weight, bias[1:], None, tokens=layout.tokens)
