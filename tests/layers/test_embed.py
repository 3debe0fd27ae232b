"""Tokens from pixels at any shape: their number, order and position."""

from __future__ import annotations

import pytest
import torch

from lean3r.layers.embed import ConvStem, SpecialTokens, imagenet
from lean3r.layers.vit import PatchEmbed, VisionTransformer

SHAPES = [(1, 1), (3, 7), (7, 3), (5, 5)]


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize(("module", "patch"), [(ConvStem((4, 8, 12)), 8), (PatchEmbed(12, 14), 14)])
def test_one_token_per_patch_row_by_row(module: torch.nn.Module, patch: int, rows: int, cols: int) -> None:
    pictures = torch.rand(2, 3, rows * patch, cols * patch, generator=torch.Generator().manual_seed(0))
    other = pictures.clone()
    other[1, :, -1, -1] += 1.0  # the last pixel of the last patch
    with torch.no_grad():
        a, b = module(pictures), module(other)
    assert a.shape == (2, rows * cols, 12)
    changed = (a != b).any(-1)
    assert changed[1, -1] and not changed[0].any() and not changed[1, : max(0, (rows - 2) * cols)].any()


def test_special_tokens_come_first_and_are_the_same_in_all_views() -> None:
    special, patches = SpecialTokens(2, 8), torch.randn(2, 3, 5, 8).bfloat16()
    found = special(patches)
    assert found.shape == (2, 3, 7, 8) and found.dtype == torch.bfloat16
    assert torch.equal(found[:, :, 2:], patches) and bool((found[:, :, :2] == found[:1, :1, :2]).all())


def test_imagenet_grey_becomes_zero() -> None:
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(2, 3, 4, 5)
    assert not imagenet(mean).any() and imagenet(mean + 0.1).min() > 0.4


@pytest.mark.parametrize("resize", ["antialias", "offset"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_positions_at_any_size(resize, rows: int, cols: int) -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(16, 1, 2, grid=5, registers=2, resize=resize)
    found = vit.positions(rows, cols)
    assert found.shape == (1, rows * cols, 16)
    if rows == cols == 5:
        assert torch.equal(found, vit.pos_embed[:, 1:])
    with torch.no_grad():
        vit.pos_embed[:, 1:] = torch.linspace(-1, 1, 5).repeat(5)[:, None]  # grows with the column only
        steps = vit.positions(rows, cols).unflatten(1, (rows, cols))[0, ..., 0]
        tokens = vit.embed(torch.rand(2, 3, 14 * rows, 14 * cols))
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-5, rtol=0)
    assert bool((steps.diff(dim=1) > 0).all()) and tokens.shape == (2, 3 + rows * cols, 16)
    assert vit(torch.rand(1, 3, 14 * rows, 14 * cols)).shape == (1, rows * cols, 16)
