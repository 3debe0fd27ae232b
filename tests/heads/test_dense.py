"""Dense heads at any shape: sizes, one frame at a time, and the tokens that a pixel depends on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lean3r.heads.conv import ConvPixels, plane_coordinates
from lean3r.heads.dense import DptFeatures, DptHead, DualDptHead, add_uv, frame_bytes, uv_tables
from lean3r.heads.guided import LOG_WIDTHS, GuidedUpsampler
from lean3r.heads.linear import LinearPixels
from lean3r.testing import assert_rms

GRIDS = [(1, 1), (2, 3), (5, 2)]
CHANNELS = (8, 8, 8, 8)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def four(frames: int, rows: int, cols: int) -> list[Tensor]:
    return list(torch.randn(4, frames, rows * cols, 12, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(("rows", "cols"), GRIDS)
def test_dpt_at_any_shape_and_frame_by_frame(rows: int, cols: int) -> None:
    torch.manual_seed(0)
    head, tokens, height, width = (
        DptHead(12, (2, 1), features=16, channels=CHANNELS),
        four(3, rows, cols),
        14 * rows,
        14 * cols,
    )
    with torch.no_grad():
        whole = head(tokens, rows, cols, height, width)
        parts = [head([t[i : i + 1] for t in tokens], rows, cols, height, width) for i in range(3)]
    assert [tuple(x.shape) for x in whole] == [(3, 2, height, width), (3, 1, height, width)]
    for place, found in enumerate(whole):
        assert_rms(torch.cat([part[place] for part in parts]), found, 1e-5)


@pytest.mark.parametrize(("rows", "cols"), GRIDS)
def test_rays_features_and_guides(rows: int, cols: int) -> None:
    torch.manual_seed(0)
    tokens, height, width = four(2, rows, cols), 14 * rows, 14 * cols
    dual = DualDptHead(12, (2,), features=16, channels=CHANNELS)
    features = DptFeatures(12, features=16, channels=CHANNELS, rectify=True)
    guided = DptHead(12, (2,), features=16, channels=CHANNELS, guide=True)
    picture = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert dual.rays(tokens, rows, cols, width / height).shape == (2, 7, 8 * rows, 8 * cols)
        assert features(tokens, rows, cols, height, width).shape == (2, 16, height // 2, width // 2)
        a, b = (guided(tokens, rows, cols, height, width, image)[0] for image in (picture, 1 - picture))
    assert a.shape == (2, 2, height, width) and not torch.allclose(a, b)
    assert frame_bytes(dual, 2 * height, width) >= frame_bytes(dual, height, width) > 0


def test_the_position_term_depends_on_the_position_in_the_picture() -> None:
    over_x, over_y = uv_tables(6, 10, 8, aspect=10 / 6)
    assert over_x.shape == (4, 10) and over_y.shape == (4, 6)
    assert_rms(over_x[:2].flip(1), -over_x[:2], 1e-6)  # sines are odd about the middle, cosines even
    assert_rms(over_y[2:].flip(1), over_y[2:], 1e-6)
    term = add_uv(torch.zeros(2, 8, 6, 10), 10 / 6)
    assert torch.equal(term[0], term[1]) and torch.equal(term[:, :4, 0], term[:, :4, 5])
    assert torch.equal(term[:, 4:, :, 0], term[:, 4:, :, 9])


@pytest.mark.parametrize(("rows", "cols"), GRIDS)
def test_convolutions_enlarge_the_grid(rows: int, cols: int) -> None:
    torch.manual_seed(0)
    head, patches = ConvPixels(12, (32, 32), (2, 1), last=8), draw(2, rows * cols, 12)
    with torch.no_grad():
        found = head(patches, rows, cols, (14 * rows, 14 * cols))
        assert found.shape == (2, 3, 14 * rows, 14 * cols)
        assert_rms(torch.cat([head(p[None], rows, cols, (14 * rows, 14 * cols)) for p in patches]), found, 1e-4)
    grid = plane_coordinates(torch.zeros(1, 1, 6, 10), 10 / 6)[0]
    assert_rms(grid.flip(1, 2), -grid, 1e-6)
    assert float(grid.norm(dim=0).max()) < 1, "cell centres lie within the half diagonal"


@pytest.mark.parametrize(("rows", "cols"), GRIDS)
def test_linear_pixels_of_a_patch_depend_on_its_token_only(rows: int, cols: int) -> None:
    torch.manual_seed(0)
    head, patches = LinearPixels(12, 4, 2), draw(1, rows * cols, 12)
    last = patches.clone()
    last[:, -1] += 1
    with torch.no_grad():
        found, other = (head(p, rows, cols) for p in (patches, last))
        numbers = head.proj(patches)[0, 0].unflatten(0, (2, 4, 4))
    assert found.shape == (1, 2, 4 * rows, 4 * cols)
    torch.testing.assert_close(found[0, :, :4, :4], numbers)
    changed = (found != other).any(1)[0]
    assert changed[-4:, -4:].all() and changed.sum() == 16


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize(("rows", "cols"), GRIDS)
def test_guided_depth_without_residuals_is_the_coarse_depth(patch: int, rows: int, cols: int) -> None:
    torch.manual_seed(0)
    head = GuidedUpsampler(12, patch, middle=16, hidden=8)
    picture = torch.rand(2, 3, patch * rows, patch * cols, generator=torch.Generator().manual_seed(0))
    tokens, depth = draw(2, rows * cols, 12), torch.full((2, rows, cols), 1.5)
    with torch.no_grad():
        found = head(tokens, depth, picture)
        assert found.log_depth.shape == (2, patch * rows, patch * cols)
        for width in (found.log_width_first, found.log_width_second):
            assert LOG_WIDTHS[0] <= width.min() and width.max() <= LOG_WIDTHS[1]
        assert bool((found.error > 0).all())
        for parameter in head.out.parameters():
            nn.init.zeros_(parameter)
        flat = head(tokens, depth, picture)
        ramp = head(tokens, draw(2, rows, cols), picture).first
    torch.testing.assert_close(flat.first, torch.full_like(flat.first, 1.5))
    coarse = draw(2, rows, cols)
    assert coarse.min() - 1e-5 < ramp.min() and ramp.max() < coarse.max() + 1e-5, "weights are convex"
