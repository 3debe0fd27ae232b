"""Sparse-linear attention: softmax over the most important keys plus a linear branch for the rest.

`SLA` is Lite3R's (arXiv 2605.11354, with its released code), `ThuSLA` is the original (thu-ml/SLA).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from lean3r.attention.base import Mechanism, Projected, in_own_type, record
from lean3r.attention.block_mask import BlockSparse
from lean3r.attention.blocks import (
    attend_chosen,
    block_scores,
    count_blocks,
    pad_mask,
    pad_to_blocks,
    pool_blocks,
)
from lean3r.attention.dense import softmax_attention
from lean3r.attention.pieces import in_pieces, pieces
from lean3r.attention.settings import check_block, check_count, check_deviation, check_share, format_settings
from lean3r.attention.tokens import without_padding
from lean3r.errors import UsageError
from lean3r.ops.block_sparse import KeyValues, check_kv, unsupported
from lean3r.ops.dispatch import Implementation, check_implementation
from lean3r.ops.linear_attention import Feature, block_states, linear_attention, states_attention
from lean3r.tracing import without_autocast
from lean3r.types import TokenLayout

Mode = Literal["token", "block", "three-way"]
Filling = Literal["masked", "zeros"]
Special = Literal["alike", "dense"]
EPS = 1e-6  # Lite3R's; thu-ml has THU_EPS
THU_EPS = 1e-5


def top_tokens(q: Tensor, k: Tensor, v: Tensor, keep: float, mask: Tensor | None = None) -> Tensor:
    """Softmax over each query's max(1, floor(keep * keys)) largest scores; q, k, v [B, H, N, D].

    Keys that tie with the smallest of these scores are included too. mask [B, N] is False on keys that are left out.
    Scores are computed for a few queries at a time, and again for gradients; time is quadratic in the tokens. They are
    in float32: in half precision many keys would tie, and several times as many be kept.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, heads, tokens, dim = k.shape
    counts = [tokens] * batch if mask is None else mask.sum(1).tolist()
    # Ranks among `tokens` scores in ascending order, where masked keys have -inf.
    ranks = [tokens + 1 - max(1, int(keep * count)) for count in counts]

    def attend(rows: slice, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with without_autocast(q.device.type):
            scores = (q[:, :, rows].to(wide) * dim**-0.5) @ k.to(wide).transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        with torch.no_grad():
            limit = torch.stack([s.kthvalue(rank, -1, True).values for s, rank in zip(scores, ranks, strict=True)])
        return scores.masked_fill(scores < limit, -torch.inf).softmax(-1).to(v.dtype) @ v

    return in_pieces(attend, pieces(q.shape[2], batch * heads * tokens, q.device), q, k, v)


class SLA(Mechanism):
    """Lite3R: out = softmax branch + proj_lin(linear branch), proj_lin [D, D] shared by all heads.

    The linear branch is `phi(q) (phi(k)^T v) / (phi(q) . sum phi(k) + 1e-6)`, phi = ELU + 1, on q and k after norm
    and rotation. The softmax branch depends on `mode`:

    - "token": each query keeps its `keep` share of keys (quadratic time, bounded memory);
    - "block": each block of `block` queries keeps a `keep` share of key blocks, by the score of their means;
    - "three-way": softmax attention to a `critical` share of key blocks, none to a `negligible` share, linear
      attention to the others.

    `filling` is the padding of an incomplete last block: "masked" leaves the missing tokens out; with "zeros", as in
    the release, zero rows are part of means and are keys. Blocks follow the order of the tokens, including special
    tokens, and may span two views; `window` makes the trunk order tokens so that blocks are compact.

    special "dense" (block mode) lets special tokens attend to all keys, and patches to all special tokens, as in
    `BlockSparse`. "alike", as in the release, treats them like patches: a camera token then attends only to the keys
    that suit the patches of its block, which costs an untrained nano 14 points of AUC@30.

    keep 1 with a zero proj_lin, or critical 1, is dense attention. `init_std` is the standard deviation of the initial
    proj_lin. kv "fp8" rounds keys and values of the softmax branch, with one scale per block (ops/block_sparse); not
    in token mode.

    Source: Lite3R, arXiv 2605.11354.
    Time: "block" keep · N²; "three-way" critical · N²; "token" N².
    Use: after a short training of `proj_lin`; "three-way" is the fastest.
    """

    reads_input: ClassVar = False
    COMPLETE: ClassVar = (
        {"mode": "token", "keep": 1.0, "init_std": 0.0},
        {"mode": "block", "keep": 1.0, "block": 8, "init_std": 0.0},
        {"mode": "block", "keep": 1.0, "block": 8, "init_std": 0.0, "special": "dense"},
        {"mode": "three-way", "critical": 1.0, "block": 8},
    )
    SMALL: ClassVar = (
        {"mode": "token", "keep": 0.3},
        {"mode": "block", "keep": 0.4, "block": 8},
        {"mode": "block", "keep": 0.4, "block": 8, "filling": "zeros"},
        {"mode": "block", "keep": 0.4, "block": 8, "special": "dense"},
        {"mode": "three-way", "critical": 0.2, "negligible": 0.2, "block": 8},
    )

    lam: nn.Parameter

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        mode: Mode = "block",
        keep: float = 0.3,
        block: int = 64,
        critical: float = 0.05,
        negligible: float = 0.10,
        filling: Filling = "masked",
        special: Special = "alike",
        window: int | None = None,
        init_std: float = 1e-3,
        kv: KeyValues = "full",
        implementation: Implementation = "auto",
    ):
        super().__init__()
        if mode not in get_args(Mode) or filling not in get_args(Filling):
            modes, fillings = (", ".join(get_args(t)) for t in (Mode, Filling))
            raise UsageError(f"mode is {mode!r} and filling {filling!r}; expected one of {modes} and one of {fillings}")
        self.mode: Mode = mode
        self.keep = check_share("keep", keep, positive=True)
        self.block = check_block("block", block)
        self.critical = check_share("critical", critical)
        self.negligible = check_share("negligible", negligible)
        self.filling: Filling = filling
        if special not in get_args(Special):
            raise UsageError(f"special is {special!r}; expected 'alike' or 'dense'")
        if special == "dense" and (mode != "block" or filling != "masked"):
            raise UsageError(
                f"special='dense' with mode={mode!r} and filling={filling!r}; expected 'block' and 'masked'"
            )
        self.special: Special = special
        self.window = None if window is None else check_count("window", window)
        self.kv: KeyValues = check_kv(kv)
        if kv == "fp8" and mode == "token":
            raise UsageError("kv='fp8' needs blocks of keys, and mode='token' has none; use mode='block' or kv='full'")
        self.implementation: Implementation = check_implementation(implementation)
        self.proj_lin = nn.Linear(dim // heads, dim // heads, bias=False)
        nn.init.normal_(self.proj_lin.weight, std=check_deviation("init_std", init_std))
        # Part of released checkpoints, but also unused in the release.
        self.lam = nn.Parameter(torch.tensor(0.5), requires_grad=False)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        shares = ("critical", "negligible") if self.mode == "three-way" else ("keep",)
        blocks = () if self.mode == "token" else ("block", "filling", "special", "window", "kv")
        return format_settings(self, "mode", *shares, *blocks, "implementation")

    def unsupported(self, head_dim: int) -> str | None:
        """See Mechanism; the token mode has a kernel for its linear branch only."""
        return None if self.mode == "token" else unsupported(head_dim, self.block, self.block)

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Sum of both branches, [B, H, N, D]."""
        near, far = self.branches(p, layout)
        return near + in_own_type(self.proj_lin, far)

    def branches(self, p: Projected, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """(softmax branch, linear branch before its projection), each [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        if self.mode == "three-way":
            return self._three_way(q, k, p.v, p.key_mask, layout)
        far = linear_attention(
            q, k, p.v, feature="elu", eps=EPS, key_mask=p.key_mask, implementation=self.implementation
        )
        if self.special == "dense":
            return self._patches_apart(replace(p, q=q, k=k, finish=lambda q, k: (q, k)), layout), far
        if self.mode == "block":
            return self._blocks(q, k, p.v, p.key_mask, layout), far
        record(self, layout, density=max(1, int(self.keep * k.shape[2])) / k.shape[2])
        return top_tokens(q, k, p.v, self.keep, p.key_mask), far

    def _pool(self, q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Block means of padded q (scaled) and k, and a mask of key blocks with at least one token."""
        means, usable = [], None
        for x in (q, k):
            mean, usable = pool_blocks(x, self.block, mask)
            means.append(mean)
        return means[0] * q.shape[-1] ** -0.5, means[1], usable

    def _patches_apart(self, p: Projected, layout: TokenLayout) -> Tensor:
        return BlockSparse(
            _sparsity(self.keep), query_block=self.block, key_block=self.block, window=self.window, kv=self.kv,
            implementation=self.implementation,
        )(p, layout)  # fmt: skip

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layout: TokenLayout) -> Tensor:
        tokens, block = q.shape[2], self.block
        count = count_blocks(tokens, block)
        kept = max(1, round(self.keep * count))
        mask = pad_mask(mask, q, block, value=self.filling == "zeros")
        q, k, v = (pad_to_blocks(x, block) for x in (q, k, v))
        pooled_q, pooled_k, usable = self._pool(q, k, mask)

        def choice(rows: slice) -> Tensor:
            return block_scores(pooled_q[:, :, rows], pooled_k, usable).topk(kept, -1).indices.int()

        record(self, layout, density=min(1.0, kept / count), blocks=lambda: choice(slice(None)))
        out = attend_chosen(
            q, k, v, choice if kept < count else None, block, block, mask, self.implementation, self.kv
        )  # fmt: skip
        return out[:, :, :tokens]

    def _three_way(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layout: TokenLayout
    ) -> tuple[Tensor, Tensor]:
        tokens, block = q.shape[2], self.block
        count = count_blocks(tokens, block)
        high, low = (max(1, int(share * count)) for share in (self.critical, self.negligible))
        mask = pad_mask(mask, q, block, value=self.filling == "zeros")
        q, k, v = (pad_to_blocks(x, block) for x in (q, k, v))
        pooled_q, pooled_k, usable = self._pool(q, k, mask)

        def choice(rows: slice) -> Tensor:
            return block_scores(pooled_q[:, :, rows], pooled_k, usable).topk(high, -1).indices.int()

        def marginal(rows: slice) -> Tensor:
            scores = block_scores(pooled_q[:, :, rows], pooled_k, usable)
            ranks = scores if usable is None else scores.masked_fill(~usable[:, None, None, :], torch.inf)
            rest = torch.ones_like(scores, dtype=torch.bool)
            rest.scatter_(-1, scores.topk(high, -1).indices, False)
            return rest.scatter_(-1, ranks.topk(low, -1, largest=False).indices, False)

        def linear(rows: slice, q: Tensor, states: Tensor) -> Tensor:
            with torch.no_grad():
                chosen = marginal(rows)
            return states_attention(q[:, :, rows], states, chosen, "elu", EPS)

        record(self, layout, density=high / count, blocks=lambda: choice(slice(None)))
        near = attend_chosen(
            q, k, v, choice if high < count else None, block, block, mask, self.implementation, self.kv
        )  # fmt: skip
        states = block_states(k, v, block, "elu", mask)
        each = q.shape[0] * q.shape[1] * (count + states.shape[3] * states.shape[4])
        far = in_pieces(linear, pieces(count, each, q.device), q.unflatten(2, (count, block)), states)
        return near[:, :, :tokens], far.flatten(2, 3)[:, :, :tokens]


def _sparsity(keep: float) -> float:
    """1 - keep, but so much less that of 20 blocks a tenth is 2: 1 - (1 - 0.1) is less than 0.1 in binary."""
    return max(0.0, 1 - keep - 1e-9)


class ThuSLA(Mechanism):
    """thu-ml's variant: out = block-sparse softmax + proj_l(linear attention over all keys), proj_l with bias.

    Each block of `query_block` queries attends to a `keep` share of the key blocks (at least one; the release divides
    0 by 0 there), by the score of the block means. proj_l starts at zero, so that keep 1 is dense attention. `feature`
    is the feature map of the linear branch: "softmax", "elu" or "relu". Nothing is cast to bfloat16, unlike in the
    release. kv as in `SLA`.

    Source: thu-ml/SLA.
    Time: keep · N².
    Use: as `sla`; without training it is a plain block-sparse attention.
    """

    reads_input: ClassVar = False
    COMPLETE: ClassVar = ({"keep": 1.0, "key_block": 8},)
    SMALL: ClassVar = ({"keep": 0.3, "query_block": 16, "key_block": 8},)

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        keep: float = 0.2,
        query_block: int = 64,
        key_block: int = 64,
        feature: Feature = "softmax",
        window: int | None = None,
        kv: KeyValues = "full",
        implementation: Implementation = "auto",
    ):
        super().__init__()
        if feature not in get_args(Feature):
            raise UsageError(f"feature is {feature!r}; expected one of {', '.join(get_args(Feature))}")
        self.keep = check_share("keep", keep, positive=True)
        self.query_block = check_block("query_block", query_block)
        self.key_block = check_block("key_block", key_block)
        self.feature: Feature = feature
        self.window = None if window is None else check_count("window", window)
        self.kv: KeyValues = check_kv(kv)
        self.implementation: Implementation = check_implementation(implementation)
        self.proj_l = nn.Linear(dim // heads, dim // heads)
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)

    def extra_repr(self) -> str:
        """Shown by repr(model)."""
        return format_settings(self, "keep", "query_block", "key_block", "feature", "window", "kv", "implementation")

    def unsupported(self, head_dim: int) -> str | None:
        """See Mechanism."""
        return unsupported(head_dim, self.query_block, self.key_block)

    def forward(self, p: Projected, layout: TokenLayout) -> Tensor:
        """Sum of both branches, [B, H, N, D]."""
        near, far = self.branches(p, layout)
        return near + in_own_type(self.proj_l, far)

    def branches(self, p: Projected, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """(softmax branch, linear branch before its projection), each [B, H, N, D]."""
        p = without_padding(p)
        q, k = p.finish(p.q, p.k)
        v, tokens = p.v, q.shape[2]
        far = linear_attention(
            q, k, v, feature=self.feature, eps=THU_EPS, key_mask=p.key_mask, implementation=self.implementation
        )
        count = count_blocks(tokens, self.key_block)
        kept = max(1, int(self.keep * count))
        if kept >= count and self.kv == "full":
            record(self, layout, density=1.0)
            return softmax_attention(q, k, v, p.key_mask), far
        query_mask = pad_mask(p.key_mask, q, self.query_block)
        key_mask = pad_mask(p.key_mask, k, self.key_block)
        q = pad_to_blocks(q, self.query_block)
        k, v = (pad_to_blocks(x, self.key_block) for x in (k, v))
        pooled_q, _ = pool_blocks(q, self.query_block, query_mask)
        pooled_k, usable = pool_blocks(k, self.key_block, key_mask)
        # A shift of all keys does not change the ranking, but improves the precision of the scores.
        pooled_k = pooled_k - pooled_k.mean(2, keepdim=True)

        def choice(rows: slice) -> Tensor:
            return block_scores(pooled_q[:, :, rows], pooled_k, usable).topk(kept, -1).indices.int()

        record(self, layout, density=kept / count, blocks=lambda: choice(slice(None)))
        near = attend_chosen(
            q, k, v, choice, self.query_block, self.key_block, key_mask, self.implementation, self.kv
        )  # fmt: skip
        return near[:, :, :tokens], far
