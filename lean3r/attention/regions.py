"""Selection of windows in two levels: first regions of 2 x 2 windows, then windows inside the best regions.

Scores between all windows grow with the square of their number. Scores between regions are 16 times fewer; windows are
then compared only inside a fixed number of regions. (lean3r's own addition to Speed3R's selection.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lean3r.attention.base import Projected
from lean3r.attention.cut import Cut
from lean3r.ops.block_select import block_select
from lean3r.ops.dispatch import Implementation
from lean3r.ops.rank_listed import rank_listed
from lean3r.types import TokenLayout

SIDE = 2  # windows along the side of a region


@dataclass(frozen=True)
class Choice:
    """blocks [B, H, n, top_k] int32, best windows first, -1 past the end of a shorter list; out [B, H, n, D] attention
    of each window's region to the averages of all regions, which carries gradients."""

    blocks: Tensor
    out: Tensor


def select_by_regions(
    windows: Projected,
    finished: tuple[Tensor, Tensor],
    cut: Cut,
    top_k: int,
    candidates: int,
    *,
    skip: Sequence[int],
    implementation: Implementation,
) -> Choice:
    """The top_k windows of each window among those of the best `candidates` regions.

    `windows` holds the averages of each window's patches, q, k and v [B, H, n, D] before norm and rotation, the mask
    of windows and their positions; `finished` is q and k after both. `skip` lists windows that are not to be chosen.
    """
    rows, cols = (-(-n // cut.windows.side) for n in (cut.layout.rows, cut.layout.cols))
    layout = TokenLayout(cut.views, 0, rows, cols)
    regions = Cut.of(layout, SIDE, windows)
    mean_q, mean_k, mean_v = (regions.pool(regions.blocks(x)) for x in (windows.q, windows.k, windows.v))
    q, k = windows.finish(mean_q, mean_k, regions.pooled_positions(windows))
    best = block_select(
        q,
        k,
        mean_v,
        min(candidates, k.shape[2]),
        key_mask=regions.window_mask,
        implementation=implementation,
    )
    members = regions.windows.members
    view = torch.arange(cut.views, device=members.device)[:, None, None] * len(cut.windows.members)
    index = torch.where(members < 0, -1, members + view).flatten(0, 1)  # [regions, places] of windows
    usable = (index >= 0).expand(len(q), -1, -1)
    if regions.mask is not None:
        usable = usable & regions.mask.view(usable.shape)
    if skip:
        usable = usable & ~torch.isin(index, torch.tensor(skip, device=index.device))
    with torch.no_grad():
        places = [regions.blocks(x).unflatten(2, (-1, regions.size)) for x in finished]
        given = places[0], places[1], best.blocks, index, usable, top_k
        chosen = rank_listed(*given, implementation=implementation)
    spread = best.out.repeat_interleave(regions.size, 2)
    return Choice(regions.join(chosen, None), regions.join(spread, None))


def describe_windows(p: Projected, means: tuple[Tensor, Tensor, Tensor], cut: Cut) -> Projected:
    """The averages of windows (raw q, k, v) as tokens of their own: one a window, without special tokens."""
    return replace(p, q=means[0], k=means[1], v=means[2], key_mask=cut.window_mask, positions=cut.pooled_positions(p))
