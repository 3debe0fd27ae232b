"""The sky gets the depth of far pixels, and metric scale comes from pixels outside the sky."""

from __future__ import annotations

import pytest
import torch

from lean3r.heads.sky import fill_sky, is_sky, metric_scale, quantile


def test_sky_takes_the_far_quantile_of_its_scene() -> None:
    values = torch.rand(1001, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.3, 0.99, 1.0):
        torch.testing.assert_close(quantile(values, share), torch.quantile(values, share))
    depth = values[:1000].reshape(2, 5, 10, 10)
    sky = torch.zeros_like(depth, dtype=torch.bool)
    sky[0, :, :3] = True
    sky[1, 0, 0] = True
    filled = fill_sky(depth, sky)
    torch.testing.assert_close(filled[0, :, :3], torch.quantile(depth[0][~sky[0]], 0.99).expand(5, 3, 10))
    torch.testing.assert_close(filled[1], depth[1])
    scale = metric_scale(depth[0] + 0.1, values[:500].reshape(5, 10, 10), 3 * depth[0] + 0.3, sky[0])
    torch.testing.assert_close(scale, torch.tensor(3.0))
    assert metric_scale(depth[0], depth[0], depth[0], torch.ones_like(sky[0])) is None


def test_a_score_of_0_3_is_sky() -> None:
    assert is_sky(torch.tensor([0.0, 0.29, 0.3, 1.0])).tolist() == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_metric_scale_is_exact_in_half_precision(dtype: torch.dtype) -> None:
    depth = 0.5 + 3 * torch.rand(2, 140, 200, generator=torch.Generator().manual_seed(0))
    sky = torch.zeros_like(depth, dtype=torch.bool)
    with torch.autocast("cpu", dtype):
        scale = metric_scale(depth, depth, 1.67 * depth, sky)
    torch.testing.assert_close(scale, torch.tensor(1.67))
