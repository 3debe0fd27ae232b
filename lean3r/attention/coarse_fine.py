"""Coarse-to-fine sparse attention, "gsa": coarse attention to everything, full attention to chosen windows.

Source: Ren et al. 2026, "Speed3R" (Global Sparse Attention), the paper and the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.attention.across import Fetched, attend_by_all, fetch
from lean3r.attention.base import Mechanism, Projected, in_own_type, record
from lean3r.attention.cut import Cut, Parts
from lean3r.attention.dense import softmax_attention
from lean3r.attention.pieces import in_pieces, pieces
from lean3r.attention.regions import Choice, describe_windows, select_by_regions
from lean3r.attention.settings import check_count, check_flag, format_settings
from lean3r.attention.tokens import without_padding
from lean3r.errors import UsageError
from lean3r.ops.block_select import Selection, block_select
from lean3r.ops.block_sparse import KeyValues, block_sparse_attention, check_kv, unsupported
from lean3r.ops.dispatch import Implementation, check_implementation
from lean3r.ops.join_windows import join_windows
from lean3r.tracing import is_traced
from lean3r.types import TokenLayout

if TYPE_CHECKING:
    from lean3r.group import Share

GATE_START = 1.0  # the gates start at sigmoid(-1) = 0.27 for the compressed branch, 0.73 for the selected one


class Gsa(Mechanism):
    """Global Sparse Attention: coarse attention chooses the windows that are read in full; gates mix both results.

    Queries, keys and values are averaged over square windows of patches. The compressed branch is attention between
    these averages. Its scores choose `top_k` windows for each head and window. The selected branch is attention of the
    window's patches to the single patches of these. Gates computed from the block's input mix both branches, per patch
    and head. Special tokens attend to everything, and everything attends to them. A window at the edge of a picture is
    the average of its remaining patches. Padding is in no average, and a window with only padding is never chosen.

    window: side of a window in patches. top_k: may change at any time; if it exceeds the number of windows, all are
    chosen. gate: "two" independent gates for the two branches (released checkpoints), "one" gate g for the
    compressed branch and 1 - g for the other (the paper's text), or "none", only the selected branch. fill: padding of
    lists with fewer windows than top_k: "unique" adds nothing, "repeat_last" repeats the last window with weight, as in
    released checkpoints. special: "full", or "pooled": patches attend to one average of each view's special tokens,
    and special tokens to all special tokens and the averages of all windows; two quadratic terms go, which exceed all
    others from some hundred views on. regions: None, or the number of regions of 2 x 2 windows in which windows are
    looked for; scores between windows, the other quadratic term, become 16 times fewer, and the compressed branch
    reads averages of regions (attention/regions.py). reference, every: the windows of view 0, and of views 0, every,
    2 every, ..., are attended to in addition to the top_k (the paper's VGGT: view 0 and every 100). kv: "fp8" rounds
    the patches' keys and values in the selected branch (ops/block_sparse). implementation: see ops/dispatch.py.

    Source: Speed3R, arXiv 2603.08055.
    Time: N · top_k, and (N/16)² for the choice.
    Use: from about 64 views on, with trained weights.
    """

    COMPLETE: ClassVar = ({"top_k": 1000, "gate": "none"},)
    SMALL: ClassVar = ({"top_k": 2, "window": 3},)
    multiplies_input: ClassVar = True

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        window: int = 4,
        top_k: int = 32,
        gate: Literal["two", "one", "none"] = "two",
        fill: Literal["unique", "repeat_last"] = "unique",
        special: Literal["full", "pooled"] = "full",
        regions: int | None = None,
        reference: bool = False,
        every: int | None = None,
        kv: KeyValues = "full",
        implementation: Implementation = "auto",
    ):
        super().__init__()
        for name, value in (("window", window), ("top_k", top_k), ("every", every), ("regions", regions)):
            if value is not None:
                check_count(name, value)
        if gate not in ("two", "one", "none"):
            raise UsageError(f"gate is {gate!r}; expected 'two', 'one' or 'none'")
        if fill not in ("unique", "repeat_last"):
            raise UsageError(f"fill is {fill!r}; expected 'unique' or 'repeat_last'")
        if special not in ("full", "pooled"):
            raise UsageError(f"special is {special!r}; expected 'full' or 'pooled'")
        if regions is not None and fill != "unique":
            raise UsageError(f"regions is {regions} and fill is {fill!r}; lists chosen by regions need fill='unique'")
        self.dim, self.heads = dim, heads
        self.window: int = window
        self.top_k = top_k
        self.gating = gate
        self.fill: Literal["unique", "repeat_last"] = fill
        self.special: Literal["full", "pooled"] = special
        self.regions = regions
        self.reference, self.every = check_flag("reference", reference), every
        self.kv: KeyValues = check_kv(kv)
        self.implementation: Implementation = check_implementation(implementation)
        self.gate = None
        if gate != "none":
            start = torch.tensor([-GATE_START, GATE_START][: 2 if gate == "two" else 1])
            self.gate = nn.Linear(dim, heads * len(start))
            nn.init.zeros_(self.gate.weight)
            self.gate.bias.data.copy_(start.repeat(heads))

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        names = (
            "dim",
            "heads",
            "window",
            "top_k",
            "fill",
            "special",
            "regions",
            "reference",
            "every",
            "kv",
            "implementation",
        )
        return f"{format_settings(self, *names)}, gate={self.gating!r}"

    def unsupported(self, head_dim: int) -> str | None:
        """See Mechanism."""
        return unsupported(head_dim, self.window**2, self.window**2)

    def why_not_shared(self) -> str | None:
        """See Mechanism."""
        return (
            None if self.regions is None else f"regions={self.regions} compares the windows of all views in one process"
        )

    def why_not_traced(self) -> str | None:
        """See Mechanism."""
        if self.regions is None and not self._always(1):
            return None
        return "with regions, reference or every its lists have other lengths for other numbers of views"

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Projections of [B, N, C] tokens -> [B, H, N, D]."""
        p = without_padding(p)
        if not layout.patches:
            return softmax_attention(*p.finish(p.q, p.k), p.v, p.key_mask)
        if layout.share is not None:
            return self._across(p, layout, layout.share)
        cut = Cut.of(layout, self.window, p)
        one_pass = self._in_one_pass(p, cut)
        (q, k, v), (mean_q, mean_k) = _finish_and_pool(p, cut, one_pass)
        windows = describe_windows(p, (mean_q, mean_k, cut.pool(v.places)), cut)
        pooled_q, pooled_k = p.finish(windows.q, windows.k, windows.positions)
        views = self._always(cut.views)
        always = [v * cut.windows.count + w for v in views for w in range(cut.windows.count)]
        chosen = self._select(windows, (pooled_q, pooled_k), cut, always)
        # Without padding, views that all windows attend to are dense keys and need no lists.
        listed, seen = ([], views) if p.key_mask is None else (always, [])
        pooled, dense = self.special == "pooled", None
        if cut.special or seen:
            dense = cut.seen_by_all(k, seen, pooled), cut.seen_by_all(v, seen, pooled)

        def attend(rows: slice, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            blocks = chosen.blocks[:, :, rows.start // cut.size : rows.stop // cut.size]
            return block_sparse_attention(
                q[:, :, rows],
                k,
                v,
                _list_first(blocks, listed, cut.window_mask),
                query_block=cut.size,
                key_block=cut.size,
                key_mask=cut.mask,
                dense_keys=dense,
                kv=self.kv,
                implementation=self.implementation,
            )

        count = pooled_q.shape[2]
        each = p.q.shape[0] * p.q.shape[1] * (self.top_k + len(listed))
        some = pieces(count, each, pooled_q.device) if listed else (slice(0, count),)
        rows = (slice(part.start * cut.size, part.stop * cut.size) for part in some)
        selected = in_pieces(attend, rows, q.places, k.places, v.places)
        lists = partial(_list_first, chosen.blocks, always, cut.window_mask)
        record(
            *(self, layout),
            blocks=lists,
            gate=lambda: self.gates(p.x),
            density=lambda: cut.density(lists(), pooled),
        )
        special = None
        if cut.special:
            keys, values, mask = k.all, v.all, p.key_mask
            if pooled:
                keys = torch.cat([k.special, pooled_k], dim=2)
                values = torch.cat([v.special, windows.v], dim=2)
                mask = None if cut.window_mask is None else F.pad(cut.window_mask, (cut.special, 0), value=True)
            mask = None if mask is None else mask[:, None, None]
            special = F.scaled_dot_product_attention(q.special, keys, values, attn_mask=mask)
        if one_pass:
            gates = None if self.gate is None else in_own_type(self.gate, p.x)
            given = selected, chosen.out, gates, special
            joined = join_windows(*given, tokens=layout.tokens, size=cut.size, implementation=self.implementation)
            return joined.transpose(1, 2)
        gates = self.gates(p.x)
        return cut.join(selected if gates is None else _mix(chosen.out, selected, cut.blocks(gates)), special)

    def _select(
        self, windows: Projected, finished: tuple[Tensor, Tensor], cut: Cut, always: list[int]
    ) -> Selection | Choice:
        """Lists of windows, without those of `always`, and the compressed branch."""
        if self.regions is None:
            return self._select_windows(*finished, windows.v, cut.window_mask, always)
        top_k = min(self.top_k, finished[1].shape[2] - len(always))
        return select_by_regions(
            *(windows, finished, cut, top_k, self.regions), skip=always, implementation=self.implementation
        )

    def _select_windows(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, always: list[int]) -> Selection:
        """The `top_k` windows of each window besides `always`, and the compressed branch: q [B, H, n, D] of some
        windows, k and v [B, H, m, D] of all, mask [B, m]."""
        few = self.fill == "unique" and not is_traced()  # a graph for any number has lists of one length
        top_k = min(self.top_k, k.shape[2] - len(always)) if few else self.top_k
        settings = {"skip": always, "fill": self.fill, "implementation": self.implementation}
        chosen = block_select(q, k, v, max(1, top_k), key_mask=mask, **settings)
        return replace(chosen, blocks=chosen.blocks[..., :top_k])

    def _across(self, p: Projected, layout: TokenLayout, share: Share) -> Tensor:
        """`forward` for the views of one process: it gathers the averages of all windows, asks for those that its own
        windows chose, and sends the queries of special tokens to where the keys are."""
        cut = Cut.of(layout, self.window, p)
        (q, k, v), (mean_q, mean_k) = _finish_and_pool(p, cut, self._in_one_pass(p, cut))
        windows = describe_windows(p, (mean_q, mean_k, cut.pool(v.places)), cut)
        pooled_q, pooled_k = p.finish(windows.q, windows.k, windows.positions)
        count, pooled = cut.windows.count, self.special == "pooled"
        coarse_k, coarse_v = share.gather_pair(pooled_k, windows.v, count, "coarse")
        mask = cut.window_mask
        mask = None if mask is None else share.gather(mask, each=count, purpose="masks")
        always = [v * count + w for v in self._always(share.total) for w in range(count)]
        chosen = self._select_windows(pooled_q, coarse_k, coarse_v, mask, always)
        each = min(cut.layout.special, 1) if pooled else cut.layout.special
        special: tuple[Tensor, Tensor] | None = None
        if each:
            seen_k, seen_v = (cut.seen_by_all(x, [], pooled) for x in (k, v))
            special = share.gather_pair(seen_k, seen_v, each, "special")
        own = q.places, k.places, v.places

        def attend(found: Fetched) -> Tensor:
            lists = found.lists
            if p.key_mask is not None:  # the mask hides what of these windows is padding
                lists = torch.cat([found.always[:, None, None].expand(-1, 1, lists.shape[2], -1).int(), lists], -1)
            some = [x[:, found.heads].flatten(0, 1)[:, None] for x in special or ()]
            return block_sparse_attention(
                own[0][:, found.heads].flatten(0, 1)[:, None],
                found.keys,
                found.values,
                lists,
                query_block=cut.size,
                key_block=cut.size,
                key_mask=found.mask,
                dense_keys=found.dense(some, patches=p.key_mask is None),
                kv=self.kv,
                implementation=self.implementation,
            ).unflatten(0, (len(own[0]), -1))[:, :, 0]

        turns = torch.arange(own[0].shape[1]).chunk(share.group.size)
        selected = [attend(fetch(*own[1:], cut, chosen.blocks, always, share, heads)) for heads in turns]
        gates = self.gates(p.x)
        out = torch.cat(selected, 1)
        out = out if gates is None else _mix(chosen.out, out, cut.blocks(gates))
        if not cut.special:
            return cut.join(out, None)
        if not pooled:
            return cut.join(out, attend_by_all(q.special, k.all, v.all, p.key_mask, share))
        seen = share.gather_pair(k.special, v.special, layout.special, "special")
        keys, values = (torch.cat(both, 2) for both in zip(seen, (coarse_k, coarse_v), strict=True))
        mask = None if mask is None else F.pad(mask, (share.total * layout.special, 0), value=True)[:, None, None]
        return cut.join(out, F.scaled_dot_product_attention(q.special, keys, values, attn_mask=mask))

    def _in_one_pass(self, p: Projected, cut: Cut) -> bool:
        """Whether kernels take windows as they lie: norm, rotation and averages; both branches into their places."""
        kernels = self.implementation in ("auto", "triton") and p.finish_and_pool is not None
        return kernels and cut.mask is None and cut.windows.adjacent

    def gates(self, x: Tensor) -> Tensor | None:
        """Weights of the compressed and the selected branch [B, H, N, 2] for input x [B, N, C]; None without gates."""
        if self.gate is None:
            return None
        gates = in_own_type(self.gate, x).sigmoid().unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return gates if self.gating == "two" else torch.cat([gates, 1 - gates], dim=-1)

    def _always(self, views: int) -> list[int]:
        """The views, out of this many, whose windows every window attends to."""
        always = set(range(0, views, self.every)) if self.every else set()
        return sorted(always | {0} if self.reference else always)


def _finish_and_pool(
    p: Projected, cut: Cut, one_pass: bool
) -> tuple[tuple[Parts, Parts, Parts], tuple[Tensor, Tensor]]:
    """q and k after norm and rotation, and v; the means of the windows of q and k before both."""
    if one_pass and p.finish_and_pool is not None:
        (q, mean_q), (k, mean_k) = p.finish_and_pool(p.q, p.k, cut.size)
        q, k, v = (cut.parts_apart(x) for x in (q, k, cut.patches_first(p.v)))
        return (q, k, v), (mean_q, mean_k)
    q, k, v = (cut.parts(x) for x in (*p.finish(p.q, p.k), p.v))
    return (q, k, v), (cut.pool(cut.blocks(p.q)), cut.pool(cut.blocks(p.k)))


def _list_first(lists: Tensor, always: Sequence[int], window_mask: Tensor | None) -> Tensor:
    """Lists [B, H, n, K] behind the windows of `always`, -1 for those that window_mask [B, n] hides."""
    if not always:
        return lists
    first = torch.tensor(always, dtype=torch.int32, device=lists.device).expand(len(lists), -1)
    if window_mask is not None:
        first = first.where(window_mask[:, always], -1)
    return torch.cat([first[:, None, None].expand(*lists.shape[:3], -1), lists], -1)


def _mix(compressed: Tensor, selected: Tensor, gates: Tensor) -> Tensor:
    """Gated sum of window values [B, H, n, D] and patch values [B, H, n * size, D] by gates [B, H, n * size, 2]."""
    windows = compressed.shape[2]
    first, last = gates.to(selected.dtype).unflatten(2, (windows, -1)).split(1, dim=-1)
    selected, compressed = selected.unflatten(2, (windows, -1)), compressed[:, :, :, None]
    if torch.is_grad_enabled():
        return torch.addcmul(selected * last, first, compressed).flatten(2, 3)
    return selected.mul_(last).addcmul_(first, compressed).flatten(2, 3)
