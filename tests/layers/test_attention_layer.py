"""Attention as written out by hand; rotation depends only on differences of positions; blocks add to x."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from lean3r.attention.coarse_fine import Gsa
from lean3r.attention.dense import Dense
from lean3r.layers import attention as attention_module
from lean3r.layers import block as blocks
from lean3r.layers import rope as rope_module
from lean3r.layers.attention import Rotation, SelfAttention
from lean3r.layers.block import Block
from lean3r.layers.mlp import feed_forward
from lean3r.layers.rope import position_table, rope_positions, rope_table, rotate
from lean3r.layers.trunk import key_mask
from lean3r.ops.norm_rotate import norm_rotate
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

LAYOUT = TokenLayout(views=2, special=2, rows=3, cols=5)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def layer(rope: Rotation = True) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(32, 2, rope=rope)


def reference_attention(a: SelfAttention, x: Tensor, layout: TokenLayout, key_mask: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d)) v, head by head."""
    heads = []
    for q, k, v in zip(*(part.chunk(a.heads, -1) for part in a.qkv(x).chunk(3, -1)), strict=True):
        q, k = a.q_norm(q), a.k_norm(k)
        if a.rope:
            table = rope_table(layout, q.shape[-1], q.device, q.dtype, flat=a.rope == "flat")
            q, k = rotate(q, table), rotate(k, table)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None], -torch.inf)
        heads.append(scores.softmax(-1) @ v)
    return a.proj(torch.cat(heads, -1))


@pytest.mark.parametrize("rope", [True, False, "flat"])
@pytest.mark.parametrize("has_padding", [False, True])
def test_it_equals_attention_written_out(rope: Rotation, has_padding: bool) -> None:
    x = draw(3, 34, 32)
    mask = torch.ones(3, 34, dtype=torch.bool)
    mask[:, [5, 20, 33]] = False
    with torch.no_grad():
        found = layer(rope)(x, LAYOUT, mask if has_padding else None)
        expected = reference_attention(layer(rope), x, LAYOUT, mask if has_padding else None)
    assert_rms(found[mask], expected[mask], 1e-5)


def test_padding_is_never_read() -> None:
    x, mask = draw(1, 34, 32), torch.ones(1, 34, dtype=torch.bool)
    mask[:, 7] = False
    other = x.clone()
    other[:, 7] = 100.0
    with torch.no_grad():
        a, b = (layer()(values, LAYOUT, mask) for values in (x, other))
    assert torch.equal(a[mask], b[mask])


def test_short_sequences_go_to_the_short_mechanism() -> None:
    a = layer()
    a.short, a.dense_below = Dense(), 40
    assert a.mechanism_for(39) is a.short and a.mechanism_for(40) is a.mechanism


