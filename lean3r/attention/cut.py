"""Tokens of a call cut into square windows: pooling, special tokens apart, and everything back in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lean3r.attention.base import Projected
from lean3r.attention.tokens import view_count
from lean3r.tracing import is_traced
from lean3r.types import TokenLayout
from lean3r.windows import Windows


@dataclass(frozen=True)
class Parts:
    """Tokens of a call: `places` of windows [B, H, n * size, D], `special` ones of all views [B, H, E, D], and `all`
    [B, H, N, D] in any order that queries, keys and values share."""

    places: Tensor
    special: Tensor
    all: Tensor


@dataclass(frozen=True)
class Cut:
    """The division of a call's N tokens, without special tokens, into n windows of `size` places each.

    mask [B, n * size] is False on places with padding or without a patch, window_mask [B, n] on windows without any
    patch; both are None if every place has a patch.
    """

    layout: TokenLayout
    windows: Windows
    views: int
    mask: Tensor | None
    window_mask: Tensor | None

    @classmethod
    def of(cls, layout: TokenLayout, side: int, p: Projected) -> Cut:
        """Windows of `side` patches in the tokens of a call."""
        batch = p.q.shape[0]
        views = view_count(p, layout)
        if not is_traced():
            side = min(side, max(layout.rows, layout.cols))  # a larger window would have no more patches
        windows = layout.windows_of(side, p.q.device)
        if windows.full and p.key_mask is None:
            return cls(layout, windows, views, None, None)
        holds = (windows.members >= 0).expand(batch, views, -1, -1)
        if p.key_mask is not None:
            patches = p.key_mask.reshape(batch, views, -1)[:, :, layout.special :]
            holds = holds & patches[:, :, windows.members.clamp_min(0)]
        holds = holds.reshape(batch, views * windows.count, -1)
        return cls(layout, windows, views, holds.flatten(1), None if p.key_mask is None else holds.any(-1))

    @property
    def size(self) -> int:
        """Places of a window."""
        return self.windows.side**2

    @property
    def special(self) -> int:
        """Special tokens of all views."""
        return self.views * self.layout.special

    def blocks(self, x: Tensor) -> Tensor:
        """Reorder tokens [B, H, N, D] to places of windows [B, H, n * size, D]; a view of x if the layout allows it."""
        x = self._by_view(x)[:, :, :, self.layout.special :]
        if self.windows.adjacent:
            return x.flatten(2, 3)
        return x.index_select(3, self.windows.members.clamp_min(0).flatten()).flatten(2, 3)

    def special_tokens(self, x: Tensor) -> Tensor:
        """Select the special tokens of all views [B, H, E, D] from tokens [B, H, N, D]."""
        return self._by_view(x)[:, :, :, : self.layout.special].flatten(2, 3)

    def parts(self, x: Tensor) -> Parts:
        """Of tokens [B, H, N, D] in the order of the layout."""
        return Parts(self.blocks(x), self.special_tokens(x), x)

    def parts_apart(self, x: Tensor) -> Parts:
        """Of tokens [B, H, N, D] of which the patches of all views come first, in adjacent full windows: no copies."""
        places = x.shape[2] - self.special
        return Parts(x[:, :, :places], x[:, :, places:], x)

    def patches_first(self, x: Tensor) -> Tensor:
        """Tokens [B, H, N, D] of the layout in the order that `parts_apart` wants."""
        if not self.special:
            return x
        out, views, behind = x.new_empty(x.shape), self._by_view(x), self.layout.special
        parts = self.parts_apart(out)
        parts.places.unflatten(2, (self.views, -1)).copy_(views[:, :, :, behind:])
        parts.special.unflatten(2, (self.views, -1)).copy_(views[:, :, :, :behind])
        return out

    def seen_by_all(self, x: Parts, views: list[int], pooled: bool) -> Tensor:
        """Select the special tokens of all views, one mean per view if `pooled`, and the patches of `views`."""
        special = x.special
        if pooled and self.special:
            special = special.unflatten(2, (self.views, -1)).mean(3)
        if not views:
            return special
        if self.mask is None:  # every place has a patch
            patches = x.places.unflatten(2, (self.views, -1))[:, :, views]
        else:
            patches = self._by_view(x.all)[:, :, views, self.layout.special :]
        return torch.cat([special, patches.flatten(2, 3)], dim=2)

    def join(self, patches: Tensor, special: Tensor | None) -> Tensor:
        """Places [B, H, n * size, D] and special tokens [B, H, E, D] -> tokens [B, H, N, D]."""
        if special is None and self.windows.adjacent:
            return patches
        patches = patches.unflatten(2, (self.views, -1))
        if not self.windows.adjacent:
            patches = patches.index_select(3, self.windows.slots)
        if special is not None:
            patches = torch.cat([special.unflatten(2, (self.views, -1)), patches], dim=3)
        return patches.flatten(2, 3)

    def pool(self, places: Tensor) -> Tensor:
        """Mean of each window's patches [B, H, n * size, D] -> [B, H, n, D]; 0 for a window without any."""
        if self.mask is None:
            return places.unflatten(2, (-1, self.size)).mean(3)
        holds = self.mask[:, None, :, None]
        count = self.mask.unflatten(1, (-1, self.size)).sum(-1).clamp_min(1)[:, None, :, None]
        kind = places.dtype  # named, or autocast on a GPU would make it float32
        return places.masked_fill(~holds, 0).unflatten(2, (-1, self.size)).sum(3, dtype=kind) / count.to(kind)

    def pooled_positions(self, p: Projected) -> Tensor | None:
        """Mean row and column of each window, truncated to integers; None without rotation."""
        if p.positions is None:
            return None
        patches = p.positions.unflatten(0, (-1, self.layout.tokens))[:, self.layout.special :]
        holds = (self.windows.members >= 0)[..., None]
        total = (patches[:, self.windows.members.clamp_min(0)] * holds).sum(2)
        return (total / holds.sum(1)).trunc().flatten(0, 1)

    def density(self, blocks: Tensor, pooled: bool) -> Tensor:
        """Share of keys that a patch attends to, [B, H], for lists of windows [B, H, n, K]; see `seen_by_all`."""
        chosen = (blocks >= 0).sum(-1).float().mean(-1) / blocks.shape[2]
        special = self.layout.special / self.layout.tokens
        seen = min(self.layout.special, 1) / self.layout.tokens if pooled else special
        return seen + (1 - special) * chosen

    def _by_view(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.views, self.layout.tokens))
