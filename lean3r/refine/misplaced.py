"""Which of the known poses that are held contradict the matches, where most of them agree with these."""

from __future__ import annotations

import numpy as np

# Share of the matches of a view's usual pair that fit, below which its pose is wrong, and that of the usual pair of the
# others. In 70 sets of 3 to 12 photographs with true poses, these were 0.33 and more. Where one was turned by 5 degrees
# or moved by a tenth of the depth, 111 of 127 such views were named alone, 2 with another one, for 1 its neighbour; of
# the others 10 spoilt so much that all poses are in doubt.
CONTRADICTED, AGREED = 0.3, 0.6


def misplaced(shares: np.ndarray, held: np.ndarray) -> list[int]:
    """The held [S] views, at most half of those that have matches, without which the poses of the others agree with
    these; by the shares [S, S] of the matches of pairs that fit, NaN where there are too few. None if no such views
    leave others that agree. Of two views that have matches with each other alone, either may be named."""
    shares = np.where(held[:, None] & held, shares, np.nan)
    np.fill_diagonal(shares, np.nan)
    matched, found = int(np.isfinite(shares).any(axis=1).sum()), []
    while np.isfinite(shares).any():
        usual = {view: np.nanmedian(row) for view, row in enumerate(shares) if np.isfinite(row).any()}
        if min(usual.values()) >= CONTRADICTED:
            return sorted(found) if np.nanmedian(shares) >= AGREED else []
        worst = min(usual, key=lambda view: usual[view] + np.nanmean(shares[view]))
        found.append(worst)
        if 2 * len(found) > matched:
            return []
        shares[worst] = shares[:, worst] = np.nan
    return []