@pytest.mark.parametrize(("dim", "heads"), [(32, 3), (12, 2)])
def test_invalid_widths_are_refused(dim: int, heads: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4 channels"):
        SelfAttention(dim, heads)


def test_rotation_depends_only_on_differences_of_rows_and_columns() -> None:
    q, k = draw(15, 16), draw(1, 15, 16)[0]
    here = rope_positions(TokenLayout(1, 0, 3, 5), q.device)

    def scores(shift: tuple[float, float]) -> Tensor:
        table = position_table(here + torch.tensor(shift), 16, torch.float32)
        return rotate(q, table) @ rotate(k, table).mT

    assert_rms(scores((4.0, 9.0)), scores((0.0, 0.0)), 1e-5)
    table = position_table(here, 16, torch.float32)
    assert_rms(rotate(q, table).norm(dim=-1), q.norm(dim=-1), 1e-6)


def test_rows_columns_special_tokens_and_windows() -> None:
    positions = rope_positions(LAYOUT, torch.device("cpu"))
    assert positions[:3].tolist() == [[0, 0], [0, 0], [1, 1]] and positions[-1].tolist() == [3, 5]
    flat = rope_positions(LAYOUT, torch.device("cpu"), flat=True)
    assert flat[2:].unique().tolist() == [1.0] and not flat[:2].any()
    windowed = TokenLayout(1, 2, 3, 5, window=2)
    order = windowed.order()
    assert order is not None
    assert torch.equal(rope_positions(windowed, torch.device("cpu"))[2:], positions[2:][order])


def test_the_table_repeats_for_each_view() -> None:
    x, table = draw(2, 34, 16), rope_table(LAYOUT, 16, torch.device("cpu"), torch.float32)
    whole = rotate(x, table)
    assert torch.equal(whole, torch.cat([rotate(part, table) for part in x.split(17, dim=1)], dim=1))
    assert torch.equal(whole[:, :2], x[:, :2]), "special tokens are not rotated"


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("layer_scale", [None, 0.0, 0.5])
def test_a_block_adds_two_branches(mlp, layer_scale: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, x = Block(32, 2, mlp=mlp, layer_scale=layer_scale), draw(2, 34, 32)
    scale = 1.0 if layer_scale is None else layer_scale
    middle = x + scale * block.attn(block.norm1(x), LAYOUT)
    expected = middle + scale * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(x, LAYOUT), expected)
    if layer_scale == 0.0:
        assert torch.equal(block(x, LAYOUT), x)
    monkeypatch.setattr(blocks, "MLP_ELEMENTS", 200)
    before = x.clone()
    channels_first = x.mT.contiguous().mT  # as a convolution leaves them
    with torch.no_grad():
        torch.testing.assert_close(block(x, LAYOUT), expected, msg="in pieces")
        torch.testing.assert_close(block(channels_first, LAYOUT), expected, msg="the feed-forward part is lost")
    assert torch.equal(x, before), "the input does not change"


def test_hidden_widths_of_the_feed_forward() -> None:
    assert feed_forward("swiglu", 32, 128).w3.in_features == 88  # type: ignore[union-attr]
    assert feed_forward("gelu", 32, 128).fc1.out_features == 128  # type: ignore[union-attr]


@pytest.mark.parametrize(("qk_norm", "rope"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("grid", [(5, 8, 12, 4), (0, 4, 4, 4), (2, 7, 9, 4), (5, 8, 8, None)])
@pytest.mark.parametrize(("views", "padded"), [(1, False), (3, False), (3, True)])
def test_norm_rotation_and_pooling_in_one_pass(
    grid: tuple, qk_norm: bool, rope: bool, views: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU takes it; means of windows only where these lie in a row, without padding."""
    torch.manual_seed(0)
    special, rows, cols, window = grid
    valid = torch.rand(1, views, rows * cols) > 0.2 if padded else None
    layout = TokenLayout(views, special, rows, cols, valid, window)
    attention = SelfAttention(64, 2, qk_norm=qk_norm, rope=rope).requires_grad_(False)
    attention.mechanism = Gsa(64, 2, top_k=2)
    x, mask = torch.randn(1, views * layout.tokens, 64), key_mask(layout, 1)
    mask = None if mask is None else mask.flatten(1)
    expected = attention(x, layout, mask)
    calls: list[int] = []

    def spied(*args, window: int = 0, **named):
        calls.append(window)
        return norm_rotate(*args, window=window, **named)

    asked: list[object] = []
    monkeypatch.setattr(attention_module, "in_one_pass", lambda *norms: not asked.append(norms))
    monkeypatch.setattr(rope_module, "norm_rotate", spied)
    assert_rms(attention(x, layout, mask), expected, 1e-5)
    assert len(asked) == 1, "once a layer: it costs microseconds of the host"
    pooled = window == 4 and rows % 4 == cols % 4 == 0 and not padded
    assert (16 in calls) == pooled
    assert bool(calls) == (qk_norm or rope or pooled)


def test_what_is_done_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope_module, "why_not_triton", lambda _: None)
    with FakeTensorMode(), torch.no_grad():
        x, odd = (torch.empty(1, 2, 3, dim, device="cuda") for dim in (8, 6))
        assert rope_module.in_one_pass(x, nn.LayerNorm(8)) and rope_module.in_one_pass(x, nn.Identity())
        assert not rope_module.in_one_pass(x.cpu(), nn.LayerNorm(8))
        assert not rope_module.in_one_pass(odd, nn.LayerNorm(6))
        assert not rope_module.in_one_pass(x, nn.RMSNorm(8))
        watched = nn.LayerNorm(8)
        watched.register_forward_hook(lambda *_: None)
        assert not rope_module.in_one_pass(x, watched)
        assert rope_module.in_one_pass(x, nn.LayerNorm(8), nn.LayerNorm(8))
        assert not rope_module.in_one_pass(x, nn.LayerNorm(8), watched)
        with torch.enable_grad():
            assert not rope_module.in_one_pass(x, nn.LayerNorm(8))
        monkeypatch.setattr(rope_module, "why_not_triton", lambda _: "triton is not installed")
        assert not rope_module.in_one_pass(x, nn.LayerNorm(8))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_branches_are_added_in_one_pass(scale: float | None, kind: torch.dtype) -> None:
    """Types and gradients as written out; a hook on the scale sees its result."""
    layer = blocks.Block(32, 2, layer_scale=scale)
    x, branch = draw(2, 5, 32), draw(5, 32).to(kind).expand(2, 5, 32)
    ours, theirs = (t.clone().requires_grad_() for t in (x, x))
    found, expected = blocks.add_scaled(ours, layer.ls1, branch), theirs + layer.ls1(branch)
    assert found.dtype == expected.dtype
    assert_rms(found, expected, 1e-6)
    inputs = [*layer.ls1.parameters()]
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), [ours, *inputs]),
        torch.autograd.grad(expected.square().sum(), [theirs, *inputs]),
        strict=True,
    ):
        assert_rms(a, b, 1e-5)
    with torch.no_grad():
        part = x.clone()
        blocks.add_scaled(part, layer.ls1, branch, out=part)
        assert torch.equal(part, found)
        seen: list[Tensor] = []
        layer.ls1.register_forward_hook(lambda _m, _i, result: seen.append(result))
        assert_rms(blocks.add_scaled(x, layer.ls1, branch), expected, 1e-6)
    assert len(seen) == 1
