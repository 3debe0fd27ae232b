"""A walk whose scale slips is told by the network's depth; nearly right ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from lean3r.refine.slip import slipped

FRAMES, POINTS = 30, 40


def ratios(scales: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the network over that of the model, [O], and the view of each: off by 15 % a frame, 20 % a point."""
    rng = np.random.default_rng(seed)
    values = scales[:, None] * np.exp(0.15 * rng.standard_normal((FRAMES, 1)) + 0.2 * rng.standard_normal((1, POINTS)))
    return values.ravel(), np.repeat(np.arange(FRAMES), POINTS)


@pytest.mark.parametrize("cut", [5, 11, 25])
@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_the_shorter_side_of_a_slip_is_doubted(cut: int, factor: float) -> None:
    found = slipped(*ratios(np.where(np.arange(FRAMES) < cut, factor, 1.0)), [range(FRAMES)], np.ones(FRAMES, bool))
    expected = set(range(cut)) if cut <= FRAMES // 2 else set(range(cut, FRAMES))
    assert len(expected ^ set(found)) <= 1


def test_all_of_a_part_is_doubted_whose_scale_drifts_behind_the_slip() -> None:
    collapsed = np.concatenate([np.ones(20), 2000 * np.geomspace(1, 2, FRAMES - 20)])
    assert slipped(*ratios(collapsed), [range(FRAMES)], np.ones(FRAMES, bool)) == list(range(20, FRAMES))


def test_a_depth_that_is_off_by_less_doubts_nothing() -> None:
    every = np.ones(FRAMES, bool)
    for scales in (np.ones(FRAMES), np.where(np.arange(FRAMES) < 12, 1.8, 1.0), np.geomspace(0.6, 1.6, FRAMES)):
        assert slipped(*ratios(scales), [range(FRAMES)], every) == []
    slip = np.where(np.arange(FRAMES) < 12, 5.0, 1.0)
    assert slipped(*ratios(slip), [], every) == []  # photos in no order
    assert slipped(*ratios(slip), [range(FRAMES)], np.arange(FRAMES) > 10) == []  # its frames are doubted already
    assert slipped(np.full(FRAMES, np.nan), np.arange(FRAMES), [range(FRAMES)], every) == []  # no depth at all


def test_a_depth_that_drifts_from_frame_to_frame_doubts_nothing() -> None:
    drifting = ratios(np.geomspace(0.25, 4, FRAMES))
    assert slipped(*drifting, [range(FRAMES)], np.ones(FRAMES, bool)) == []


def test_doubted_frames_and_frames_without_depth_do_not_hide_a_slip() -> None:
    values, view = ratios(np.where(np.arange(FRAMES) < 12, 5.0, 1.0))
    values[np.isin(view, [3, 12, 20])] = np.nan
    trusted = ~np.isin(np.arange(FRAMES), [5, 14])
    assert set(slipped(values, view, [range(FRAMES)], trusted)) == set(range(13)) - {5}
