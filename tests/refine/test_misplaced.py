"""Which of the known poses contradict the matches."""

from __future__ import annotations

import numpy as np

from lean3r.refine.misplaced import misplaced


def test_misplaced_views_are_those_without_which_the_others_agree() -> None:
    right = np.full((6, 6), 0.95)
    right[0, 1] = right[1, 0] = 0.2  # a pair whose matches are wrong says nothing of its views
    every = np.ones(6, bool)
    assert misplaced(right, every) == []
    for wrong in ([3], [0, 5]):
        shares = right.copy()
        shares[wrong] = shares[:, wrong] = 0.05
        assert misplaced(shares, every) == wrong
        assert misplaced(shares, ~np.isin(range(6), wrong)) == []
    shares[[0, 1, 2, 5]] = shares[:, [0, 1, 2, 5]] = 0.05
    assert misplaced(shares, every) == [], "most are wrong: no one knows which"
    assert misplaced(np.full((6, 6), np.nan), every) == []
