"""Token merging as in FastVGGT: most tokens merge with a similar one before attention and copy its result after."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, record
from lean3r.attention.dense import softmax_attention
from lean3r.attention.merging import MergePlan, best_match, merge, merged_mask, unmerge
from lean3r.attention.settings import check_count, check_flag, check_share, format_settings
from lean3r.attention.tokens import table, view_count, without_padding
from lean3r.types import TokenLayout


def region_choice(layout: TokenLayout, seed: int) -> Tensor:
    """The destination patch of each 2 x 2 region, 2 * down + right: [views - 1, rows // 2, cols // 2]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (max(0, layout.views - 1), layout.rows // 2, layout.cols // 2)
    return torch.randint(4, shape, generator=generator)


def destinations(layout: TokenLayout, choice: Tensor | None) -> Tensor:
    """Mask [N] bool of destinations: view 0, special tokens, and one patch of each region of the other views.

    `choice` is a result of `region_choice`; None selects no patches. Regions are numbered as in the release: on a grid
    of 2 * (cols // 2) columns, filled with the patches in order; if cols is odd, its rows are not those of the picture.
    """
    chosen = torch.zeros(layout.views, layout.tokens, dtype=torch.bool)
    chosen[0] = True
    chosen[:, : layout.special] = True
    if choice is not None and choice.numel():
        down, across = choice.shape[1:]
        row = 2 * torch.arange(down)[:, None] + choice // 2
        col = 2 * torch.arange(across) + choice % 2
        patch = (row * (2 * across) + col).flatten(1)
        chosen[1:].scatter_(1, _place(layout)[layout.special + patch], True)
    return chosen.flatten()


def _place(layout: TokenLayout) -> Tensor:
    """The position [T] in a view of the token that has this index in row-major order of the patches."""
    return torch.cat([torch.arange(layout.special), layout.special + layout.windows_of(1).members.flatten()])


def evenly_spaced(layout: TokenLayout, share: float) -> Tensor:
    """Indices [n] of protected tokens: a `share` of all, evenly spaced from the first, patches in row-major order."""
    tokens = layout.views * layout.tokens
    count = int(share * tokens)
    index = torch.arange(count) * max(1, tokens // max(1, count))
    return index // layout.tokens * layout.tokens + _place(layout)[index % layout.tokens]


def plan_merges(
    metric: Tensor, to: Tensor, sources: Tensor, protected: Tensor, most: int, mask: Tensor | None = None
) -> MergePlan:
    """Plan to merge the `most` most similar of `sources` [n] with one of the destinations `to` [m]; metric [B, N, C].

    `protected` tokens are never sources.
    """
    similarity, target = best_match(metric, sources, to, mask)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    merged, rest = order[:, :most], order[:, most:]
    return MergePlan(to, sources[merged], target.gather(1, merged), sources[rest], protected)


class TokenMerge(Mechanism):
    """FastVGGT: merge tokens by the similarity of the block's input, attend, copy the results back.

    At most the share `ratio` of all tokens is merged, the most similar first. The share `protect`, evenly spaced, keeps
    its own values. `seed` determines the destination patch of each 2 x 2 region; with `random` False there is none.
    ratio 0 with protect 0 is dense attention. Matching costs tokens^2 / 5 products of C channels, in bounded memory;
    attention then has about a third of the tokens.

    Source: FastVGGT.
    Time: N²/10, and the matching: N²/5 products.
    Use: no training, many similar views.
    """

    COMPLETE: ClassVar = ({"ratio": 0.0, "protect": 0.0},)
    SMALL: ClassVar = ({}, {"ratio": 0.2, "seed": 5})

    def __init__(self, ratio: float = 0.9, *, protect: float = 0.1, seed: int = 33, random: bool = True):
        super().__init__()
        self.ratio = check_share("ratio", ratio)
        self.protect = check_share("protect", protect)
        self.seed = check_count("seed", seed, 0)
        self.random = check_flag("random", random)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return format_settings(self, "ratio", "protect", "seed", "random")

    def plan(self, p: Projected, layout: TokenLayout) -> MergePlan:
        """Plan the merges of this call."""
        views, device = view_count(p, layout), p.x.device
        seed = self.seed if self.random else None
        to = table(_destination_index, layout, views, device, seed)
        sources = table(_source_index, layout, views, device, seed, self.protect)
        protected = table(evenly_spaced, layout, views, device, self.protect)
        return plan_merges(p.x, to, sources, protected, int(self.ratio * p.x.shape[1]), p.key_mask)

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Attention over the merged sequence, [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        plan = self.plan(p, layout)
        mask = None if p.key_mask is None else merged_mask(plan, p.key_mask)
        q, k, v = (merge(x, plan, p.key_mask) for x in (q, k, p.v))
        tokens = p.q.shape[2]
        record(self, layout, density=(k.shape[2] / tokens) ** 2, merged=plan.sources)
        return unmerge(softmax_attention(q, k, v, mask), plan, tokens)


def _destination_index(layout: TokenLayout, seed: int | None) -> Tensor:
    return destinations(layout, None if seed is None else region_choice(layout, seed)).nonzero()[:, 0]


def _source_index(layout: TokenLayout, seed: int | None, share: float) -> Tensor:
    """Tokens that are neither destinations nor protected."""
    rest = torch.ones(layout.views * layout.tokens, dtype=torch.bool)
    rest[_destination_index(layout, seed)] = False
    rest[evenly_spaced(layout, share)] = False
    return rest.nonzero()[:, 0]
