"""Figures on scenes with exact truth: what sharp and soft depth edges score."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lean3r.eval.synthetic import edge_shares


def step_scene(width: int = 61) -> torch.Tensor:
    """[1, 23, width] a wall at 3 to the right of column 40, at 1 before it."""
    return torch.where(torch.arange(width) < 40, 1.0, 3.0).expand(1, 23, width).clone()


def test_edge_shares_are_one_for_the_truth_at_any_scale_and_zero_for_a_flat_depth() -> None:
    truth = step_scene()
    known = torch.ones_like(truth, dtype=torch.bool)
    for reach in (3, 12):
        for view in (truth, truth.transpose(-1, -2)):
            seen = known.view_as(truth) if view is truth else known.transpose(-1, -2)
            shares = edge_shares(7 * view, view, seen, reach)
            assert len(shares) == 23
            torch.testing.assert_close(shares, torch.ones(23))
            assert float(edge_shares(torch.ones_like(view), view, seen, reach).abs().max()) == 0


def test_edge_shares_fall_with_blur_and_leave_out_thin_and_unknown_things() -> None:
    truth = step_scene()
    known = torch.ones_like(truth, dtype=torch.bool)
    soft = F.avg_pool1d(truth.log(), 13, 1, 6, count_include_pad=False).exp()
    near, far = (float(edge_shares(soft, truth, known, reach).median()) for reach in (3, 12))
    assert 0.3 < near < 0.5 and abs(far - 1) < 1e-5
    thin = truth.clone()
    thin[..., 42:] = 1.0
    assert len(edge_shares(thin, thin, known, 12)) == 0
    known[..., 41] = False
    assert len(edge_shares(truth, truth, known, 3)) == 23  # columns 37, 39, 40 and 42 are asked for
    known[..., 40] = False
    assert len(edge_shares(truth, truth, known, 3)) == 0
    assert len(edge_shares(truth[..., :5], truth[..., :5], known[..., :5], 12)) == 0
