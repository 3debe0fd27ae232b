"""Fewer keys and values, slightly fewer queries: the training-free methods of Spark3R and AVGGT.

Spark3R (arXiv 2605.06270) drops the keys of most views and merges similar queries. AVGGT (arXiv 2512.02541) keeps
a grid of keys in every view, the query's own key, and the mean of the dropped keys.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, record
from lean3r.attention.dense import softmax_attention
from lean3r.attention.merging import MergePlan, best_match, merge, unmerge
from lean3r.attention.pieces import in_pieces, pieces
from lean3r.attention.settings import check_count, check_flag, format_settings
from lean3r.attention.tokens import grid_positions, table, view_count, without_padding
from lean3r.errors import UsageError
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout

Auto = Literal["auto"]
Mean = Literal["one", "count"]
ANCHORS = 40  # about this many views keep their keys in Spark3R
FEW = 100  # up to this many views, Spark3R is dense


def auto_frames(views: int) -> int:
    """Spark3R's r_KV: one view in this many keeps its keys."""
    return 1 if views <= FEW else math.ceil(views / ANCHORS)


def auto_merge(views: int) -> int:
    """Spark3R's r_Q: this many queries become one."""
    return 1 + sum(views > limit for limit in (FEW, 300, 500))


def kept_keys(layout: TokenLayout, frames: int, grid: tuple[int, int], first_frame: bool, moving: bool) -> Tensor:
    """Mask [views, T] bool of the keys that stay unchanged.

    These are the special tokens and, in every `frames`-th view, the first patch of each window of `grid` (rows,
    columns). `moving` shifts this patch from view to view, so that the views together cover every position.
    `first_frame` keeps all of view 0.
    """
    row, col = grid_positions(layout)
    view = torch.arange(layout.views)[:, None]
    down, across = (view // grid[1] % grid[0], view % grid[1]) if moving else (0, 0)
    on_grid = (row % grid[0] == down) & (col % grid[1] == across)
    special = torch.ones(layout.views, layout.special, dtype=torch.bool)
    kept = torch.cat([special, (on_grid & (view % frames == 0)).expand(layout.views, -1)], 1)
    if first_frame:
        kept[0] = True
    return kept


def query_groups(layout: TokenLayout, factor: int, group: int) -> Tensor:
    """Kinds [views * T] int64: -1 for unmerged queries, 2 g for destinations and 2 g + 1 for sources of group g.

    `group` consecutive views form a group. One patch of each region of `factor` patches is a destination, a different
    one in each view. Special tokens and view 0 are not merged.
    """
    down = max(d for d in range(1, math.isqrt(factor) + 1) if factor % d == 0)
    across = factor // down
    row, col = grid_positions(layout)
    view = torch.arange(layout.views)[:, None]
    high = (layout.rows - row // down * down).clamp_max(down)
    wide = (layout.cols - col // across * across).clamp_max(across)
    source = (row % down * wide + col % across) != view % (high * wide)
    kind = torch.cat(
        [torch.full((layout.views, layout.special), -1), 2 * (view // group) + source.long()],
        1,
    )
    kind[0] = -1
    return kind.flatten()


def _members(layout: TokenLayout, factor: int, group: int, kind: int) -> Tensor:
    return (query_groups(layout, factor, group) == kind).nonzero()[:, 0]


def _kept_index(layout: TokenLayout, *settings) -> Tensor:
    return kept_keys(layout, *settings).flatten().nonzero()[:, 0]


class KeyValuePrune(Mechanism):
    """Attend to a part of the keys, with a part of the queries merged; every query gets a result.

    `frames` n keeps the keys of every n-th view ("auto": Spark3R's schedule by the number of views, all up to 100),
    times `multiplier` (3 for layers that Spark3R calls insensitive). `grid` (rows, columns) keeps one patch of each
    window of that size; `moving` shifts it from view to view. Special tokens stay, and view 0 if `first_frame`.
    `own` adds the query's own key if it was dropped, `mean` one mean key and value of all (other) dropped patches,
    with the weight of "one" token or of as many as it stands for ("count"): three disjoint sets under one softmax.
    `query_merge` n merges n queries into one ("auto": Spark3R's schedule) inside groups of `query_group` views.
    frames 1, grid (1, 1), query_merge 1 is dense attention. `own` and `mean` compute scores explicitly, a few queries
    at a time.

    Source: Spark3R, arXiv 2605.06270; AVGGT, arXiv 2512.02541.
    Time: N² / (frames · grid · query_merge); "auto": linear in S from 100 views on.
    Use: no training, video; hundreds of views.
    """

    reads_input: ClassVar = False
    COMPLETE: ClassVar = ({"frames": 1, "query_merge": 1}, {"frames": "auto", "query_merge": "auto", "mean": "one"})
    SMALL: ClassVar = (
        {"frames": 2, "query_merge": 2, "query_group": 2},
        {"frames": 1, "grid": (2, 2), "own": True, "mean": "count", "moving": True, "query_merge": 1},
    )

    def __init__(
        self,
        frames: int | Auto = "auto",
        *,
        multiplier: int = 1,
        grid: tuple[int, int] = (1, 1),
        moving: bool = False,
        first_frame: bool = True,
        own: bool = False,
        mean: Mean | None = None,
        query_merge: int | Auto = "auto",
        query_group: int = 20,
    ):
        super().__init__()
        if mean not in (None, "one", "count"):
            raise UsageError(f"mean is {mean!r}; expected 'one', 'count' or None")
        if not isinstance(grid, tuple | list) or len(grid) != 2:
            raise UsageError(f"grid is {grid!r}; expected (rows, columns)")
        self.frames: int | Auto = frames if frames == "auto" else check_count("frames", frames)
        self.multiplier = check_count("multiplier", multiplier)
        self.grid = (check_count("grid rows", grid[0]), check_count("grid columns", grid[1]))
        self.moving = check_flag("moving", moving)
        self.first_frame = check_flag("first_frame", first_frame)
        self.own = check_flag("own", own)
        self.mean: Mean | None = mean
        self.query_merge: int | Auto = query_merge if query_merge == "auto" else check_count("query_merge", query_merge)
        self.query_group = check_count("query_group", query_group)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        names = ("frames", "multiplier", "grid", "moving", "first_frame", "own", "mean", "query_merge", "query_group")
        return format_settings(self, *names)

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Attention over the kept keys, [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        views, tokens = view_count(p, layout), p.q.shape[2]
        frames = self.multiplier * (auto_frames(views) if self.frames == "auto" else self.frames)
        settings = (frames, self.grid, self.first_frame, self.moving)
        kept = table(kept_keys, layout, views, q.device, *settings).flatten()
        index = table(_kept_index, layout, views, q.device, *settings)
        plan = self.plan(q, layout, p.key_mask)
        rows = torch.arange(tokens, device=q.device) if plan is None else torch.cat([plan.unmerged, plan.destinations])
        if plan is not None:
            q = merge(q, plan, p.key_mask)
        record(self, layout, density=q.shape[2] / tokens * len(index) / tokens)
        out = self._attend(q, k, p.v, kept, index, rows, p.key_mask)
        return out if plan is None else unmerge(out, plan, tokens)

    def plan(self, q: Tensor, layout: TokenLayout, mask: Tensor | None) -> MergePlan | None:
        """Plan merges of queries [B, H, N, D] within their groups, by cosine over all heads; None without merging."""
        views = q.shape[2] // layout.tokens
        factor = auto_merge(views) if self.query_merge == "auto" else self.query_merge
        if factor == 1 or views == 1:
            return None

        def members(kind: int) -> Tensor:
            return table(_members, layout, views, q.device, factor, self.query_group, kind)

        metric = q.transpose(1, 2).flatten(2)
        alone = members(-1)
        to, sources, targets = [], [alone[:0]], [alone[:0].expand(len(q), -1)]
        for group in range(math.ceil(views / self.query_group)):
            here, joining = members(2 * group), members(2 * group + 1)
            if len(joining):
                targets.append(best_match(metric, joining, here, mask)[1] + sum(map(len, to)))
                sources.append(joining)
            to.append(here)
        merged = torch.cat(sources).expand(len(q), -1)
        return MergePlan(torch.cat(to), merged, torch.cat(targets, 1), alone, alone[:0])

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, index: Tensor, rows: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of queries q [B, H, M, D] of the tokens `rows` [M] over the kept ones of k and v [B, H, N, D].

        kept [N] bool and index [n] are the same choice.
        """
        near_k, near_v, near_mask = k[:, :, index], v[:, :, index], None if mask is None else mask[:, index]
        if len(index) == len(kept) or not (self.own or self.mean):
            return softmax_attention(q, near_k, near_v, near_mask)
        dropped = ~kept if mask is None else ~kept & mask  # [N] or [B, N]
        dropped = dropped.expand(len(q), -1)
        counts = dropped.sum(1)[:, None, None, None]
        mean_k, mean_v = (_mean(x, dropped, counts) for x in (k, v))
        own = dropped[:, rows] & self.own
        scale, wide = q.shape[-1] ** -0.5, torch.promote_types(q.dtype, torch.float32)

        def attend(part: slice, q: Tensor, near_k: Tensor, near_v: Tensor, mean_k: Tensor, mean_v: Tensor, k, v):
            q, mine = q[:, :, part].to(wide) * scale, own[:, None, part, None]
            with without_autocast(q.device.type):  # rounded scores are off by a share of themselves, weights by e^that
                scores = q @ near_k.to(wide).transpose(-1, -2)
            if near_mask is not None:
                scores = scores.masked_fill(~near_mask[:, None, None, :], -torch.inf)
            own_k, own_v = k[:, :, rows[part]], v[:, :, rows[part]]
            own_score = (q * own_k).sum(-1, keepdim=True)
            # The mean of the other dropped keys is the mean of all minus the contribution of the own key.
            others = counts - mine.long()
            less = torch.where(mine, 1.0, 0.0) / others.clamp_min(1)
            score = (q * mean_k).sum(-1, keepdim=True)
            score = score + (score - own_score) * less
            value = mean_v + (mean_v - own_v) * less.to(v.dtype)
            weight = others.clamp_min(1).log() if self.mean == "count" else 0.0
            unseen = others == 0 if self.mean else torch.ones_like(others, dtype=torch.bool)
            score = (score + weight).masked_fill(unseen, -torch.inf)
            own_score = own_score.masked_fill(~mine, -torch.inf)
            highest = torch.maximum(torch.maximum(score, own_score), scores.amax(-1, keepdim=True))
            # A query without any key gets 0, not NaN.
            highest = highest.detach().clamp_min(-1e30)
            shares, mean_share, own_share = ((s - highest).exp() for s in (scores, score, own_score))
            total = shares.sum(-1, keepdim=True) + mean_share + own_share
            summed = shares.to(v.dtype) @ near_v + mean_share * value + own_share * own_v
            return (summed / total.clamp_min(1e-30)).to(v.dtype)

        each = q.shape[0] * q.shape[1] * (len(index) + 2)
        return in_pieces(attend, pieces(q.shape[2], each, q.device), q, near_k, near_v, mean_k, mean_v, k, v)


def _mean(x: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
    """Mean [B, H, 1, D] of the chosen [B, N] tokens of x [B, H, N, D]; counts [B, 1, 1, 1] says how many they are."""
    wide = torch.promote_types(x.dtype, torch.float32)  # sums and counts of many tokens exceed float16
    return ((x * chosen[:, None, :, None]).sum(2, keepdim=True, dtype=wide) / counts.clamp_min(1)).to(x.dtype)
