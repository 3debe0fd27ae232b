"""Tracks: values between pixels, chunks that change nothing, and positions that stay at their start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.errors import UsageError
from lean3r.heads import track
from lean3r.heads.track import Tracker, sample
from lean3r.testing import assert_rms


def tracker() -> Tracker:
    torch.manual_seed(0)
    return Tracker(16, levels=2, radius=1, hidden=16, depth=1, heads=2, iterations=2).eval()


def maps(views: int = 3) -> Tensor:
    return torch.randn(1, views, 16, 6, 9, generator=torch.Generator().manual_seed(0))


QUERIES = torch.tensor([[[0.0, 0.0], [3.5, 7.25], [16.0, 10.0], [40.0, 2.0]]])


def test_values_at_pixels_and_between_them() -> None:
    picture = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.0, 0.0], [3.0, 2.0], [1.5, 1.0], [9.0, 9.0]]])
    assert sample(picture, points, "border").flatten().tolist() == [0.0, 11.0, 5.5, 11.0]
    assert sample(picture, points, "zeros").flatten().tolist() == [0.0, 11.0, 5.5, 0.0]
    assert sample(picture[..., :1, :1], torch.zeros(1, 1, 2), "border").item() == 0.0


def test_tracks_begin_at_their_queries_for_any_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        found = tracker()(maps(), QUERIES)
        monkeypatch.setattr(track, "TRACKS_AT_ONCE", 1)
        again = tracker()(maps(), QUERIES)
    assert len(found.positions) == 2 and found.positions[-1].shape == (1, 3, 4, 2)
    assert all(torch.equal(p[:, 0], QUERIES) for p in found.positions)
    assert_rms(again.positions[-1], found.positions[-1], 1e-5)
    for share in (found.visibility, found.confidence):
        assert share.shape == (1, 3, 4) and share.min() > 0 and share.max() < 1


def test_the_order_of_other_views_does_not_matter() -> None:
    with torch.no_grad():
        found, moved = (tracker()(maps()[:, order], QUERIES).positions[-1] for order in ([0, 1, 2], [0, 2, 1]))
    assert_rms(moved[:, [0, 2, 1]], found, 1e-5)


def test_pictures_that_are_too_small_are_refused() -> None:
    with pytest.raises(UsageError, match="8x4 pixels: expected at least 16"):
        Tracker(16, levels=4, hidden=16, depth=1, heads=2)(torch.zeros(1, 2, 16, 2, 4), QUERIES)
