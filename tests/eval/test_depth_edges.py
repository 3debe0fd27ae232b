"""Scores of sharp and soft depth edges on scenes with exact truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lean3r.eval.synthetic import edge_shares


def step_scene(width: int = 61) -> torch.Tensor:
    """[1, 23, width] a wall at 3 to the right of column 30, at 1 before it."""
    return torch.where(torch.arange(width) < 30, 1.0, 3.0).expand(1, 23, width).clone()


def test_edge_shares_are_one_for_the_truth_at_any_scale_and_zero_for_a_flat_depth() -> None:
    truth = step_scene()
    known = torch.ones_like(truth, dtype=torch.bool)
    for turn in (lambda t: t, lambda t: t.transpose(-1, -2)):
        shares = edge_shares(7 * turn(truth), turn(truth), turn(known))
        assert shares.shape == (23, 2)
        torch.testing.assert_close(shares, torch.ones(23, 2))
        assert float(edge_shares(torch.ones_like(turn(truth)), turn(truth), turn(known)).abs().max()) == 0


def test_edge_shares_fall_with_blur_and_ignore_thin_and_unknown_objects() -> None:
    truth = step_scene()
    known = torch.ones_like(truth, dtype=torch.bool)
    soft = F.avg_pool1d(truth.log(), 13, 1, 6, count_include_pad=False).exp()
    near, far = edge_shares(soft, truth, known).median(0).values.tolist()
    assert 0.3 < near < 0.5 and abs(far - 1) < 1e-5
    thin = truth.clone()
    thin[..., 32:] = 1.0
    assert len(edge_shares(thin, thin, known)) == 0
    known[..., 31] = False
    assert len(edge_shares(truth, truth, known)) == 23  # columns 18, 27, 29, 30, 32 and 41 are read
    known[..., 30] = False
    assert len(edge_shares(truth, truth, known)) == 0
    assert len(edge_shares(truth[..., :5, :5], truth[..., :5, :5], known[..., :5, :5])) == 0
