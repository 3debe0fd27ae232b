"""Motion at the nodes of a grid: shifts, zooms, exposure, and what cannot be measured."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lean3r.inputs.flow import flow_between


def painted(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise that is smooth enough to be tracked."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width)).astype(np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).point(lambda v: (v - 128) * 4 + 128)


def seen(zoom: float, right: float, down: float, size: tuple[int, int]) -> np.ndarray:
    """A part of a painted wall, so many times larger about its middle, from so many pixels to the right and below."""
    middle = 250 + right, 250 + down
    half = size[0] / 2 / zoom, size[1] / 2 / zoom
    box = (middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1])
    return np.asarray(painted(500, 500).resize(size, Image.Resampling.BICUBIC, box=box), np.float32)


@pytest.mark.parametrize("size", [(192, 128), (128, 192), (192, 192), (191, 107)])
@pytest.mark.parametrize("right, down", [(0.0, 0.0), (0.4, -1.3), (-9.0, 5.0), (30.0, -4.0)])
def test_shifts(size: tuple[int, int], right: float, down: float) -> None:
    flow = flow_between(seen(1, 0, 0, size), 0.8 * seen(1, right, down, size) + 20)  # another exposure
    assert flow is not None
    off = flow * max(size) + (down, right)
    assert np.percentile(np.abs(off), 90) < 0.15 and np.abs(off).max() < 1.0


@pytest.mark.parametrize("zoom", [1.02, 1.08, 0.94])
def test_a_camera_that_moves_forward(zoom: float) -> None:
    width, height = 192, 128
    flow = flow_between(seen(1, 0, 0, (width, height)), seen(zoom, 3, 0, (width, height)))
    assert flow is not None and flow.shape == (48, 2)
    y, x = np.meshgrid((np.arange(6) + 0.5) / 6 * height, (np.arange(8) + 0.5) / 8 * width, indexing="ij")
    true = np.stack([(zoom - 1) * (y - height / 2), (zoom - 1) * (x - width / 2) - 3 * zoom], -1).reshape(-1, 2)
    assert np.percentile(np.abs(flow * width - true), 90) < 0.3


def test_nodes_on_a_blank_wall_follow_the_others() -> None:
    before, after = (seen(1, right, 0, (192, 128)) for right in (0, 4))
    before[:, :90] = after[:, :86] = 128
    flow = flow_between(before, after)
    assert flow is not None and np.median(np.abs(flow * 192 - (0, -4))) < 0.3 and np.isfinite(flow).all()


def test_what_has_nothing_in_common_is_not_measured() -> None:
    walls = (np.asarray(painted(192, 128, seed), np.float32) for seed in (1, 2))
    assert flow_between(*walls) is None
    blank = np.full((128, 192), 7.0, np.float32)
    flow = flow_between(blank, blank)
    assert flow is None or not flow.any()
