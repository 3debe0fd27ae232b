"""Small transformers before a head: nothing is concatenated, views are independent, padding is not read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lean3r.heads.refine import SceneReader, ViewRefiner, _split_linear
from lean3r.layers.linear import Linear
from lean3r.testing import assert_rms
from lean3r.types import TokenLayout

LAYOUT = TokenLayout(2, 1, 2, 3)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_the_product_of_parts_equals_that_of_the_whole() -> None:
    torch.manual_seed(0)
    parts = (draw(2, 5, 4), draw(2, 5, 4) + 1, draw(2, 5, 4) * 2)
    for kind in (Linear, nn.Linear):
        linear = kind(12, 7)
        with torch.no_grad():
            assert_rms(_split_linear(linear, parts), linear(torch.cat(parts, -1)), 1e-6)


def test_views_are_refined_independently() -> None:
    torch.manual_seed(0)
    refiner, x = ViewRefiner(10, 16, 2, 6, depth=2), draw(2, 7, 10)
    with torch.no_grad():
        found = refiner(x, LAYOUT)
        assert found.shape == (2, 7, 6)
        assert_rms(torch.cat([refiner(one[None], LAYOUT) for one in x]), found, 1e-5)


def test_a_scene_is_read_without_its_padding() -> None:
    torch.manual_seed(0)
    reader, query, mask = SceneReader(8, 16, 2, 6, depth=2), draw(1, 1, 8), torch.ones(1, 14, dtype=torch.bool)
    mask[:, 9] = False
    tokens = draw(1, 14, 8)
    other = tokens.clone()
    other[:, 9] = 30.0
    with torch.no_grad():
        found = reader(query, (tokens[..., :3], tokens[..., 3:]), LAYOUT, mask)
        assert torch.equal(found, reader(query, (other[..., :3], other[..., 3:]), LAYOUT, mask))
        assert found.shape == (1, 1, 6)
        views = tokens.unflatten(1, (2, 7)).flip(1).flatten(1, 2)
        assert_rms(reader(query, (views,), LAYOUT), reader(query, (tokens,), LAYOUT), 1e-5)
