"""Attention as written out by hand; rotation depends only on differences of positions; blocks add to x."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lean3r.attention.dense import Dense
from lean3r.layers import block as blocks
from lean3r.layers.attention import Rotation, SelfAttention
from lean3r.layers.block import Block
from lean3r.layers.mlp import feed_forward
from lean3r.layers.rope import position_table, rope_positions, rope_table, rotate
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
    with torch.no_grad():
        torch.testing.assert_close(block(x, LAYOUT), expected, msg="in pieces")
    assert torch.equal(x, before), "the input does not change"


def test_hidden_widths_of_the_feed_forward() -> None:
    assert feed_forward("swiglu", 32, 128).w3.in_features == 88  # type: ignore[union-attr]
    assert feed_forward("gelu", 32, 128).fc1.out_features == 128  # type: ignore[union-attr]
