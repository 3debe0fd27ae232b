"""Keys of a few views only, chosen to differ from one another, as in GoToHunt ("good token hunting")."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.attention.base import Mechanism, Projected, record
from lean3r.attention.dense import softmax_attention
from lean3r.attention.settings import check_count, format_settings
from lean3r.attention.tokens import grid_positions, marks_of, rows_of, table, view_count, without_padding
from lean3r.errors import UsageError
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout

Start = Literal["central", "first"]


def choose_views(descriptors: Tensor, count: int, start: Start = "central", usable: Tensor | None = None) -> Tensor:
    """Farthest-point sampling by cosine distance: descriptors [B, S, C] -> views [B, min(count, S)] in order of choice.

    Each next view is the one farthest from all chosen so far; ties go to the lowest index. "central" starts with the
    view nearest to the mean descriptor, so that the order of the views does not matter; "first" with view 0.
    Views for which usable [B, S] is False come last.
    """
    unit = F.normalize(descriptors.float(), dim=-1)
    with without_autocast(unit.device.type):  # in bfloat16, similar views would be at distance 0 from one another
        far = 1 - unit @ unit.transpose(1, 2)
        central = torch.einsum("bsc,bc->bs", unit, unit.mean(1))
    batch, views = descriptors.shape[:2]
    count = min(count, views)
    last = torch.zeros(batch, views, device=far.device) if usable is None else (~usable).float() * -10.0
    if start == "first":
        pick = torch.zeros(batch, 1, dtype=torch.int64, device=far.device)
    else:
        pick = (central + last).argmax(1, keepdim=True)
    distance = last + 4.0
    picks = []
    for _ in range(count):
        picks.append(pick)
        distance = torch.minimum(distance, far.gather(1, pick[:, :, None].expand(-1, -1, views))[:, 0] + last)
        distance = distance.scatter(1, pick, -torch.inf)
        pick = distance.argmax(1, keepdim=True)
    return torch.cat(picks, 1)


def _are_views(keep: object) -> bool:
    """Whether it lists numbers of views, at least one."""
    if not isinstance(keep, list | tuple) or not keep:
        return False
    return all(isinstance(view, int) and not isinstance(view, bool) and view >= 0 for view in keep)


def thin_grid(layout: TokenLayout, stride: int) -> Tensor:
    """Indices [n] of a view's special tokens, and of patches whose row and column are multiples of `stride`."""
    row, col = grid_positions(layout)
    on_grid = (row % stride == 0) & (col % stride == 0)
    return torch.cat([torch.arange(layout.special), layout.special + on_grid.nonzero()[:, 0]])


class FrameSubset(Mechanism):
    """GoToHunt: every query attends to the keys of the `frames` views that differ most, and to no others.

    `keep` lists the views. Without it, they are chosen by the mean of each view's patches at the input of the block,
    starting with `start` (see `choose_views`). `stride` s keeps one of s x s patches of these views, and all special
    tokens. With stride 1 and at least as many frames as views this is dense attention. Cost is linear in the views.

    Source: GoToHunt, arXiv 2605.23892.
    Time: N · P · frames / stride².
    Use: no training, unordered photographs; linear in S.
    """

    COMPLETE: ClassVar = ({"frames": 25}, {"frames": 3})
    SMALL: ClassVar = ({"frames": 2, "stride": 2},)

    def __init__(
        self, frames: int = 25, *, stride: int = 1, start: Start = "central", keep: tuple[int, ...] | None = None
    ):
        super().__init__()
        if start not in ("central", "first"):
            raise UsageError(f"start is {start!r}; expected 'central' or 'first'")
        if keep is not None and (not _are_views(keep) or len(set(keep)) < len(keep)):
            raise UsageError(f"keep is {keep!r}; expected distinct view numbers, counted from 0, or None")
        self.frames = check_count("frames", frames)
        self.stride = check_count("stride", stride)
        self.start: Start = start
        self.keep = None if keep is None else tuple(keep)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return format_settings(self, "frames", "stride", "start", "keep")

    def choose(self, p: Projected, layout: TokenLayout) -> Tensor:
        """The views [B, K], ascending, that the queries of this call attend to; p is without padding."""
        views = view_count(p, layout)
        if self.keep is not None:
            if max(self.keep) >= views:
                raise UsageError(f"keep has view {max(self.keep)}, but there are {views} views, counted from 0")
            return torch.tensor(sorted(self.keep), device=p.x.device).expand(len(p.x), -1)
        if self.frames >= views:
            return torch.arange(views, device=p.x.device).expand(len(p.x), -1)
        patches = p.x.detach().unflatten(1, (views, layout.tokens))[:, :, layout.special :]
        usable = None
        if p.key_mask is not None:
            usable = p.key_mask.unflatten(1, (views, layout.tokens))[:, :, layout.special :].any(-1)
        # The sum has the direction of the mean, and padding is zero.
        return choose_views(patches.float().sum(2), self.frames, self.start, usable).sort(1).values

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Attention to the chosen views' tokens, [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        views = self.choose(p, layout)
        tokens = table(thin_grid, layout, 1, q.device, self.stride)
        index = (views[:, :, None] * layout.tokens + tokens).flatten(1)
        record(self, layout, density=index.shape[1] / q.shape[2], views=views)
        return softmax_attention(q, rows_of(k, index), rows_of(p.v, index), marks_of(p.key_mask, index))
